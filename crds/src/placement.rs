//! Where the pods of a cluster are scheduled.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::format::{LABEL_KEY, OBJECT};

/// Where the pods are scheduled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// How strictly the pods are spread over the values of topologyKey. Preferred, the default: as far as possible. Required: three or more brokers use at least three values, whose numbers of brokers differ by at most one; a pod without such a place stays Pending.
    pub spread: Spread,
    /// Label of machines whose values the pods are spread over; default kubernetes.io/hostname. Over machines and over zones they are spread as far as possible in any case.
    #[schemars(length(min = 1, max = 317), extend("x-kubernetes-validations" = json!([
        {"rule": format!("self.matches('{LABEL_KEY}')"),
         "message": "placement.topologyKey must be the key of a label, such as topology.kubernetes.io/zone"}
    ])))]
    pub topology_key: String,
    /// Labels that a machine must have, at most 32.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate, at most 32.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Affinity of the pods, with the fields of spec.affinity of a Pod: nodeAffinity, podAffinity, podAntiAffinity.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub affinity: Option<Map<String, Value>>,
    /// PriorityClass of the pods. Default: the default class of the Kubernetes cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = json!([
        {"rule": format!("self.matches('{OBJECT}')"),
         "message": "placement.priorityClassName must be the name of a PriorityClass: lower case letters, digits, dashes and dots"}
    ])))]
    pub priority_class_name: Option<String>,
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            spread: Spread::Preferred,
            topology_key: "kubernetes.io/hostname".into(),
            node_selector: BTreeMap::new(),
            tolerations: vec![],
            affinity: None,
            priority_class_name: None,
        }
    }
}

/// How strictly the pods are spread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Spread {
    #[default]
    Preferred,
    Required,
}

/// A taint that the pods tolerate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": "has(self.key) || self.operator == 'Exists'", "message": "a toleration without a key needs operator Exists"},
    {"rule": "!has(self.value) || self.operator == 'Equal'", "message": "a toleration with operator Exists has no value"},
    {"rule": "!has(self.tolerationSeconds) || has(self.effect) && self.effect == 'NoExecute'",
     "message": "tolerationSeconds needs effect NoExecute"},
])))]
pub struct Toleration {
    /// Key of the taint. Absent: every taint, with operator Exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    pub key: Option<String>,
    /// Equal, the default, compares the value; Exists tolerates every value.
    pub operator: TolerationOperator,
    /// Value of the taint.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// Effect of the taint. Absent: every effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
    /// Seconds that a pod stays on a machine with this taint. Absent: without a limit. Needs effect NoExecute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<i64>,
}

/// How a toleration compares the value of a taint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TolerationOperator {
    #[default]
    Equal,
    Exists,
}

/// Effect of a taint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TaintEffect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 63}
    })
}

fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}
