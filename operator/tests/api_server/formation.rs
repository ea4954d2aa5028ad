//! Formation, access and readiness of users with fake nodes, and the whole operator with its controllers.

use std::time::Duration;

use covey_operator::cluster::validate::ImageDefaults;
use covey_operator::{Options, run_with};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, DeleteParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::passes::{condition, context, create_cluster, create_user, document, pass, user_condition};
use super::{broker, clusters, rights, started, until, users};

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_cluster_is_formed_once_and_users_are_ready_when_every_node_enforces_them() {
    let server = started().await;
    let client = &server.client;
    create_cluster(client, json!({"replicas": 3})).await;
    create_user(client, "worker", json!({"acl": [{"allow": ["Subscribe"], "topics": ["jobs/#"]}]})).await;
    let context = context(client);
    pass(&context).await;
    assert_eq!(condition(client, "Ready").await.reason, "Forming");

    let first = [broker::start(client, 0, "").await, broker::start(client, 1, "").await];
    pass(&context).await;
    let status = clusters(client).get("prod").await.unwrap().status.unwrap();
    assert_eq!((status.formation, status.cluster_id), (None, None), "nothing is written before all have answered");
    assert_eq!(user_condition(client, "worker").await.reason, "NodesNotSynced");

    let third = broker::start(client, 2, "").await;
    pass(&context).await;
    let formation = clusters(client).get("prod").await.unwrap().status.unwrap().formation.unwrap();
    assert_eq!(formation.members.len(), 3);
    for node in first.iter().chain([&third]) {
        let state = node.state.lock().clone();
        assert_eq!(state.initialized.len(), 1);
        assert_eq!(state.initialized[0].cluster_id, formation.cluster_id);
        assert_eq!(state.access.revision, document(client).await.revision);
    }
    pass(&context).await;
    pass(&context).await;
    let status = clusters(client).get("prod").await.unwrap().status.unwrap();
    assert_eq!(status.cluster_id.as_deref(), Some(formation.cluster_id.as_str()));
    assert_eq!((status.ready.as_str(), condition(client, "Ready").await.reason.as_str()), ("3/3", "AllNodesReady"));
    assert_eq!(condition(client, "AclSynced").await.reason, "AllNodesEnforce");
    assert!(first.iter().all(|node| node.state.lock().initialized.len() == 1), "told once");
    let worker = users(client).get("worker").await.unwrap().status.unwrap();
    assert_eq!((worker.conditions[0].reason.as_str(), worker.synced_nodes.as_deref()), ("Synced", Some("3/3")));
    a_name_belongs_to_the_oldest(client, &context).await;
    another_disk_stops_everything(client, &context, &third).await;
}

async fn a_name_belongs_to_the_oldest(client: &Client, context: &std::sync::Arc<covey_operator::context::Context>) {
    tokio::time::sleep(Duration::from_millis(1100)).await;
    create_user(client, "impostor", json!({"username": "worker"})).await;
    pass(context).await;
    assert_eq!(user_condition(client, "impostor").await.reason, "Conflict");
    assert_eq!(user_condition(client, "worker").await.reason, "Synced");
    users(client).delete("impostor", &DeleteParams::default()).await.unwrap();
}

async fn another_disk_stops_everything(
    client: &Client,
    context: &std::sync::Arc<covey_operator::context::Context>,
    node: &broker::Node,
) {
    let before = node.state.lock().cluster_id.clone();
    node.state.lock().cluster_id = "of-another-cluster".into();
    pass(context).await;
    assert_eq!(condition(client, "Ready").await.reason, "ForeignDisk");
    assert_eq!(node.state.lock().initialized.len(), 1);
    node.state.lock().cluster_id = before;
    pass(context).await;
    assert_eq!(condition(client, "Ready").await.reason, "AllNodesReady");
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn disks_that_agree_are_adopted() {
    let server = started().await;
    let client = &server.client;
    create_cluster(client, json!({"replicas": 1})).await;
    let context = context(client);
    pass(&context).await;
    let node = broker::start(client, 0, "older").await;
    pass(&context).await;
    let status = clusters(client).get("prod").await.unwrap().status.unwrap();
    assert_eq!(status.cluster_id.as_deref(), Some("older"));
    assert!(node.state.lock().initialized.is_empty());
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn the_operator_runs_by_itself() {
    let server = started().await;
    let client = &server.client;
    create_cluster(client, json!({"replicas": 1})).await;
    let shutdown = CancellationToken::new();
    let options = Options {
        http: "127.0.0.1:0".parse().unwrap(),
        instance: Some("test".into()),
        image: ImageDefaults { image: "registry.example/covey:test".into(), pull_secrets: vec!["registry".into()] },
        ..Options::default()
    };
    let operator = tokio::spawn(run_with(rights::operator(client), options, shutdown.clone()));
    until("the certificate", async || {
        let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(client.clone(), "default");
        secrets.get_opt("prod-peer-tls").await.unwrap().is_some()
    })
    .await;
    let node = broker::start(client, 0, "").await;
    until("Ready", async || {
        let status = clusters(client).get("prod").await.unwrap().status.unwrap_or_default();
        status.conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True")
    })
    .await;
    create_user(client, "late", json!({})).await;
    until("the late user", async || {
        let status = users(client).get("late").await.unwrap().status.unwrap_or_default();
        status.conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True")
    })
    .await;
    assert_eq!(node.state.lock().access.users, 1);
    let brokers: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let pod = brokers.get("prod").await.unwrap().spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.containers[0].image.as_deref(), Some("registry.example/covey:test"), "the operator's default image");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    assert!(pods.get_opt("prod-0").await.unwrap().is_some(), "a pod that no controller replaced was left alone");
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(20), operator).await.unwrap().unwrap().unwrap();
}
