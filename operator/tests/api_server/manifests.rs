//! The API server refuses bad manifests, each with a message that says what to correct, and adds defaults to good ones.

use covey_crds::MqttCluster;
use covey_operator::cluster::validate::{ImageDefaults, validate};
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use serde_json::{Value, json};

use super::started;

const BAD_CLUSTERS: [(&str, &str); 69] = [
    ("{replicas: 0}", "greater than or equal to 1"),
    ("{replicas: 2}", "two nodes have no majority"),
    ("{replicas: 4}", "set allowEvenReplicas: true"),
    ("{replicas: three}", "must be of type integer"),
    ("{storage: {size: lots}}", "must be a number of bytes such as 256Ki, 64Mi or 10Gi"),
    ("{resources: {limits: {memory: 1GB}}}", "must be a number of bytes"),
    ("{resources: {requests: {cpu: half}}}", "must be a number of cores such as 500m or 2"),
    ("{sessions: {expiryMax: 1d}}", "must be a duration in whole seconds"),
    ("{sessions: {expiryMax: 1h, expiryWhenUnset: 2h}}", "expiryWhenUnset must not exceed sessions.expiryMax"),
    ("{sessions: {expiryWhenUnset: 200h}}", "expiryWhenUnset must not exceed sessions.expiryMax"),
    ("{mqtt: {maxPacketSize: 1Gi}}", "maxPacketSize must be between 1Ki and 16Mi"),
    ("{mqtt: {maxPacketSize: 1}}", "maxPacketSize must be between 1Ki and 16Mi"),
    ("{storage: {size: 1Mi}}", "storage.size must be at least 64Mi"),
    (
        "{acl: {anonymous: true, anonymousRules: [{allow: [Publish], topics: [\"a\\0b\"]}]}}",
        "a topic cannot contain NUL",
    ),
    ("{mqtt: {maxPacketSize: big}}", "must be a number of bytes such as 256Ki, 64Mi or 10Gi"),
    ("{fence: {lease: 1d}}", "must be a duration in whole seconds"),
    ("{fence: {lease: 1s}}", "fence.lease must be between 3s and 60s"),
    ("{storage: {reserve: 100%}}", "must be a percentage from 0% to 99%"),
    ("{listeners: [{name: a, port: 2000}, {name: b, port: 2000}]}", "every listener needs a unique port"),
    ("{listeners: [{name: a, port: 2000}, {name: a, port: 2001}]}", "Duplicate value"),
    ("{listeners: [{name: peer, port: 2000}]}", "names of the broker's own ports"),
    ("{listeners: [{name: a, port: 7883}]}", "the broker's own ports"),
    ("{listeners: [{name: a, port: 8883, protocol: mqtts}]}", "supported values: \"mqtt\""),
    ("{service: {externalTrafficPolicy: Local}}", "needs service.type NodePort or LoadBalancer"),
    ("{acl: {anonymousRules: [{allow: [Publish], topics: [a]}]}}", "anonymousRules need anonymous: true"),
    (
        "{acl: {anonymous: true, anonymousRules: [{allow: [Publish], topics: ['{username}/a']}]}}",
        "could choose its own topics",
    ),
    ("{sessions: {maxQueuedBytes: 0}}", "maxQueuedBytes must be at least 1Ki"),
    ("{mqtt: {maxRetainedBytes: 20Ti}}", "must not exceed half of resources.limits.memory"),
    ("{mqtt: {maxRetainedBytes: 1Gi}}", "must not exceed half of resources.limits.memory"),
    ("{fence: {lease: 2h}}", "fence.lease must be between 3s and 60s"),
    ("{fence: {closeClientsAfter: 999999h}}", "closeClientsAfter must be between 1s and 10m"),
    ("{fence: {closeClientsAfter: 0s}}", "closeClientsAfter must be between 1s and 10m"),
    ("{rollout: {drain: {deadline: 999999h}}}", "deadline must not exceed 1h"),
    ("{resources: {limits: {cpu: 2}}, mqtt: {maxRetainedBytes: 1Gi}}", "half of resources.limits.memory"),
    ("{rollout: {drain: {waitEndpointRemoval: 6m}}}", "waitEndpointRemoval must not exceed 5m"),
    ("{rollout: {drain: {rate: 0}}}", "greater than or equal to 1"),
    ("{resources: {requests: {memory: 2Gi}}}", "requests.memory must not exceed resources.limits.memory"),
    ("{resources: {requests: {cpu: 2}, limits: {cpu: 1500m}}}", "requests.cpu must not exceed resources.limits.cpu"),
    ("{resources: {limits: {memory: 1Mi}}, mqtt: {maxRetainedBytes: 1Ki}}", "limits.memory must be at least 128Mi"),
    ("{resources: {limits: {cpu: '0'}}}", "limits.cpu must be more than 0"),
    ("{image: {repository: My Repo}}", "image.repository must look like"),
    ("{image: {repository: 'covey:1'}}", "image.repository must look like"),
    ("{image: {repository: covey, tag: a b}}", "image.tag must consist of"),
    ("{image: {tag: '1'}}", "image.tag and image.digest need image.repository"),
    ("{image: {repository: covey, digest: abc}}", "digest must look like sha256"),
    ("{listeners: [{name: a--b, port: 2000}]}", "a listener's name is a port name"),
    ("{resources: {requests: {memory: 1Ki}}}", "requests.memory must be at least 1Mi"),
    ("{storage: {storageClassName: Bad_Name}}", "must be the name of a StorageClass"),
    ("{placement: {spread: Always}}", "supported values: \"Preferred\", \"Required\""),
    ("{placement: {topologyKey: 'a b'}}", "placement.topologyKey must be the key of a label"),
    ("{placement: {priorityClassName: Bad_Name}}", "must be the name of a PriorityClass"),
    ("{placement: {tolerations: [{value: a}]}}", "a toleration without a key needs operator Exists"),
    ("{placement: {tolerations: [{key: a, operator: Exists, value: b}]}}", "with operator Exists has no value"),
    ("{placement: {tolerations: [{key: a, tolerationSeconds: 5}]}}", "tolerationSeconds needs effect NoExecute"),
    ("{placement: {affinity: none}}", "must be of type object"),
    ("{networkPolicy: {monitoringFrom: []}}", "should have at least 1 items"),
    ("{networkPolicy: {monitoringFrom: [any]}}", "must be of type object"),
    ("{networkPolicy: {monitoringFrom: [{}]}}", "a source has podSelector, namespaceSelector, both, or ipBlock"),
    (
        "{networkPolicy: {monitoringFrom: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}}",
        "a source with ipBlock has no selector",
    ),
    ("{networkPolicy: {monitoringFrom: [{ipBlock: {cidr: 10.0.0.0}}]}}", "must be a block of addresses"),
    ("{networkPolicy: {monitoringFrom: [{ipBlock: {cidr: 10.1.2.3/8}}]}}", "without bits beyond the prefix"),
    ("{networkPolicy: {monitoringFrom: [{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}]}}", "must be a block of addresses"),
    (
        "{networkPolicy: {monitoringFrom: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}}",
        "except must be smaller blocks within cidr",
    ),
    (
        "{networkPolicy: {monitoringFrom: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}}",
        "except must be smaller blocks within cidr",
    ),
    (
        "{networkPolicy: {monitoringFrom: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]}}",
        "operators In and NotIn need values",
    ),
    (
        "{networkPolicy: {monitoringFrom: [{podSelector: {matchExpressions: [{key: a, operator: Is}]}}]}}",
        "supported values: \"In\"",
    ),
    (
        "{listeners: [{name: a, port: 2000, from: [{podSelector: {matchLables: {a: b}}}]}]}",
        "unknown field \"spec.listeners[0].from[0].podSelector.matchLables\"",
    ),
    (
        "{networkPolicy: {enabled: false}, listeners: [{name: a, port: 2000, from: [{podSelector: {}}]}]}",
        "need networkPolicy.enabled: true",
    ),
    ("{surprise: 1}", "unknown field \"spec.surprise\""),
];

