//! First step of a reconcile: reads all inputs once. I/O only, no decisions.
//!
//! Users and Secrets are listed from the API server on every pass, not read from a cache. A list is either complete or
//! an error, so a user that is absent from it has been deleted.

use std::collections::BTreeMap;

use covey_contract::names;
use covey_crds::{MqttCluster, MqttUser};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::ListParams;
use kube::{Api, Client};

use super::build;

/// The inputs of one pass.
#[derive(Debug)]
pub struct Facts {
    /// The cluster as the API server returned it.
    pub cluster: MqttCluster,
    /// Users of this cluster, except those that are being deleted.
    pub users: Vec<MqttUser>,
    /// Secrets with the user label, by name.
    pub user_secrets: BTreeMap<String, Secret>,
    pub access_secret: Option<Secret>,
    pub peer_ca: Option<Secret>,
    pub peer_tls: Option<Secret>,
    pub stateful_set: Option<StatefulSet>,
    pub pods: Vec<Pod>,
}

/// Reads all inputs of a pass. Returns `None` if the cluster does not exist or is being deleted.
///
/// # Errors
/// If any request to the API server fails.
pub async fn dereference(client: &Client, namespace: &str, name: &str) -> Result<Option<Facts>, kube::Error> {
    let clusters: Api<MqttCluster> = Api::namespaced(client.clone(), namespace);
    let Some(cluster) = clusters.get_opt(name).await? else { return Ok(None) };
    if cluster.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let children = build::names(name);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let stateful_sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let users: Api<MqttUser> = Api::namespaced(client.clone(), namespace);
    let of_cluster = ListParams::default().fields(&format!("spec.clusterRef.name={name}"));
    let labelled = ListParams::default().labels(names::LABEL_USER);
    let (users, user_secrets, access_secret, peer_ca, peer_tls, stateful_set, pods) = tokio::try_join!(
        users.list(&of_cluster),
        secrets.list(&labelled),
        secrets.get_opt(&children.access_secret),
        secrets.get_opt(&children.peer_ca),
        secrets.get_opt(&children.peer_tls),
        stateful_sets.get_opt(&children.stateful_set),
        pods(client, namespace, name),
    )?;
    Ok(Some(Facts {
        cluster,
        users: users.items.into_iter().filter(|user| user.metadata.deletion_timestamp.is_none()).collect(),
        user_secrets: by_name(user_secrets.items),
        access_secret,
        peer_ca,
        peer_tls,
        stateful_set,
        pods,
    }))
}

/// Lists the broker pods of a cluster.
///
/// # Errors
/// If the request to the API server fails.
pub async fn pods(client: &Client, namespace: &str, name: &str) -> Result<Vec<Pod>, kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let of_cluster = ListParams::default().labels(&build::selector_text(name));
    Ok(api.list(&of_cluster).await?.items)
}

fn by_name(secrets: Vec<Secret>) -> BTreeMap<String, Secret> {
    secrets.into_iter().filter_map(|secret| secret.metadata.name.clone().map(|name| (name, secret))).collect()
}
