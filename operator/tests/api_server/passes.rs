//! Passes of the reconcile against a real API server, without nodes: children, ownership, idempotence.

use std::collections::BTreeMap;
use std::sync::Arc;

use covey_contract::access::{Document, INDEX_KEY, Index};
use covey_operator::Options;
use covey_operator::cluster::reconcile::reconcile;
use covey_operator::context::Context;
use covey_operator::metrics::Metrics;
use covey_operator::options::OperatorPods;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt as _};
use serde_json::json;

use super::{clusters, config_maps, rights, started, users};

/// Returns the context of an operator that has just started, with the permissions that the chart grants.
pub(crate) fn context(client: &Client) -> Arc<Context> {
    context_with(rights::operator(client))
}

/// Returns the context of an operator that has just started, with the permissions of `client`.
pub(crate) fn context_with(client: Client) -> Arc<Context> {
    // As the chart runs it.
    let labels = [("app.kubernetes.io/name".into(), "covey-operator".into())].into();
    let pods = Some(OperatorPods { namespace: "covey-system".into(), labels });
    let options = Options { instance: Some("test".into()), pods, ..Options::default() };
    Arc::new(Context::new(client, Metrics::new("test").unwrap(), &options))
}

pub(crate) async fn create_cluster(client: &Client, spec: serde_json::Value) {
    let cluster = serde_json::from_value(json!({"metadata": {"name": "prod"}, "spec": spec})).unwrap();
    clusters(client).create(&PostParams::default(), &cluster).await.unwrap();
}

pub(crate) async fn create_user(client: &Client, name: &str, spec: serde_json::Value) {
    let mut spec = spec;
    spec["clusterRef"] = json!({"name": "prod"});
    let user = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
    users(client).create(&PostParams::default(), &user).await.unwrap();
}

pub(crate) async fn pass(context: &Arc<Context>) {
    Box::pin(reconcile(context, "default", "prod")).await.unwrap();
}

/// Returns a condition of cluster `prod`.
pub(crate) async fn condition(client: &Client, type_: &str) -> Condition {
    let status = clusters(client).get("prod").await.unwrap().status.unwrap();
    status.conditions.into_iter().find(|condition| condition.type_ == type_).unwrap()
}

/// Returns the first condition of a user, which is Ready.
pub(crate) async fn user_condition(client: &Client, user: &str) -> Condition {
    let status = users(client).get(user).await.unwrap().status;
    status.unwrap_or_else(|| panic!("{user} has no status")).conditions[0].clone()
}

pub(crate) async fn document(client: &Client) -> Document {
    let secret = Api::<Secret>::namespaced(client.clone(), "default").get("prod-access").await.unwrap();
    let data = secret.data.unwrap();
    let index = Index::parse(&data[INDEX_KEY].0).unwrap();
    Document::from_files(&index, |key| data.get(key).map(|bytes| bytes.0.clone())).unwrap()
}

async fn versions<K>(client: &Client, all: &mut BTreeMap<String, String>)
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    for object in Api::<K>::namespaced(client.clone(), "default").list(&ListParams::default()).await.unwrap() {
        let owners = object.owner_references();
        let ours = owners.iter().any(|owner| owner.api_version == "covey.io/v1alpha1") || K::group(&()) == "covey.io";
        if ours {
            let key = format!("{}/{}", K::kind(&()), object.name_any());
            all.insert(key, object.resource_version().unwrap());
        }
    }
}

async fn everything(client: &Client) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    versions::<StatefulSet>(client, &mut all).await;
    versions::<Service>(client, &mut all).await;
    versions::<ConfigMap>(client, &mut all).await;
    versions::<Secret>(client, &mut all).await;
    versions::<ServiceAccount>(client, &mut all).await;
    versions::<PodDisruptionBudget>(client, &mut all).await;
    versions::<NetworkPolicy>(client, &mut all).await;
    versions::<covey_crds::MqttCluster>(client, &mut all).await;
    versions::<covey_crds::MqttUser>(client, &mut all).await;
    all
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn ten_passes_change_no_resource_version() {
    let server = started().await;
    let client = &server.client;
    create_cluster(client, json!({"replicas": 3})).await;
    create_user(client, "worker", json!({"acl": [{"allow": ["Subscribe"], "topics": ["jobs/#"]}]})).await;
    let first = context(client);
    pass(&first).await;
    pass(&first).await;
    let settled = everything(client).await;
    let names: Vec<&str> = settled.keys().map(String::as_str).collect();
    let config_map = format!("ConfigMap/{}", config_maps(client, "default").await[0].name_any());
    assert_eq!(
        names,
        [
            config_map.as_str(),
            "MqttCluster/prod",
            "MqttUser/worker",
            "NetworkPolicy/prod-broker",
            "PodDisruptionBudget/prod",
            "Secret/prod-access",
            "Secret/prod-peer-ca",
            "Secret/prod-peer-tls",
            "Secret/worker-mqtt",
            "Service/prod",
            "Service/prod-peers",
            "ServiceAccount/prod-broker",
            "StatefulSet/prod",
        ]
    );
    // Times in a status have a resolution of one second, so a changed time would go unnoticed within one second.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    for _ in 0..5 {
        pass(&first).await;
    }
    // A restarted operator has an empty memory and must not change anything either.
    let restarted = context(client);
    for _ in 0..5 {
        pass(&restarted).await;
    }
    assert_eq!(everything(client).await, settled);
    drift_is_undone(client, &restarted).await;
    a_tampered_record_is_overtaken(client, &restarted).await;
    secrets_of_people_are_read_with_consent(client, &restarted).await;
    a_user_without_a_cluster_says_so(client, &restarted).await;
}