const BAD_USERS: [(&str, &str); 19] = [
    ("acl: [{allow: [Subscribe], topics: ['plant/#/x']}]", "# must be the last level"),
    ("acl: [{allow: [Subscribe], topics: ['plant#']}]", "# must be the last level"),
    ("acl: [{allow: [Subscribe], topics: ['plant/line+/x']}]", "+ must stand alone in its level"),
    ("acl: [{allow: [Publish], topics: ['$share/g/x']}]", "clients cannot publish to $share"),
    ("acl: [{allow: [Publish, Subscribe], topics: ['$share/g/x']}]", "clients cannot publish to $share"),
    ("acl: [{allow: [Subscribe], topics: ['$share/g/x']}]", "leave out $share/<name>/"),
    ("acl: [{allow: [Publish], topics: ['a/{clientId}']}]", "needs spec.clientIdPattern"),
    ("clientIdPattern: 'a*', acl: [{allow: [Publish], topics: ['a/x{clientId}']}]", "{clientId} must stand alone"),
    ("acl: [{allow: [Publish], topics: ['a/x{username}']}]", "{username} must stand alone"),
    ("acl: [{allow: [Publish], topics: [\"a\\0b\"]}]", "a topic cannot contain NUL"),
    ("acl: [{topics: [a]}]", "either allow or deny"),
    ("acl: [{allow: [Publish], deny: [Publish], topics: [a]}]", "either allow or deny"),
    ("acl: [{allow: [Publish], topics: []}]", "should have at least 1 items"),
    ("acl: [{allow: [Publish], topics: [a], maxQos: 3}]", "less than or equal to 2"),
    ("acl: [{allow: [Subscribe], topics: [a], retain: true}]", "it needs Publish among the actions"),
    ("username: \"press\\n\"", "username must not contain a line break"),
    ("clientIdPattern: 'a/b'", "must not contain / + or #"),
    ("authentication: {password: {}}", "exactly one of generate: true and secretRef"),
    (
        "authentication: {password: {generate: true, secretRef: {name: s}}}",
        "exactly one of generate: true and secretRef",
    ),
];

