//! Access changes are applied although an invalid spec, a pause or an unusable authority stops everything else.

use std::sync::Arc;

use covey_operator::cluster::reconcile::reconcile;
use covey_operator::context::Context;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use super::passes::{condition, context, create_cluster, create_user, document, pass, user_condition};
use super::{broker, clusters, config_maps, started, until, users};

/// A quantity that the schema accepts although it exceeds `u64`.
const TOO_LARGE: &str = "99999999999Ti";

async fn set(client: &Client, spec: Value) {
    let patch = Patch::Merge(json!({"spec": spec}));
    clusters(client).patch("prod", &PatchParams::default(), &patch).await.unwrap();
}

/// Returns the versions of the children that an access change must not affect.
async fn children(client: &Client) -> Vec<Option<String>> {
    let namespace = "default";
    vec![
        config_maps(client, namespace).await[0].resource_version(),
        Api::<StatefulSet>::namespaced(client.clone(), namespace).get("prod").await.unwrap().resource_version(),
        Api::<PodDisruptionBudget>::namespaced(client.clone(), namespace).get("prod").await.unwrap().resource_version(),
    ]
}

/// Forms a cluster with one node and the users `worker` and `leaver`.
async fn formed(client: &Client) -> (Arc<Context>, broker::Node) {
    create_cluster(client, json!({"replicas": 1})).await;
    create_user(client, "worker", json!({})).await;
    create_user(client, "leaver", json!({})).await;
    let context = context(client);
    pass(&context).await;
    let node = broker::start(client, 0, "").await;
    for _ in 0..3 {
        pass(&context).await;
    }
    assert_eq!(condition(client, "Ready").await.reason, "AllNodesReady");
    assert_eq!(node.state.lock().users, ["leaver", "worker"]);
    (context, node)
}

