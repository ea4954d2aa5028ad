//! Generates the CustomResourceDefinitions: adds what the derive cannot express, and writes them as YAML.
//!
//! `cargo run -p covey-crds --example generate` writes `crds/yaml/`; a test fails when those files are stale.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::{Value, json};

use crate::{MqttCluster, MqttUser};

/// Why the definitions could not be generated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to build a CustomResourceDefinition: {0}")]
    Build(#[from] serde_json::Error),
    #[error("failed to write a CustomResourceDefinition as YAML: {0}")]
    Write(#[from] serde_saphyr::ser::Error),
}

/// Validation rules on the whole object. Kubernetes permits rules on `metadata` only at the root of the schema, and
/// rules that compare spec and status as well.
const CLUSTER_RULES: [(&str, &str); 2] = [
    (
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 45",
        "the name of an MqttCluster becomes part of host names: at most 45 lower case letters, digits and dashes, a letter first",
    ),
    (
        "!has(self.status) || !has(self.status.clusterId) || self.spec.storage.size == oldSelf.spec.storage.size && self.spec.storage.accessMode == oldSelf.spec.storage.accessMode && has(self.spec.storage.storageClassName) == has(oldSelf.spec.storage.storageClassName) && (!has(self.spec.storage.storageClassName) || self.spec.storage.storageClassName == oldSelf.spec.storage.storageClassName)",
        "storage.size, accessMode and storageClassName cannot change once the cluster is formed: create another cluster",
    ),
];

const USER_RULES: [(&str, &str); 1] = [(
    "size(self.metadata.name) <= 58",
    "the name of an MqttUser becomes a label and the name of a Secret: at most 58 characters",
)];

/// Returns every definition of the API group `covey.io`, ready for the API server.
///
/// # Errors
/// If a definition cannot be converted to or from JSON.
pub fn all() -> Result<Vec<CustomResourceDefinition>, Error> {
    Ok(vec![finish(&MqttCluster::crd(), &CLUSTER_RULES)?, finish(&MqttUser::crd(), &USER_RULES)?])
}

/// Returns the file name of a definition in `crds/yaml/`.
pub fn file_name(definition: &CustomResourceDefinition) -> String {
    format!("{}.yaml", definition.metadata.name.as_deref().unwrap_or("unnamed"))
}

/// Returns a definition as YAML, with a comment that marks it as generated.
///
/// # Errors
/// If the definition cannot be written as YAML.
pub fn to_yaml(definition: &CustomResourceDefinition) -> Result<String, Error> {
    let text = serde_saphyr::to_string(definition)?;
    Ok(format!("# Generated from the types by `cargo run -p covey-crds --example generate`; do not edit.\n{text}"))
}

fn finish(
    definition: &CustomResourceDefinition,
    rules: &[(&str, &str)],
) -> Result<CustomResourceDefinition, serde_json::Error> {
    let mut value = serde_json::to_value(definition)?;
    let rules: Vec<Value> = rules.iter().map(|(rule, message)| json!({"rule": rule, "message": message})).collect();
    if let Some(schema) = value.pointer_mut("/spec/versions/0/schema/openAPIV3Schema") {
        tidy(schema);
        if let Some(schema) = schema.as_object_mut() {
            schema.insert("x-kubernetes-validations".into(), Value::Array(rules));
        }
    }
    serde_json::from_value(value)
}

/// Removes formats that the API server does not know, and `nullable`: a null then takes the default like an absent field.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                map.remove("format");
            }
            if map.get("nullable").is_some_and(Value::is_boolean) {
                map.remove("nullable");
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}