fn api(client: &kube::Client, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("covey.io", "v1alpha1", kind));
    Api::namespaced_with(client.clone(), "default", &resource)
}

fn object(kind: &str, name: &str, spec: &str) -> DynamicObject {
    let yaml = format!("apiVersion: covey.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n");
    serde_saphyr::from_str(&yaml).unwrap()
}

fn strict() -> PostParams {
    PostParams { field_manager: Some("test".into()), ..PostParams::default() }
}

async fn refusal(client: &kube::Client, kind: &str, name: &str, spec: &str) -> String {
    let wanted = object(kind, name, spec);
    let resource = api(client, kind);
    // The API server refuses unknown fields only if the client asks for it, as kubectl does.
    let request = axum::http::Request::post(format!("{}?fieldValidation=Strict", resource.resource_url()))
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&wanted).unwrap())
        .unwrap();
    match client.request::<Value>(request).await {
        Ok(_) => format!("ACCEPTED: {spec}"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn bad_manifests_are_refused_with_a_sentence_and_good_ones_get_defaults() {
    let server = started().await;
    let client = &server.client;
    for (spec, sentence) in BAD_CLUSTERS {
        let error = refusal(client, "MqttCluster", "bad", spec).await;
        assert!(error.contains(sentence), "{spec}\n  wanted: {sentence}\n  got: {error}");
    }
    for (spec, sentence) in BAD_USERS {
        let error = refusal(client, "MqttUser", "bad", &format!("{{clusterRef: {{name: prod}}, {spec}}}")).await;
        assert!(error.contains(sentence), "{spec}\n  wanted: {sentence}\n  got: {error}");
    }
    for name in ["9lives", "a-name-that-is-much-longer-than-any-host-name-can-be"] {
        let error = refusal(client, "MqttCluster", name, "{}").await;
        assert!(error.contains("becomes part of host names"), "{name}: {error}");
    }
    defaults_are_shown(client).await;
    transitions_are_held(client).await;
}

/// `covey local` has no API server: [`validate`] has to refuse the same manifests. It does not see unknown fields.
#[test]
fn what_the_api_server_refuses_is_refused_without_it_too() {
    for (spec, sentence) in BAD_CLUSTERS.into_iter().filter(|(spec, _)| *spec != "{surprise: 1}") {
        let yaml = format!(
            "apiVersion: covey.io/v1alpha1\nkind: MqttCluster\nmetadata: {{name: bad, uid: u}}\nspec: {spec}\n"
        );
        let Ok(cluster) = serde_saphyr::from_str::<MqttCluster>(&yaml) else { continue };
        assert!(validate(&cluster, &ImageDefaults::default()).is_err(), "{spec} is accepted; wanted: {sentence}");
    }
}

async fn defaults_are_shown(client: &kube::Client) {
    let created =
        api(client, "MqttCluster").create(&strict(), &object("MqttCluster", "prod", "{replicas: 3}")).await.unwrap();
    let spec = &created.data["spec"];
    for (pointer, value) in [
        ("/listeners/0", json!({"name": "mqtt", "protocol": "mqtt", "port": 1883})),
        ("/sessions/expiryMax", json!("168h")),
        ("/sessions/queueFullPolicy", json!("RejectNewest")),
        ("/storage/deletionPolicy", json!("Retain")),
        ("/shards", json!(8)),
        ("/placement", json!({"spread": "Preferred", "topologyKey": "kubernetes.io/hostname"})),
        ("/acl/anonymous", json!(false)),
        ("/networkPolicy", json!({"enabled": true})),
    ] {
        assert_eq!(spec.pointer(pointer), Some(&value), "{pointer}");
    }
    let good = "{clusterRef: {name: prod}, clientIdPattern: 'a*', acl: [
        {allow: [Publish], topics: ['a/{clientId}/#', '{username}/b', '#', '+/+', '部门/消息'], maxQos: 1, retain: false},
        {deny: [Publish, Subscribe], topics: ['a/b']}]}";
    let user = api(client, "MqttUser").create(&strict(), &object("MqttUser", "good", good)).await.unwrap();
    assert_eq!(user.data["spec"]["authentication"]["password"]["generate"], json!(true));
    let own = "{clusterRef: {name: prod}, authentication: {password: {secretRef: {name: s}}}}";
    let user = api(client, "MqttUser").create(&strict(), &object("MqttUser", "own", own)).await.unwrap();
    assert_eq!(user.data["spec"]["authentication"]["password"], json!({"secretRef": {"name": "s", "key": "password"}}));
    let short = "{replicas: 1, sessions: {expiryMax: 1h}, mqtt: {maxPacketSize: 16Mi}, storage: {size: 64Mi}}";
    api(client, "MqttCluster").create(&strict(), &object("MqttCluster", "short", short)).await.unwrap();
    let image = "{replicas: 1, image: {repository: 'Registry.example.org:5000/a_b/c-d', tag: v1.0_x}, fence: {closeClientsAfter: 10m}}";
    api(client, "MqttCluster").create(&strict(), &object("MqttCluster", "image", image)).await.unwrap();
    let placed = "{replicas: 1, placement: {spread: Required, topologyKey: topology.kubernetes.io/zone, nodeSelector: {disk: ssd}, \
        tolerations: [{operator: Exists}, {key: mqtt, value: a, effect: NoExecute, tolerationSeconds: 60}], \
        affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: []}}}}";
    let placed = api(client, "MqttCluster").create(&strict(), &object("MqttCluster", "placed", placed)).await.unwrap();
    assert_eq!(placed.data["spec"]["placement"]["tolerations"][0], json!({"operator": "Exists"}));
    let affinity = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}});
    assert_eq!(placed.data["spec"]["placement"]["affinity"], affinity);
    let reached = "{replicas: 1, listeners: [{name: mqtt, port: 1883, from: [{podSelector: {matchLabels: {app: a}}, \
        namespaceSelector: {matchExpressions: [{key: b, operator: NotIn, values: [c]}]}}, {ipBlock: {cidr: 10.0.0.0/8, \
        except: [10.1.0.0/16]}}, {ipBlock: {cidr: 'fd00::/8', except: ['fd00:1::/32']}}]}]}";
    let reached =
        api(client, "MqttCluster").create(&strict(), &object("MqttCluster", "reached", reached)).await.unwrap();
    assert_eq!(reached.data["spec"]["listeners"][0]["from"][1]["ipBlock"]["except"], json!(["10.1.0.0/16"]));
    let numbers = "{replicas: 1, resources: {requests: {cpu: 2, memory: 1073741824}}}";
    api(client, "MqttCluster").create(&strict(), &object("MqttCluster", "numbers", numbers)).await.unwrap();
}

