//! Fixtures from minimal YAML. The names differ from the product's, so that tests detect swapped labels.

use covey_crds::{MqttCluster, MqttUser};

/// Returns a cluster `mosaic` in namespace `floor` with the given spec.
pub(crate) fn cluster(spec: &str) -> MqttCluster {
    let yaml = format!(
        "apiVersion: covey.io/v1alpha1\nkind: MqttCluster\nmetadata: {{name: mosaic, namespace: floor, uid: uid-1, generation: 4}}\nspec: {spec}\n"
    );
    serde_saphyr::from_str(&yaml).unwrap()
}

/// Returns a user of `mosaic` with the given spec, which must not contain `clusterRef`.
pub(crate) fn user(name: &str, spec: &str) -> MqttUser {
    let yaml = format!(
        "apiVersion: covey.io/v1alpha1\nkind: MqttUser\nmetadata: {{name: {name}, namespace: floor, uid: uid-{name}, generation: 1}}\nspec: {{clusterRef: {{name: mosaic}}, {spec}}}\n"
    );
    serde_saphyr::from_str(&yaml).unwrap()
}
