use super::*;
use crate::test_support::cluster;

fn validated(spec: &str) -> Result<ValidatedCluster, Error> {
    validate(&cluster(spec), &ImageDefaults::default())
}

#[test]
fn three_lines_of_spec_are_enough() {
    let validated = validated("{replicas: 3}").unwrap();
    assert_eq!(validated.replicas, 3);
    assert_eq!(
        validated.listeners,
        [config::Listener { name: "mqtt".into(), protocol: config::Protocol::Mqtt, port: 1883 }]
    );
    assert_eq!(validated.mqtt, config::Mqtt::default());
    assert_eq!(validated.sessions, config::Sessions::default());
    assert_eq!(validated.fence, config::Fence::default());
    assert_eq!(validated.drain, config::Drain::default());
    assert_eq!(validated.storage.reserve, config::Storage::default());
    assert_eq!(validated.anonymous, None);
}

#[test]
fn a_manifest_that_no_api_server_saw_is_refused_in_sentences() {
    for (spec, sentence) in [
        ("{replicas: 0}", "at least 1"),
        ("{replicas: 2}", "no majority"),
        ("{replicas: 4}", "allowEvenReplicas"),
        ("{storage: {size: lots}}", "storage.size: \"lots\" must be a number of bytes"),
        ("{sessions: {expiryMax: 1d}}", "sessions.expiryMax: \"1d\" must be a duration"),
        ("{sessions: {expiryWhenUnset: 200h}}", "must not exceed"),
        ("{fence: {lease: 1s}}", "fence.lease"),
        ("{mqtt: {maxPacketSize: 1Gi}}", "between 1Ki and 16Mi"),
        ("{listeners: [{name: a, port: 2000}, {name: b, port: 2000}]}", "needs a unique port"),
        ("{acl: {anonymousRules: [{allow: [Publish], topics: [a]}]}}", "need acl.anonymous"),
        ("{acl: {anonymous: true, anonymousRules: [{allow: [Publish], topics: ['a#']}]}}", "# must be the last level"),
        ("{resources: {limits: {memory: much}}}", "resources.limits.memory"),
        ("{resources: {limits: {memory: 64Mi}}, mqtt: {maxRetainedBytes: 1Mi}}", "at least 128Mi"),
        ("{resources: {requests: {memory: 2Gi}}}", "must not exceed resources.limits.memory"),
        ("{resources: {requests: {cpu: 2}, limits: {cpu: 1500m}}}", "must not exceed resources.limits.cpu"),
        ("{resources: {requests: {memory: 2Gi}, limits: {cpu: 2}}}", "must not exceed resources.limits.memory"),
        ("{resources: {limits: {cpu: 2}}, mqtt: {maxRetainedBytes: 1Gi}}", "half of resources.limits.memory"),
        ("{resources: {limits: {cpu: 0}}}", "limits.cpu must be more than 0"),
        ("{mqtt: {maxRetainedBytes: 1Gi}}", "half of resources.limits.memory"),
        ("{sessions: {maxQueuedBytes: 0}}", "maxQueuedBytes must be at least 1Ki"),
        ("{fence: {closeClientsAfter: 0s}}", "between 1s and 10m"),
        ("{rollout: {drain: {deadline: 2h}}}", "must not exceed 1h"),
    ] {
        let error = validated(spec).unwrap_err().to_string();
        assert!(error.contains(sentence), "{spec}: {error}");
    }
    assert!(validated("{replicas: 4, allowEvenReplicas: true}").is_ok());
}

#[test]
fn a_lower_expiry_maximum_alone_is_enough() {
    let validated = validated("{sessions: {expiryMax: 1h}}").unwrap();
    assert_eq!(validated.sessions.expiry_when_unset, Duration::from_hours(1));
}

#[test]
fn an_invalid_rest_leaves_the_anonymous_rules_and_invalid_rules_admit_no_anonymous_client() {
    let rules = |spec: &str| basics(&cluster(spec)).anonymous.map(|rules| rules.len());
    let good = "acl: {anonymous: true, anonymousRules: [{allow: [Publish], topics: [a]}]}";
    assert_eq!(rules(&format!("{{replicas: 2, storage: {{size: lots}}, {good}}}")), Some(1));
    for bad in ["a#", "{username}/a", "a/{clientId}", r"a\0b"] {
        let acl =
            format!("{{acl: {{anonymous: true, anonymousRules: [{{allow: [Publish], topics: [a, \"{bad}\"]}}]}}}}");
        assert_eq!(rules(&acl), None, "{acl}");
        let error = validated(&acl).unwrap_err().to_string();
        assert!(error.contains("no anonymous client is admitted"), "{error}");
    }
}

#[test]
fn every_problem_is_named_at_once() {
    let error = validated("{replicas: 2, storage: {size: lots}}").unwrap_err();
    assert_eq!(error.problems.len(), 3, "{error}");
}