async fn transitions_are_held(client: &kube::Client) {
    let clusters = api(client, "MqttCluster");
    let patch = |spec: Value| {
        let clusters = clusters.clone();
        async move {
            let patch = Patch::Merge(json!({"spec": spec}));
            clusters.patch("prod", &PatchParams::default(), &patch).await.map_err(|error| error.to_string())
        }
    };
    for (spec, sentence) in [
        (json!({"replicas": 1}), "fewer nodes cannot hold three copies"),
        (json!({"shards": 16}), "shards cannot change after creation"),
    ] {
        let error = patch(spec.clone()).await.unwrap_err();
        assert!(error.contains(sentence), "{spec}\n  wanted: {sentence}\n  got: {error}");
    }
    storage_can_change_until_the_cluster_is_formed(&clusters).await;
    patch(json!({"replicas": 5})).await.unwrap();
    let scale = clusters.get_scale("prod").await.unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(5));
    patch(json!({"replicas": 3})).await.unwrap();
    let users = api(client, "MqttUser");
    let rename = Patch::Merge(json!({"spec": {"username": "other"}}));
    let error = users.patch("good", &PatchParams::default(), &rename).await.unwrap_err().to_string();
    assert!(error.contains("username cannot change"), "{error}");
    let moved = Patch::Merge(json!({"spec": {"clusterRef": {"name": "other"}}}));
    let error = users.patch("good", &PatchParams::default(), &moved).await.unwrap_err().to_string();
    assert!(error.contains("clusterRef cannot change"), "{error}");
}

