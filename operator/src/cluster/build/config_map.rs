//! Builds the ConfigMap with the brokers' configuration file.

use std::collections::BTreeMap;
use std::path::Path;

use covey_contract::{config, names};
use k8s_openapi::api::core::v1::ConfigMap;

use super::{ValidatedCluster, broker_config, kubernetes_peers, metadata, names_of};

pub(super) fn build(cluster: &ValidatedCluster) -> ConfigMap {
    ConfigMap {
        metadata: metadata(cluster, names_of(cluster).config_map),
        data: Some(BTreeMap::from([(file_name(), text(cluster))])),
        ..ConfigMap::default()
    }
}

/// Returns the text of the file. The pod template carries its hash, so that a change rolls the pods.
pub(super) fn text(cluster: &ValidatedCluster) -> String {
    let config = broker_config(cluster, kubernetes_peers(cluster), config::Paths::default());
    config.to_yaml().unwrap_or_default()
}

fn file_name() -> String {
    Path::new(names::PATH_CONFIG).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
