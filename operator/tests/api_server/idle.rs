//! What many clusters cost that do not change: requests to the API server, counted in its audit log.

use std::path::Path;
use std::time::Duration;

use covey_operator::{Options, run_with};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{broker, clusters, rights, started, until, users};

const CLUSTERS: usize = 100;
/// Requests a second that an operator with [`CLUSTERS`] idle clusters may make.
const RATE: f64 = 5.0;
const WINDOW: Duration = Duration::from_secs(20);

fn name(number: usize) -> String {
    format!("idle-{number}")
}

/// Returns the requests of the operator in the audit log, without watches, as verb and resource.
fn requests(folder: &Path) -> Vec<(String, String)> {
    let log = std::fs::read_to_string(folder.join("audit.log")).unwrap_or_default();
    let text = |event: &Value, path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|event| text(event, "/impersonatedUser/username") == rights::OPERATOR)
        .map(|event| (text(&event, "/verb"), text(&event, "/objectRef/resource")))
        .filter(|(verb, _)| verb != "watch")
        .collect()
}

/// Waits until the operator has written nothing for 5 s, which is one pass: it has found every cluster settled and written
/// the last statuses.
async fn await_no_writes(folder: &Path) {
    let writes = || requests(folder).iter().filter(|(verb, _)| !["get", "list"].contains(&verb.as_str())).count();
    let (started, mut last) = (Instant::now(), writes());
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let now = writes();
        if now == last {
            return;
        }
        assert!(started.elapsed() < Duration::from_mins(1), "the operator goes on writing");
        last = now;
    }
}

/// Writes the status that the StatefulSet controller writes when every pod runs the current template.
async fn settle(client: &Client) {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    for set in sets.list(&ListParams::default()).await.unwrap() {
        let name = set.name_any();
        let label = json!({"metadata": {"labels": {"controller-revision-hash": "current"}}});
        pods.patch(&format!("{name}-0"), &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
        let status = json!({"status": {"replicas": 1, "observedGeneration": 99, "updateRevision": "current"}});
        sets.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }
}

async fn ready(client: &Client) -> usize {
    let is_settled = |type_: &str, reason: &str| matches!((type_, reason), ("Ready", "AllNodesReady"));
    let all = clusters(client).list(&ListParams::default()).await.unwrap();
    let conditions = |cluster: &covey_crds::MqttCluster| cluster.status.clone().unwrap_or_default().conditions;
    all.iter().filter(|cluster| conditions(cluster).iter().any(|one| is_settled(&one.type_, &one.reason))).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_hundred_idle_clusters_cost_few_requests_and_a_change_is_seen_at_once() {
    let server = started().await;
    let client = &server.client;
    for number in 0..CLUSTERS {
        let cluster = json!({"metadata": {"name": name(number)}, "spec": {"replicas": 1}});
        clusters(client).create(&PostParams::default(), &serde_json::from_value(cluster).unwrap()).await.unwrap();
    }
    let shutdown = CancellationToken::new();
    let options = Options { http: "127.0.0.1:0".parse().unwrap(), instance: Some("test".into()), ..Options::default() };
    let operator = tokio::spawn(run_with(rights::operator(client), options, shutdown.clone()));
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let all = ListParams::default();
    // The first passes make fifteen objects for each cluster.
    let started = Instant::now();
    while sets.list(&all).await.unwrap().items.len() < CLUSTERS {
        assert!(started.elapsed() < Duration::from_mins(4), "the children of {CLUSTERS} clusters did not come");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mut nodes = Vec::new();
    for number in 0..CLUSTERS {
        let ip = format!("127.78.{}.{}", number / 100, number % 100 + 1);
        nodes.push(broker::start_in(client, &name(number), 0, "", &ip).await);
    }
    until("every cluster is ready", async || ready(client).await == CLUSTERS).await;
    settle(client).await;

    await_no_writes(server.folder()).await;
    let before = requests(server.folder()).len();
    tokio::time::sleep(WINDOW).await;
    let made = requests(server.folder()).split_off(before);
    let rate = f64::from(u32::try_from(made.len()).unwrap()) / WINDOW.as_secs_f64();
    println!("{CLUSTERS} idle clusters: {rate:.2} requests a second");
    assert!(rate < RATE, "{rate} requests a second: {:?}", &made[..made.len().min(40)]);

    changes_are_seen(client, &nodes[7]).await;
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(20), operator).await.unwrap().unwrap().unwrap();
}

/// Changes objects of an idle cluster, whose inputs the operator has kept.
async fn changes_are_seen(client: &Client, node: &broker::Node) {
    let user = json!({"metadata": {"name": "late"}, "spec": {"clusterRef": {"name": name(7)}}});
    users(client).create(&PostParams::default(), &serde_json::from_value(user).unwrap()).await.unwrap();
    until("a new user is enforced", async || node.state.lock().access.users == 1).await;
    users(client).delete("late", &DeleteParams::default()).await.unwrap();
    until("a deleted user is gone", async || node.state.lock().access.users == 0).await;
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    services.delete(&name(7), &DeleteParams::default()).await.unwrap();
    until("a deleted Service comes back", async || services.get_opt(&name(7)).await.unwrap().is_some()).await;
    let deleted = format!("{}-access", name(7));
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(client.clone(), "default");
    secrets.delete(&deleted, &DeleteParams::default()).await.unwrap();
    until("a deleted access Secret comes back", async || secrets.get_opt(&deleted).await.unwrap().is_some()).await;
    let labels = Patch::Merge(json!({"spec": {"paused": true}}));
    clusters(client).patch(&name(7), &PatchParams::default(), &labels).await.unwrap();
    until("a pause is reported", async || {
        let status = clusters(client).get(&name(7)).await.unwrap().status.unwrap();
        status.conditions.iter().any(|one| one.type_ == "Paused" && one.status == "True")
    })
    .await;
}
