//! Part of step *apply children* of a pass: builds the children of a validated cluster. Pure and infallible: [`super::validate`] has
//! refused everything that could fail here.

mod config_map;
mod network_policy;
mod pdb;
mod placement;
mod secrets;
mod service_account;
mod services;
mod stateful_set;

use std::collections::BTreeMap;

use covey_contract::config::{self, Config};
use covey_contract::names;
use covey_crds::MqttCluster;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource as _;
use sha2::{Digest as _, Sha256};

pub use pdb::pdb;
pub use secrets::{
    access_metadata, access_secret, peer_ca_metadata, peer_ca_secret, peer_tls_metadata, peer_tls_secret,
};
pub use stateful_set::{DATA, stateful_set};

use super::evictions::Evictions;
use super::formation::FIRST_MEMBERS;
use super::validate::{Owner, ValidatedCluster};
use crate::options::OperatorPods;

/// Label with a pod's name, set by the StatefulSet controller.
pub(crate) const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// Label with the template revision of a pod, set by the StatefulSet controller.
pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";

/// Children that are applied on every pass, before the StatefulSet.
#[derive(Debug, Clone, PartialEq)]
pub struct Children {
    pub service_account: ServiceAccount,
    pub config_map: ConfigMap,
    pub peers_service: Service,
    pub client_service: Service,
    pub pdb: PodDisruptionBudget,
    pub network_policy: NetworkPolicy,
    /// Whether the NetworkPolicy is applied. Otherwise it is deleted.
    pub has_network_policy: bool,
}

/// Builds them. `pods` are the pods that exist, and `operator` selects those of the operator if they are known.
pub fn children(
    cluster: &ValidatedCluster,
    evictions: &Evictions,
    pods: &[Pod],
    operator: Option<&OperatorPods>,
) -> Children {
    Children {
        service_account: service_account::build(cluster),
        config_map: config_map::build(cluster),
        peers_service: services::peers(cluster),
        client_service: services::client(cluster),
        pdb: pdb(cluster, evictions),
        network_policy: network_policy::build(cluster, pods, operator),
        has_network_policy: cluster.network.enabled,
    }
}

/// Builds the brokers' configuration file. `peers` is [`kubernetes_peers`], or loopback for `covey local`.
pub fn broker_config(cluster: &ValidatedCluster, peers: config::Peers, paths: config::Paths) -> Config {
    Config {
        cluster: config::Cluster {
            // Certificates already separate clusters, and an id here would roll every pod once after formation.
            id: None,
            name: cluster.name.clone(),
            uid: cluster.uid.clone(),
            // The size of the cluster is not in the configuration: a change of it would roll every pod.
            replicas: cluster.replicas.min(FIRST_MEMBERS),
            shards: cluster.shards,
        },
        listeners: cluster.listeners.clone(),
        peers,
        mqtt: cluster.mqtt.clone(),
        sessions: cluster.sessions.clone(),
        fence: cluster.fence.clone(),
        storage: cluster.storage.reserve.clone(),
        raft: config::Raft::default(),
        paths,
        drain: cluster.drain.clone(),
        anonymous: cluster.anonymous.is_some(),
    }
}

/// Returns the addresses of the peers behind the headless Service.
pub fn kubernetes_peers(cluster: &ValidatedCluster) -> config::Peers {
    let ValidatedCluster { name, namespace, .. } = cluster;
    config::Peers {
        host: format!("{name}-{{ordinal}}.{}.{namespace}.svc", names_of(cluster).peers_service),
        bind: "0.0.0.0".into(),
        port_step: 0,
        ..config::Peers::default()
    }
}

/// Names of the children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub client_service: String,
    pub peers_service: String,
    pub access_secret: String,
    pub peer_ca: String,
    pub peer_tls: String,
    pub stateful_set: String,
    pub service_account: String,
    pub pdb: String,
    pub network_policy: String,
}

/// Returns the names of a cluster's children.
pub fn names_of<'a>(cluster: impl Into<Owner<'a>>) -> Names {
    names(cluster.into().name)
}

/// Returns the names of the children of the cluster called `name`.
pub fn names(name: &str) -> Names {
    Names {
        client_service: name.to_owned(),
        peers_service: format!("{name}-peers"),
        access_secret: format!("{name}-access"),
        peer_ca: format!("{name}-peer-ca"),
        peer_tls: format!("{name}-peer-tls"),
        stateful_set: name.to_owned(),
        service_account: format!("{name}-broker"),
        pdb: name.to_owned(),
        network_policy: format!("{name}-broker"),
    }
}

/// Returns the labels that select a cluster's pods. The component keeps out other pods that people label with the name
/// of the cluster that they use: they must get no clients, and they do not count for the disruption budget.
pub fn selector(cluster_name: &str) -> BTreeMap<String, String> {
    let mut labels = immutable_selector(cluster_name);
    labels.insert("app.kubernetes.io/component".to_owned(), "broker".to_owned());
    labels
}

/// Returns [`selector`] as a text for requests.
pub fn selector_text(cluster_name: &str) -> String {
    let labels = selector(cluster_name);
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Returns the labels that a StatefulSet selects its pods and claims by, which cannot change. It does not need the
/// component, because it counts only pods that it owns.
fn immutable_selector(cluster_name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(names::LABEL_CLUSTER.to_owned(), cluster_name.to_owned())])
}

/// Returns the labels of every child.
fn labels<'a>(cluster: impl Into<Owner<'a>>) -> BTreeMap<String, String> {
    let name = cluster.into().name;
    let mut labels = selector(name);
    for (key, value) in [
        ("app.kubernetes.io/name", "covey"),
        ("app.kubernetes.io/instance", name),
        ("app.kubernetes.io/managed-by", names::FIELD_MANAGER),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

/// Returns the metadata of a child: name, labels, and the cluster as its owner, so that it is deleted with the cluster.
fn metadata<'a>(cluster: impl Into<Owner<'a>>, name: String) -> ObjectMeta {
    let cluster = cluster.into();
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.to_owned()),
        labels: Some(labels(cluster)),
        owner_references: Some(vec![OwnerReference {
            api_version: MqttCluster::api_version(&()).into_owned(),
            kind: MqttCluster::kind(&()).into_owned(),
            name: cluster.name.to_owned(),
            uid: cluster.uid.to_owned(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

/// Returns the first 16 hexadecimal digits of the SHA-256 of a value's JSON.
#[expect(clippy::missing_panics_doc, reason = "what comes from the API server or goes to it is JSON")]
pub fn hash<T: serde::Serialize>(value: &T) -> String {
    let json = serde_json::to_vec(value).expect("an object of the API server is JSON");
    Sha256::digest(json).iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests;
