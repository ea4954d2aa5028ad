//! `spec.networkPolicy` and `listeners[].from`: from where the ports of the pods can be reached.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// From where the ports of the pods can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkPolicy {
    /// Creates a NetworkPolicy for the pods. It admits listeners[].from to the listeners, this cluster's brokers to 7883, the operator to 7884, and monitoringFrom to 9464. Egress is not restricted. Default true. It needs a network plugin that enforces NetworkPolicies.
    pub enabled: bool,
    /// Sources that may read the metrics on 9464, 1 to 16, with the fields of a NetworkPolicyPeer; the operator may always. Absent: anyone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "sources")]
    pub monitoring_from: Option<Vec<Map<String, Value>>>,
}

impl Default for NetworkPolicy {
    fn default() -> Self {
        Self { enabled: true, monitoring_from: None }
    }
}

/// Returns the schema of a list of NetworkPolicyPeers. Their validity is checked as the API server checks that of a
/// NetworkPolicy, because a typing error in a selector can admit more than was meant.
pub(crate) fn sources(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 16,
        "items": {
            "type": "object",
            "properties": {
                "podSelector": selector(),
                "namespaceSelector": selector(),
                "ipBlock": address_block(),
            },
            "x-kubernetes-validations": [
                {"rule": "has(self.podSelector) || has(self.namespaceSelector) || has(self.ipBlock)",
                 "message": "a source has podSelector, namespaceSelector, both, or ipBlock"},
                {"rule": "!has(self.ipBlock) || !has(self.podSelector) && !has(self.namespaceSelector)",
                 "message": "a source with ipBlock has no selector"},
            ],
        },
    })
}

fn selector() -> Value {
    json!({
        "type": "object",
        "properties": {
            "matchLabels": {
                "type": "object",
                "maxProperties": 16,
                "additionalProperties": {"type": "string", "maxLength": 63},
            },
            "matchExpressions": {
                "type": "array",
                "maxItems": 16,
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {"type": "string", "minLength": 1, "maxLength": 317},
                        "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                        "values": {"type": "array", "maxItems": 16, "items": {"type": "string", "maxLength": 63}},
                    },
                    "x-kubernetes-validations": [
                        {"rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
                         "message": "operators In and NotIn need values, Exists and DoesNotExist have none"},
                    ],
                },
            },
        },
    })
}

fn address_block() -> Value {
    let block = json!({
        "type": "string",
        "maxLength": 43,
        "x-kubernetes-validations": [
            {"rule": "isCIDR(self) && cidr(self) == cidr(self).masked()",
             "message": "must be a block of addresses such as 10.0.0.0/8 or fd00::/8, without bits beyond the prefix"}
        ],
    });
    json!({
        "type": "object",
        "required": ["cidr"],
        "properties": {"cidr": block, "except": {"type": "array", "maxItems": 16, "items": block}},
        "x-kubernetes-validations": [
            {"rule": "!has(self.except) || !isCIDR(self.cidr) || self.except.all(e, !isCIDR(e) || cidr(self.cidr).containsCIDR(e) && cidr(e).prefixLength() > cidr(self.cidr).prefixLength())",
             "message": "except must be smaller blocks within cidr"}
        ],
    })
}