async fn drift_is_undone(client: &Client, context: &Arc<Context>) {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let edit = Patch::Merge(json!({"spec": {"replicas": 1}}));
    sets.patch("prod", &PatchParams { field_manager: Some("somebody".into()), ..PatchParams::default() }, &edit)
        .await
        .unwrap();
    pass(context).await;
    assert_eq!(sets.get("prod").await.unwrap().spec.unwrap().replicas, Some(3));
    let metrics = String::from_utf8(context.metrics.render().unwrap()).unwrap();
    assert!(
        metrics.contains(r#"mqtt_operator_drift_corrected_total{field_manager="somebody",kind="StatefulSet""#),
        "{metrics}"
    );
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    services.delete("prod", &DeleteParams::default()).await.unwrap();
    pass(context).await;
    assert!(services.get_opt("prod").await.unwrap().is_some());
}

async fn a_tampered_record_is_overtaken(client: &Client, context: &Arc<Context>) {
    let before = document(client).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let broken = ByteString(br#"{"format":1,"revision":900,"parts":{"users-0.json":"00"}}"#.to_vec());
    let patch = Patch::Merge(json!({"data": {"index.json": broken}}));
    secrets.patch("prod-access", &PatchParams::default(), &patch).await.unwrap();
    pass(context).await;
    let after = document(client).await;
    assert_eq!(after.revision, 901);
    assert_eq!(after.users, before.users, "verifiers survive where the operator remembers them");
}

async fn secrets_of_people_are_read_with_consent(client: &Client, context: &Arc<Context>) {
    create_user(client, "press", json!({"authentication": {"password": {"secretRef": {"name": "press-pin"}}}})).await;
    pass(context).await;
    let condition = |user: covey_crds::MqttUser| user.status.unwrap().conditions[0].clone();
    let waiting = condition(users(client).get("press").await.unwrap());
    assert_eq!(waiting.reason, "SecretMissing");
    assert!(waiting.message.contains("lacks the label covey.io/user: press"), "{}", waiting.message);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let mut secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": "press-pin"}, "stringData": {"password": "hunter2"}
    }))
    .unwrap();
    secrets.create(&PostParams::default(), &secret).await.unwrap();
    pass(context).await;
    assert!(document(client).await.users.iter().all(|user| user.name != "press"), "no label, no consent");
    secret.metadata.labels = Some(BTreeMap::from([("covey.io/user".into(), "press".into())]));
    secrets.patch("press-pin", &PatchParams::apply("test").force(), &Patch::Apply(json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "press-pin", "labels": {"covey.io/user": "press"}}
    }))).await.unwrap();
    pass(context).await;
    let with = document(client).await;
    let user = with.users.iter().find(|user| user.name == "press").unwrap();
    assert!(
        matches!(&user.verifiers[0], covey_contract::access::Verifier::Argon2id(hash) if hash.starts_with("$argon2id$"))
    );
    pass(context).await;
    assert_eq!(document(client).await, with, "the same source keeps its verifier");
    users(client).delete("press", &DeleteParams::default()).await.unwrap();
    pass(context).await;
    let without = document(client).await;
    assert!(without.users.iter().all(|user| user.name != "press"));
    assert_eq!(without.revision, with.revision + 1);
}

async fn a_user_without_a_cluster_says_so(client: &Client, context: &Arc<Context>) {
    let lost = serde_json::from_value(json!({
        "metadata": {"name": "lost"}, "spec": {"clusterRef": {"name": "nowhere"}}
    }))
    .unwrap();
    let lost = users(client).create(&PostParams::default(), &lost).await.unwrap();
    covey_operator::user::orphan::reconcile(&lost, context).await.unwrap();
    let status = users(client).get("lost").await.unwrap().status.unwrap();
    assert_eq!(status.conditions[0].reason, "ClusterNotFound");
}
