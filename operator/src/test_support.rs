//! Fixtures from minimal YAML. Names deliberately differ from the product's, so that a swapped label shows.

use covey_crds::{MqttCluster, MqttUser};

/// A cluster `mosaic` in namespace `floor` with the given spec.
pub(crate) fn cluster(spec: &str) -> MqttCluster {
    let yaml = format!(
        "apiVersion: covey.io/v1alpha1\nkind: MqttCluster\nmetadata: {{name: mosaic, namespace: floor, uid: uid-1, generation: 4}}\nspec: {spec}\n"
    );
    serde_saphyr::from_str(&yaml).unwrap()
}

/// A user of `mosaic` with the given spec, which lacks `clusterRef`.
pub(crate) fn user(name: &str, spec: &str) -> MqttUser {
    let yaml = format!(
        "apiVersion: covey.io/v1alpha1\nkind: MqttUser\nmetadata: {{name: {name}, namespace: floor, uid: uid-{name}, generation: 1}}\nspec: {{clusterRef: {{name: mosaic}}, {spec}}}\n"
    );
    serde_saphyr::from_str(&yaml).unwrap()
}