#[test]
fn the_manifests_image_comes_first_then_the_operators_own() {
    let defaults = ImageDefaults { image: "registry/covey:9".into(), pull_secrets: vec!["ours".into()] };
    let secrets = |spec: &str| super::validate(&cluster(spec), &defaults).unwrap().pull_secrets;
    assert_eq!(secrets("{}"), ["ours"]);
    assert_eq!(secrets("{image: {repository: r/covey, pullSecrets: [theirs]}}"), ["theirs"]);
    for (spec, image) in [
        ("{}", "registry/covey:9"),
        ("{image: {pullPolicy: Always}}", "registry/covey:9"),
        ("{image: {repository: r/covey}}", concat!("r/covey:", env!("CARGO_PKG_VERSION"))),
        ("{image: {repository: r/covey, tag: x}}", "r/covey:x"),
        ("{image: {repository: r/covey, tag: x, digest: ''}}", "r/covey:x"),
        (
            "{image: {repository: r/covey, tag: x, digest: 'sha256:0123456789abcdef0123456789abcdef'}}",
            "r/covey@sha256:0123456789abcdef0123456789abcdef",
        ),
    ] {
        assert_eq!(super::validate(&cluster(spec), &defaults).unwrap().image, image, "{spec}");
    }
}

#[test]
fn a_small_volume_keeps_a_percentage_free() {
    let validated = validated("{storage: {size: 1Gi}}").unwrap();
    assert_eq!(validated.storage.reserve, config::Storage { reserve_percent: 10, reserve_min_bytes: 0 });
}

#[test]
fn sources_that_no_network_policy_could_have_are_refused() {
    let from = |peer: &str| format!("{{listeners: [{{name: mqtt, port: 1883, from: [{peer}]}}]}}");
    let good = "{podSelector: {}}, {podSelector: {matchLabels: {app: a}}, namespaceSelector: {matchExpressions: \
        [{key: a/b, operator: In, values: [c]}, {key: d, operator: Exists}]}}, \
        {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {ipBlock: {cidr: '::/0'}}";
    assert_eq!(validated(&from(good)).unwrap().network.listeners["mqtt"].len(), 4);
    assert!(validated("{}").unwrap().network.listeners.is_empty());
    for (peer, sentence) in [
        ("", "listeners[mqtt].from must not be empty"),
        ("{}", "a source has podSelector, namespaceSelector, both, or ipBlock"),
        ("{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}", "a source with ipBlock has no selector"),
        (
            "{podSelector: {matchLables: {app: a}}}",
            "has a field that the NetworkPolicyPeer of Kubernetes does not have",
        ),
        ("{podSelector: {matchLabels: {'a b': c}}}", "a b=c is not a label"),
        ("{podSelector: {matchLabels: {a: 'b c'}}}", "a=b c is not a label"),
        ("{podSelector: {matchExpressions: [{key: a, operator: In}]}}", "operators In and NotIn need values"),
        ("{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}", "DoesNotExist have none"),
        ("{podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}}", "no others exist"),
        ("{podSelector: {matchExpressions: [{key: a, operator: In, values: ['b c']}]}}", "does not have labels"),
        ("{podSelector: {matchExpressions: [{operator: Exists}]}}", "lacks a required one"),
        ("{ipBlock: {cidr: 10.0.0.0}}", "\"10.0.0.0\" must be a block of addresses"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}", "except must be smaller blocks within cidr"),
        ("{ipBlock: [10.0.0.0/8, 1]}", "must be a NetworkPolicyPeer"),
    ] {
        let error = validated(&from(peer)).unwrap_err().to_string();
        assert!(error.contains(sentence), "{peer}: {error}");
    }
    let many = from(&vec!["{podSelector: {}}"; 17].join(", "));
    assert!(validated(&many).unwrap_err().to_string().contains("must not have more than 16 entries"));
    for spec in [
        "{networkPolicy: {enabled: false, monitoringFrom: [{podSelector: {}}]}}",
        "{networkPolicy: {enabled: false}, listeners: [{name: mqtt, port: 1883, from: [{podSelector: {}}]}]}",
    ] {
        assert!(validated(spec).unwrap_err().to_string().contains("need networkPolicy.enabled: true"), "{spec}");
    }
}

#[test]
fn a_placement_that_no_pod_could_have_is_refused() {
    let affinity = "{placement: {affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
        [{topologyKey: kubernetes.io/hostname}]}}}}";
    assert!(validated(affinity).unwrap().placement.affinity.is_some());
    for (spec, sentence) in [
        ("{placement: {topologyKey: 'a b'}}", "topologyKey must be the key of a label"),
        ("{placement: {nodeSelector: {'a b': c}}}", "nodeSelector: a b=c is not a label"),
        ("{placement: {nodeSelector: {a: 'b c'}}}", "is not a label"),
        ("{placement: {priorityClassName: Bad_Name}}", "must be the name of a PriorityClass"),
        ("{placement: {tolerations: [{value: a}]}}", "or operator Exists and no key"),
        ("{placement: {tolerations: [{key: a, operator: Exists, value: b}]}}", "has no value"),
        ("{placement: {tolerations: [{key: a, tolerationSeconds: 5}]}}", "needs effect NoExecute"),
        ("{placement: {affinity: {nodeAffinity: [1]}}}", "must be the affinity of a Pod"),
        ("{placement: {affinity: {nodeAfinity: {}}}}", "does not have"),
    ] {
        let error = validated(spec).unwrap_err().to_string();
        assert!(error.contains(sentence), "{spec}: {error}");
    }
}
