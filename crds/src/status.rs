//! What the operator observed of an `MqttCluster`. Per-client facts never go here.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What the operator observed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MqttClusterStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The cluster's birth certificate: every disk of it carries this id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Pods that exist.
    pub replicas: i32,
    /// Nodes that are ready.
    pub ready_replicas: i32,
    /// Ready nodes of all, as in 3/3.
    pub ready: String,
    /// Selector of the pods, for the scale subresource.
    pub selector: String,
    /// Versions that run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Whether the cluster can acknowledge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quorum: Option<Quorum>,
    /// Sums over the nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub totals: Option<Totals>,
    /// The access document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acl: Option<AccessStatus>,
    /// One entry per node.
    pub nodes: Vec<NodeStatus>,
    /// Who forms the cluster; written before any node is told to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub formation: Option<Formation>,
    /// What was last applied as StatefulSet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadStatus>,
    /// Number of alerts that fire.
    pub alerts_firing: i32,
    /// Alerts that fire, at most 20.
    pub alerts: Vec<AlertStatus>,
    /// Ready, Available, Progressing, Degraded, QuorumHealthy, AclSynced, Alerting, Paused.
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// Versions that run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Version {
    /// Lowest version that a node reports.
    pub current: String,
    /// Pods that still run an earlier template.
    pub pending: Vec<String>,
}

/// Whether the cluster can acknowledge.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Quorum {
    /// Healthy, Degraded, Lost, Forming or Unknown.
    pub state: String,
    /// Node that leads the meta group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_leader: Option<String>,
    /// Groups without a leader, by the node that misses most.
    pub leaderless_groups: i64,
}

/// Sums over the nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Totals {
    pub connections: i64,
    pub sessions: i64,
    pub retained: i64,
}

/// The access document in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessStatus {
    /// `r<number>:<hash>`.
    pub revision: String,
    pub users: i64,
    pub rules: i64,
    /// Nodes that enforce this revision.
    pub nodes_in_sync: i64,
}

/// One node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// Name of the pod.
    pub name: String,
    pub ordinal: i32,
    /// Made once per disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// Raised at each start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<i64>,
    /// Running, Draining, NotReady, Forming, Unreachable, Missing or Foreign.
    pub state: String,
    /// Checks that fail, where the node is not ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failing_checks: Vec<String>,
    /// Whether the node is a member of the cluster.
    pub member: bool,
    /// Access revision that the node enforces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acl_revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_free_percent: Option<i64>,
}

/// Who forms the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Formation {
    pub cluster_id: String,
    pub members: Vec<FormationMember>,
}

/// A first member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FormationMember {
    pub ordinal: u32,
    pub node_id: String,
}

/// What was last applied as StatefulSet: it is applied again only when one of these differs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadStatus {
    /// Hash of what the operator wants.
    pub hash: String,
    /// UID of the StatefulSet.
    pub uid: String,
    /// Its generation after the last apply.
    pub generation: i64,
}

/// An alert that fires.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AlertStatus {
    pub name: String,
    pub severity: String,
    /// The pod it is about; absent: the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// When it began to fire, RFC 3339.
    pub since: String,
}

/// The schema of `conditions`, a list of `metav1.Condition`, with the descriptions of Kubernetes' API reference.
///
/// k8s-openapi has it behind its feature `schemars`, which compiles a schema for every type of Kubernetes.
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "description": "Condition contains details for one aspect of the current state of this API Resource.",
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "lastTransitionTime": {
                    "description": "lastTransitionTime is the last time the condition transitioned from one status \
                        to another. This should be when the underlying condition changed.  If that is not known, \
                        then using the time when the API field changed is acceptable.",
                    "type": "string",
                    "format": "date-time"
                },
                "message": {
                    "description": "message is a human readable message indicating details about the transition. \
                        This may be an empty string.",
                    "type": "string"
                },
                "observedGeneration": {
                    "description": "observedGeneration represents the .metadata.generation that the condition was \
                        set based upon. For instance, if .metadata.generation is currently 12, but the \
                        .status.conditions[x].observedGeneration is 9, the condition is out of date with respect \
                        to the current state of the instance.",
                    "type": "integer",
                    "format": "int64"
                },
                "reason": {
                    "description": "reason contains a programmatic identifier indicating the reason for the \
                        condition's last transition. Producers of specific condition types may define expected \
                        values and meanings for this field, and whether the values are considered a guaranteed \
                        API. The value should be a CamelCase string. This field may not be empty.",
                    "type": "string"
                },
                "status": {
                    "description": "status of the condition, one of True, False, Unknown.",
                    "type": "string"
                },
                "type": {
                    "description": "type of condition in CamelCase or in foo.example.com/CamelCase.",
                    "type": "string"
                }
            }
        }
    })
}
