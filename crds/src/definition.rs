//! CustomResourceDefinitions from the types: what the derive cannot say is added here, and the YAML is written.
//!
//! `cargo run -p covey-crds --example generate` writes `crds/yaml/`; a test fails when those files are stale.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::{Value, json};

use crate::{MqttCluster, MqttUser};

/// Why the definitions cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to build a CustomResourceDefinition: {0}")]
    Build(#[from] serde_json::Error),
    #[error("failed to write a CustomResourceDefinition as YAML: {0}")]
    Write(#[from] serde_saphyr::ser::Error),
}

/// Rules about the whole object: a rule on `metadata` can only stand at the root.
const CLUSTER_RULES: [(&str, &str); 1] = [(
    "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 45",
    "the name of an MqttCluster becomes part of host names: at most 45 lower case letters, digits and dashes, a letter first",
)];

const USER_RULES: [(&str, &str); 1] = [(
    "size(self.metadata.name) <= 58",
    "the name of an MqttUser becomes a label and the name of a Secret: at most 58 characters",
)];

/// Every definition of this group, as the API server takes it.
pub fn all() -> Result<Vec<CustomResourceDefinition>, Error> {
    Ok(vec![finish(&MqttCluster::crd(), &CLUSTER_RULES)?, finish(&MqttUser::crd(), &USER_RULES)?])
}

/// Name of a definition's file.
pub fn file_name(definition: &CustomResourceDefinition) -> String {
    format!("{}.yaml", definition.metadata.name.as_deref().unwrap_or("unnamed"))
}

/// A definition as YAML.
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

/// Drops formats that the API server does not know, and `nullable`: a null then means "absent" and takes the default.
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
