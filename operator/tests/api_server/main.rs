//! Tests of the operator against a real API server. They are ignored by default because they need `KUBERNETES_BIN`, a
//! folder with `etcd`, `kube-apiserver` and `helm`:
//!
//! ```text
//! KUBERNETES_BIN=DIR cargo test -p covey-operator --test api_server -- --include-ignored
//! ```

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod access;
mod broker;
mod configs;
mod formation;
mod idle;
mod manifests;
mod names;
mod network;
mod passes;
mod rights;
mod rollouts;
mod secrets;
mod server;
mod storage;

use covey_crds::{MqttCluster, MqttUser};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ListParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, ResourceExt as _};

use server::Server;

/// Starts an API server with the CRDs and the operator's ClusterRole installed.
async fn started() -> Server {
    let binaries = server::binaries();
    let server = Server::start(&binaries).await;
    install(&server.client).await;
    rights::install(&server.client, &binaries).await;
    server
}

async fn install(client: &Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in covey_crds::all().unwrap() {
        api.create(&PostParams::default(), &definition).await.unwrap();
        let name = definition.name_any();
        let established = await_condition(api.clone(), &name, conditions::is_crd_established());
        tokio::time::timeout(std::time::Duration::from_secs(30), established).await.unwrap().unwrap();
    }
    // The API server answers 429 until the storage of a new kind is ready, and the client repeats nothing.
    let all = ListParams::default();
    until("the clusters", async || Api::<MqttCluster>::all(client.clone()).list(&all).await.is_ok()).await;
    until("the users", async || Api::<MqttUser>::all(client.clone()).list(&all).await.is_ok()).await;
}

/// Returns the configuration ConfigMaps of cluster `prod` in a namespace.
async fn config_maps(client: &Client, namespace: &str) -> Vec<ConfigMap> {
    let of_cluster = ListParams::default().labels("covey.io/cluster=prod");
    Api::<ConfigMap>::namespaced(client.clone(), namespace).list(&of_cluster).await.unwrap().items
}

fn clusters(client: &Client) -> Api<MqttCluster> {
    Api::namespaced(client.clone(), "default")
}

fn users(client: &Client) -> Api<MqttUser> {
    Api::namespaced(client.clone(), "default")
}

/// Waits until a condition holds.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..300 {
        if holds().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{what} did not come");
}
