//! Builds the ConfigMap with the brokers' configuration file: one for each content, immutable.
//!
//! The pod template names it, so a pod that restarts reads the file that it was created with, even if the manifest has
//! changed since. [`crate::cluster::configs`] deletes those that no pod mounts.

use std::collections::BTreeMap;
use std::path::Path;

use covey_contract::{config, names};
use k8s_openapi::api::core::v1::ConfigMap;

use super::{ValidatedCluster, broker_config, hash, kubernetes_peers, metadata};

pub(super) fn build(cluster: &ValidatedCluster) -> ConfigMap {
    ConfigMap {
        metadata: metadata(cluster, name(cluster)),
        immutable: Some(true),
        data: Some(BTreeMap::from([(file_name(), text(cluster))])),
        ..ConfigMap::default()
    }
}

/// Returns the name of the ConfigMap. It changes with the content, so that a change rolls the pods.
pub(super) fn name(cluster: &ValidatedCluster) -> String {
    format!("{}-config-{}", cluster.name, hash(&text(cluster)))
}

fn text(cluster: &ValidatedCluster) -> String {
    let config = broker_config(cluster, kubernetes_peers(cluster), config::Paths::default());
    config.to_yaml().expect("a configuration is numbers and texts, which YAML can hold")
}

fn file_name() -> String {
    Path::new(names::PATH_CONFIG).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
