//! The NetworkPolicy of a cluster follows the manifest, is deleted when it is not wanted, and one of others is kept.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use super::passes::{context, create_cluster, pass};
use super::{clusters, started};

const NAME: &str = "prod-broker";

fn policies(client: &Client) -> Api<NetworkPolicy> {
    Api::namespaced(client.clone(), "default")
}

async fn change(client: &Client, spec: Value) {
    let patch = Patch::Merge(json!({"spec": spec}));
    clusters(client).patch("prod", &PatchParams::default(), &patch).await.unwrap();
}

/// Returns who may connect to a port; null if anyone.
async fn admitted(client: &Client, port: u16) -> Value {
    let policy = serde_json::to_value(policies(client).get(NAME).await.unwrap()).unwrap();
    let rules = policy["spec"]["ingress"].as_array().unwrap();
    let rule = rules.iter().find(|rule| rule["ports"] == json!([{"port": port, "protocol": "TCP"}]));
    rule.unwrap_or_else(|| panic!("no rule for {port}: {policy}"))["from"].clone()
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_network_policy_follows_the_manifest() {
    let server = started().await;
    let client = &server.client;
    create_cluster(client, json!({"replicas": 1})).await;
    let context = context(client);
    pass(&context).await;
    let brokers = json!({"app.kubernetes.io/component": "broker", "covey.io/cluster": "prod"});
    let operator = json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "covey-system"}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "covey-operator"}},
    });
    let spec = serde_json::to_value(policies(client).get(NAME).await.unwrap().spec).unwrap();
    assert_eq!(spec["podSelector"]["matchLabels"], brokers);
    assert_eq!(spec["policyTypes"], json!(["Ingress"]));
    assert_eq!(admitted(client, 1883).await, Value::Null);
    assert_eq!(admitted(client, 7883).await, json!([{"podSelector": {"matchLabels": brokers}}]));
    assert_eq!(admitted(client, 7884).await, json!([operator]));
    assert_eq!(admitted(client, 9464).await, Value::Null);

    let press = json!([{"podSelector": {"matchLabels": {"app": "press"}}}]);
    let metrics = json!({"namespaceSelector": {"matchLabels": {"team": "metrics"}}});
    let listener = json!({"name": "mqtt", "port": 1883, "from": press});
    change(client, json!({"listeners": [listener], "networkPolicy": {"monitoringFrom": [metrics]}})).await;
    pass(&context).await;
    assert_eq!(admitted(client, 1883).await, press);
    assert_eq!(admitted(client, 9464).await, json!([metrics, operator]));

    // Somebody opens the port: the next pass closes it again.
    let open = Patch::Merge(json!({"spec": {"ingress": [{}]}}));
    policies(client).patch(NAME, &PatchParams::default(), &open).await.unwrap();
    pass(&context).await;
    assert_eq!(admitted(client, 1883).await, press);

    change(client, json!({"listeners": null, "networkPolicy": {"enabled": false, "monitoringFrom": null}})).await;
    pass(&context).await;
    assert!(policies(client).get_opt(NAME).await.unwrap().is_none(), "it is not wanted");
    pass(&context).await;
    one_of_others_is_kept(client, &context).await;
}

async fn one_of_others_is_kept(client: &Client, context: &std::sync::Arc<covey_operator::context::Context>) {
    let theirs = json!({"metadata": {"name": NAME}, "spec": {"podSelector": {"matchLabels": {"app": "mosquitto"}}}});
    let theirs = serde_json::from_value(theirs).unwrap();
    let before = policies(client).create(&PostParams::default(), &theirs).await.unwrap();
    pass(context).await;
    assert_eq!(
        policies(client).get(NAME).await.unwrap(),
        before,
        "without a wish for one, the name is nobody's concern"
    );
    change(client, json!({"networkPolicy": {"enabled": true}})).await;
    let error = Box::pin(covey_operator::cluster::reconcile::reconcile(context, "default", "prod")).await.unwrap_err();
    assert!(error.to_string().contains("NetworkPolicy prod-broker exists and does not belong to this"), "{error}");
    assert_eq!(policies(client).get(NAME).await.unwrap(), before);
    policies(client).delete(NAME, &DeleteParams::default()).await.unwrap();
    pass(context).await;
    assert!(!policies(client).get(NAME).await.unwrap().owner_references().is_empty());
}