/// Deletes one user, creates another, and expects both changes on the node after two passes.
async fn access_goes_on(client: &Client, context: &Arc<Context>, node: &broker::Node, leaver: &str, newcomer: &str) {
    let before = children(client).await;
    users(client).delete(leaver, &DeleteParams::default()).await.unwrap();
    create_user(client, newcomer, json!({})).await;
    pass(context).await;
    pass(context).await;
    let mut wanted = vec![newcomer, "worker"];
    wanted.sort_unstable();
    assert_eq!(node.state.lock().users, wanted);
    let recorded = document(client).await.revision;
    assert_eq!(node.state.lock().access.revision, recorded);
    assert_eq!(user_condition(client, newcomer).await.reason, "Synced");
    assert_eq!(user_condition(client, "worker").await.reason, "Synced");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    assert!(secrets.get_opt(&format!("{newcomer}-mqtt")).await.unwrap().is_some());
    assert_eq!(children(client).await, before, "nothing but access was changed");
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn an_invalid_spec_or_a_pause_holds_up_no_access_change() {
    let server = started().await;
    let client = &server.client;
    let (first, node) = formed(client).await;

    set(client, json!({"sessions": {"maxQueuedBytes": TOO_LARGE}})).await;
    access_goes_on(client, &first, &node, "leaver", "newcomer").await;
    for type_ in ["Ready", "Degraded"] {
        let condition = condition(client, type_).await;
        assert_eq!(condition.reason, "Invalid", "{type_}");
        assert!(condition.message.contains("sessions.maxQueuedBytes"), "{}", condition.message);
    }
    assert_eq!(condition(client, "Ready").await.status, "False");
    assert_eq!(condition(client, "AclSynced").await.reason, "AllNodesEnforce");
    let metrics = String::from_utf8(first.metrics.render().unwrap()).unwrap();
    let series =
        r#"mqtt_operator_cluster_condition{mqtt_cluster="prod",namespace="default",status="False",type="Ready"} 1"#;
    assert!(metrics.contains(series), "{metrics}");
    // A new operator has neither credentials nor a document in its memory.
    let restarted = context(client);
    access_goes_on(client, &restarted, &node, "newcomer", "later").await;

    set(client, json!({"sessions": {"maxQueuedBytes": "64Mi"}})).await;
    pass(&restarted).await;
    assert_eq!(condition(client, "Ready").await.reason, "AllNodesReady");
    assert_eq!(condition(client, "Degraded").await.status, "False");

    set(client, json!({"paused": true})).await;
    access_goes_on(client, &restarted, &node, "later", "last").await;
    assert_eq!(condition(client, "Paused").await.status, "True");
    assert_eq!(condition(client, "Ready").await.reason, "AllNodesReady");
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn an_unusable_authority_holds_up_no_access_change() {
    let server = started().await;
    let client = &server.client;
    let (context, node) = formed(client).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let good = secrets.get("prod-peer-ca").await.unwrap().data.unwrap();
    let patch = |data: Value| {
        let secrets = secrets.clone();
        async move {
            secrets.patch("prod-peer-ca", &PatchParams::default(), &Patch::Merge(json!({"data": data}))).await.unwrap();
        }
    };
    patch(json!({"tls.key": k8s_openapi::ByteString(b"not a key".to_vec())})).await;
    users(client).delete("leaver", &DeleteParams::default()).await.unwrap();
    for _ in 0..2 {
        let error = Box::pin(reconcile(&context, "default", "prod")).await.unwrap_err().to_string();
        assert!(error.contains("prod-peer-ca"), "{error}");
    }
    assert_eq!(document(client).await.users.len(), 1, "the record that brokers mount has the revocation");
    assert_eq!(node.state.lock().users, ["worker"], "the node answers the credentials that the operator has");
    let ready = condition(client, "Ready").await;
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "ApplyFailed"));
    assert!(ready.message.contains("prod-peer-ca"), "{}", ready.message);
    patch(json!(good)).await;
    pass(&context).await;
    assert_eq!(condition(client, "Ready").await.reason, "AllNodesReady");
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_password_that_ends_in_a_line_break_is_refused_and_the_last_good_one_stays() {
    let server = started().await;
    let client = &server.client;
    create_cluster(client, json!({"replicas": 1})).await;
    create_user(
        client,
        "press",
        json!({"authentication": {"password": {"secretRef": {"name": "pin", "key": "code"}}}}),
    )
    .await;
    let context = context(client);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let write = async |password: &str| {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pin", "labels": {"covey.io/user": "press"}},
            "data": {"code": k8s_openapi::ByteString(password.as_bytes().to_vec())}
        });
        secrets.patch("pin", &PatchParams::apply("test").force(), &Patch::Apply(secret)).await.unwrap();
        pass(&context).await;
        let mut users = document(client).await.users;
        users.retain(|user| user.name == "press");
        (users, user_condition(client, "press").await)
    };
    let (users, condition) = write("hunter2\n").await;
    assert_eq!((users.len(), condition.status.as_str(), condition.reason.as_str()), (0, "False", "InvalidPassword"));
    assert!(condition.message.contains("key code of Secret pin ends in a line break"), "{}", condition.message);
    let (good, condition) = write("hunter2").await;
    assert_eq!((good.len(), condition.reason.as_str()), (1, "NodesNotSynced"));
    let (kept, condition) = write("hunter3\n").await;
    assert_eq!(kept, good, "the last good password stays in force");
    assert_eq!(condition.reason, "InvalidPassword");
    assert!(condition.message.contains("the last known password stays in force"), "{}", condition.message);
}

/// Adds a value to the actions of rules, as a later version may do before it is downgraded.
async fn widen_the_schema(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut definition = serde_json::to_value(definitions.get("mqttusers.covey.io").await.unwrap()).unwrap();
    let actions =
        "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/acl/items/properties/allow/items/enum";
    definition.pointer_mut(actions).unwrap().as_array_mut().unwrap().push(json!("Observe"));
    let definition = serde_json::from_value(definition).unwrap();
    definitions.replace("mqttusers.covey.io", &PostParams::default(), &definition).await.unwrap();
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_user_that_cannot_be_read_keeps_its_access_and_holds_up_no_other() {
    let server = started().await;
    let client = &server.client;
    let (context, node) = formed(client).await;
    let entry = async |name: &str| document(client).await.users.into_iter().find(|user| user.name == name);
    let before = entry("worker").await;
    widen_the_schema(client).await;
    let rules = Patch::Merge(json!({"spec": {"acl": [{"allow": ["Observe"], "topics": ["a"]}]}}));
    let users_as_json: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), "default", &ApiResource::erase::<covey_crds::MqttUser>(&()));
    until("the new schema", async || users_as_json.patch("worker", &PatchParams::default(), &rules).await.is_ok())
        .await;
    users(client).delete("leaver", &DeleteParams::default()).await.unwrap();
    pass(&context).await;
    pass(&context).await;
    assert_eq!(node.state.lock().users, ["worker"], "the revocation of another user");
    assert!(before.is_some() && entry("worker").await == before);
}
