use covey_contract::config::{Config, Paths, Peers};
use k8s_openapi::api::networking::v1::{NetworkPolicyIngressRule, NetworkPolicyPeer};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::*;
use crate::cluster::validate::{ImageDefaults, validate};
use crate::test_support::cluster;

/// What is decided while every node is in sync.
fn open() -> Evictions {
    let protected = ["mosaic-0", "mosaic-1", "mosaic-2"].map(String::from).into();
    Evictions { protected, min_available: 2, protect_unready: true }
}

fn of_operator() -> OperatorPods {
    let labels = [("app.kubernetes.io/name".to_owned(), "covey-operator".to_owned())];
    OperatorPods { namespace: "covey-system".into(), labels: labels.into() }
}

fn network_policy(spec: &str, pods: &[Pod], operator: Option<&OperatorPods>) -> NetworkPolicy {
    network_policy::build(&built(spec), pods, operator)
}

fn built(spec: &str) -> ValidatedCluster {
    validate(&cluster(spec), &ImageDefaults::default()).unwrap()
}

#[test]
fn the_configuration_is_what_the_broker_accepts() {
    let children = children(&built("{replicas: 5, shards: 4, acl: {anonymous: true}}"), &open(), &[], None);
    let text = &children.config_map.data.unwrap()["broker.yaml"];
    let config = Config::parse(text).unwrap();
    // A change of the number of nodes does not roll the pods.
    assert_eq!((config.cluster.replicas, config.cluster.shards), (3, 4));
    assert_eq!(config.cluster.uid, "uid-1");
    assert_eq!(config.peers.host_of(2), "mosaic-2.mosaic-peers.floor.svc");
    assert_eq!(config.peers.port_of(config.peers.admin_port, 2), names::PORT_ADMIN);
    assert!(config.anonymous);
}

#[test]
fn loopback_brokers_get_the_same_file_but_for_where_they_are() {
    let validated = built("{}");
    let local = broker_config(&validated, Peers::default(), Paths { data: "/d".into(), ..Paths::default() });
    assert_eq!(local.peers.host_of(1), "127.0.0.1");
    assert_eq!(local.sessions, validated.sessions);
}

#[test]
fn children_are_owned_named_and_labelled() {
    let validated = built("{}");
    let children = children(&validated, &open(), &[], Some(&of_operator()));
    insta::assert_yaml_snapshot!("client_service", children.client_service);
    insta::assert_yaml_snapshot!("peers_service", children.peers_service);
    insta::assert_yaml_snapshot!("pdb", children.pdb);
    insta::assert_yaml_snapshot!("service_account", children.service_account);
    insta::assert_yaml_snapshot!("network_policy", children.network_policy);
    let owner = &children.config_map.metadata.owner_references.unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("MqttCluster", "uid-1", Some(true)));
}

#[test]
fn the_network_policy_admits_the_sources_of_the_manifest_and_the_operator() {
    let spec = "{listeners: [{name: mqtt, port: 1883, from: [{podSelector: {matchLabels: {app: press}}}, \
        {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}, {name: open, port: 2883}], \
        networkPolicy: {monitoringFrom: [{namespaceSelector: {matchLabels: {team: metrics}}}]}}";
    insta::assert_yaml_snapshot!(
        "network_policy_restricted",
        network_policy(spec, &[], Some(&of_operator())).spec.unwrap().ingress
    );
    assert!(built("{}").network.enabled && !built("{networkPolicy: {enabled: false}}").network.enabled);
    let hash_of = |spec: &str| hash(&stateful_set(&built(spec)).spec.unwrap().template);
    assert_eq!(hash_of("{}"), hash_of("{listeners: [{name: mqtt, port: 1883, from: [{podSelector: {}}]}]}"));
}

/// Returns who may connect to a port, `None` if anyone. One rule names the port.
fn admitted(policy: &NetworkPolicy, port: u16) -> Option<Vec<NetworkPolicyPeer>> {
    let rules = policy.spec.as_ref().unwrap().ingress.as_ref().unwrap();
    let number = Some(IntOrString::Int(port.into()));
    let of_port = rules.iter().filter(|rule| rule.ports.iter().flatten().any(|one| one.port == number));
    let [rule] = of_port.collect::<Vec<_>>().try_into().unwrap();
    rule.from.clone()
}

#[test]
fn an_operator_that_does_not_know_its_pods_is_not_locked_out() {
    let spec = "{networkPolicy: {monitoringFrom: [{podSelector: {}}]}}";
    let unknown = network_policy(spec, &[], None);
    assert_eq!(admitted(&unknown, names::PORT_ADMIN), None);
    assert_eq!(admitted(&unknown, names::PORT_PEER).unwrap().len(), 1);
    assert_eq!(admitted(&unknown, names::PORT_HTTP).unwrap().len(), 1, "the manifest restricts it");
    let known = network_policy(spec, &[], Some(&of_operator()));
    assert_eq!(admitted(&known, names::PORT_ADMIN).unwrap().len(), 1);
    assert_eq!(admitted(&known, names::PORT_HTTP).unwrap().len(), 2);
    let all = OperatorPods { labels: BTreeMap::new(), ..of_operator() };
    let by_namespace = admitted(&network_policy(spec, &[], Some(&all)), names::PORT_ADMIN).unwrap();
    assert!(by_namespace[0].pod_selector.is_none() && by_namespace[0].namespace_selector.is_some());
}