async fn storage_can_change_until_the_cluster_is_formed(clusters: &Api<DynamicObject>) {
    let set = async |storage: Value| {
        let patch = Patch::Merge(json!({"spec": {"storage": storage}}));
        clusters.patch("prod", &PatchParams::default(), &patch).await.map_err(|error| error.to_string())
    };
    set(json!({"size": "20Gi", "storageClassName": "fsat"})).await.unwrap();
    set(json!({"storageClassName": "fast"})).await.unwrap();
    let status = json!({"replicas": 0, "readyReplicas": 0, "ready": "", "selector": "", "alertsFiring": 0, "alerts": [],
        "nodes": [], "conditions": []});
    let write = async |status: &Value| {
        clusters.patch_status("prod", &PatchParams::default(), &Patch::Merge(json!({"status": status}))).await.unwrap();
    };
    write(&status).await;
    set(json!({"size": "30Gi"})).await.unwrap();
    write(&json!({"clusterId": "3f0e"})).await;
    for storage in
        [json!({"size": "20Gi"}), json!({"storageClassName": null}), json!({"accessMode": "ReadWriteOncePod"})]
    {
        let error = set(storage.clone()).await.unwrap_err();
        assert!(error.contains("cannot change once the cluster is formed"), "{storage}: {error}");
    }
    set(json!({"deletionPolicy": "Delete"})).await.unwrap();
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn the_examples_are_accepted_as_they_are() {
    let server = started().await;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut accepted = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let documents: Vec<DynamicObject> = serde_saphyr::from_multiple(&text).unwrap();
        for document in documents {
            let types = document.types.clone().unwrap();
            if types.api_version != "covey.io/v1alpha1" {
                continue;
            }
            let resource = api(&server.client, &types.kind);
            let request = axum::http::Request::post(format!("{}?fieldValidation=Strict", resource.resource_url()))
                .header("content-type", "application/json")
                .body(serde_json::to_vec(&document).unwrap())
                .unwrap();
            server.client.request::<Value>(request).await.unwrap();
            accepted += 1;
        }
    }
    assert!(accepted >= 3, "only {accepted} documents were found");
}