/// The Service sends clients of a listener to pods of the earlier template at the port that these have.
#[test]
fn the_earlier_port_of_a_listener_stays_open_until_no_pod_has_it() {
    let pod = |ports: serde_json::Value| -> Pod {
        let containers = serde_json::json!([{"name": "broker", "ports": ports}]);
        serde_json::from_value(serde_json::json!({"metadata": {}, "spec": {"containers": containers}})).unwrap()
    };
    let port = |name: &str, number: u16| serde_json::json!({"name": name, "containerPort": number});
    let pods = [
        pod(serde_json::json!([port("mqtt", 1884), port("peer", 7883)])),
        pod(serde_json::json!([port("mqtt", 1883), port("gone", 1999)])),
        pod(serde_json::json!([port("mqtt", 7884)])),
    ];
    let spec = "{listeners: [{name: mqtt, port: 1884, from: [{podSelector: {}}]}]}";
    let open: Vec<_> = network_policy(spec, &pods, Some(&of_operator())).spec.unwrap().ingress.unwrap();
    let ports = |rule: &NetworkPolicyIngressRule| rule.ports.iter().flatten().map(|one| one.port.clone()).collect();
    let [listener, peer, admin, http]: [Vec<_>; 4] = open.iter().map(ports).collect::<Vec<_>>().try_into().unwrap();
    let number = |number: u16| Some(IntOrString::Int(number.into()));
    assert_eq!(listener, [number(1883), number(1884)], "another pod's port 7884 is not opened by a listener");
    assert_eq!([peer, admin, http], [[number(7883)], [number(7884)], [number(9464)]]);
}

#[test]
fn the_stateful_set_is_hardened_and_complete() {
    insta::assert_yaml_snapshot!("stateful_set", stateful_set(&built("{image: {repository: covey, tag: 9.9.9}}")));
}

#[test]
fn a_changed_configuration_changes_the_template_and_a_changed_service_does_not() {
    let hash_of = |spec: &str| hash(&stateful_set(&built(spec)).spec.unwrap().template);
    assert_eq!(hash_of("{}"), hash_of("{service: {type: NodePort}}"));
    assert_ne!(hash_of("{}"), hash_of("{sessions: {expiryWhenUnset: 3h}}"));
}

#[test]
fn pods_pull_with_the_secrets_of_the_manifest() {
    let secrets = |spec: &str| stateful_set(&built(spec)).spec.unwrap().template.spec.unwrap().image_pull_secrets;
    assert_eq!(secrets("{}"), None);
    assert_eq!(secrets("{image: {pullSecrets: [a, b]}}").unwrap().len(), 2);
}

#[test]
fn claims_follow_the_deletion_policy() {
    let policy = |spec: &str| {
        let spec = stateful_set(&built(spec)).spec.unwrap();
        spec.persistent_volume_claim_retention_policy.unwrap().when_deleted.unwrap()
    };
    assert_eq!(policy("{}"), "Retain");
    assert_eq!(policy("{storage: {deletionPolicy: Delete}}"), "Delete");
}

#[test]
fn the_grace_period_outlives_the_drain() {
    let grace = |spec: &str| {
        let pod = stateful_set(&built(spec)).spec.unwrap().template.spec.unwrap();
        pod.termination_grace_period_seconds.unwrap()
    };
    assert_eq!(grace("{rollout: {drain: {deadline: 10m}}}"), 665);
}

#[test]
fn pods_are_placed_as_the_manifest_says_and_the_default_needs_nothing() {
    let pod = |spec: &str| stateful_set(&built(spec)).spec.unwrap().template.spec.unwrap();
    let default = pod("{}");
    assert_eq!((default.node_selector, default.tolerations, default.affinity), (None, None, None));
    let placed = pod("{placement: {spread: Required, nodeSelector: {disk: ssd}, priorityClassName: high, \
        tolerations: [{key: mqtt, operator: Exists, effect: NoSchedule}], \
        affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: []}}}}");
    let toleration = &placed.tolerations.unwrap()[0];
    let found = (toleration.key.as_deref(), toleration.operator.as_deref(), toleration.effect.as_deref());
    assert_eq!(found, (Some("mqtt"), Some("Exists"), Some("NoSchedule")));
    assert_eq!(placed.node_selector.unwrap()["disk"], "ssd");
    assert_eq!(placed.priority_class_name.as_deref(), Some("high"));
    assert!(placed.affinity.unwrap().node_affinity.is_some());
}

#[test]
fn a_required_spread_leaves_no_machine_a_majority() {
    let spread = |spec: &str| {
        let pod = stateful_set(&built(spec)).spec.unwrap().template.spec.unwrap();
        let rules = pod.topology_spread_constraints.unwrap().into_iter();
        rules.map(|one| (one.topology_key, one.when_unsatisfiable, one.min_domains)).collect::<Vec<_>>()
    };
    let rule = |key: &str, when: &str, least| (key.to_owned(), when.to_owned(), least);
    let (host, zone) = ("kubernetes.io/hostname", "topology.kubernetes.io/zone");
    assert_eq!(spread("{}"), [rule(host, "ScheduleAnyway", None), rule(zone, "ScheduleAnyway", None)]);
    assert_eq!(
        spread("{replicas: 5, placement: {spread: Required}}"),
        [rule(host, "DoNotSchedule", Some(3)), rule(zone, "ScheduleAnyway", None)]
    );
    assert_eq!(
        spread("{replicas: 1, placement: {spread: Required, topologyKey: rack}}"),
        [
            rule("rack", "DoNotSchedule", Some(1)),
            rule(host, "ScheduleAnyway", None),
            rule(zone, "ScheduleAnyway", None)
        ]
    );
}
