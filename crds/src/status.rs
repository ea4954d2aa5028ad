//! The status of an `MqttCluster`. It holds no data per client: its size must not grow with the number of clients.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Observed state of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MqttClusterStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Id of the cluster (a UUID), stored on the volume of every node. Set once a node reports it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Number of pods that exist.
    pub replicas: i32,
    /// Number of ready nodes.
    pub ready_replicas: i32,
    /// Ready nodes of all nodes, such as 3/3.
    pub ready: String,
    /// Label selector of the pods, for the scale subresource.
    pub selector: String,
    /// Versions of the running brokers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Whether the cluster can acknowledge messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quorum: Option<Quorum>,
    /// Totals of the cluster, written at most every 10 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub totals: Option<Totals>,
    /// The access document that the nodes should enforce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acl: Option<AccessStatus>,
    /// State of each node.
    pub nodes: Vec<NodeStatus>,
    /// Id and first members of the cluster. Written before any node is told to form the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub formation: Option<Formation>,
    /// The StatefulSet as last applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadStatus>,
    /// Number of firing alerts.
    pub alerts_firing: i32,
    /// Firing alerts, at most 20.
    pub alerts: Vec<AlertStatus>,
    /// Conditions Ready, Available, Progressing, Degraded, QuorumHealthy, AclSynced, Alerting, UpgradePending and Paused.
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// Versions of the running brokers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Version {
    /// Lowest version that any node reports.
    pub current: String,
    /// Pods that run an earlier template.
    pub pending: Vec<String>,
}

/// Whether the cluster can acknowledge messages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Quorum {
    /// Healthy, Degraded, Lost, Forming or Unknown.
    pub state: String,
    /// Pod of the node that leads the meta group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_leader: Option<String>,
    /// Number of groups whose leader no node knows.
    pub leaderless_groups: i64,
}

/// Totals of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Totals {
    /// Connected clients.
    pub connections: i64,
    /// Durable sessions.
    pub sessions: i64,
    /// Retained messages. Every node holds all of them, so this is the largest number that a node reports.
    pub retained: i64,
}

/// The access document that the nodes should enforce.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessStatus {
    /// Revision of the document, `r<number>:<hash>`.
    pub revision: String,
    /// Users in the document. Anonymous clients count as one user.
    pub users: i64,
    /// Rules of all users in the document.
    pub rules: i64,
    /// Number of nodes that enforce this revision.
    pub nodes_in_sync: i64,
}

/// State of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// Name of the pod.
    pub name: String,
    /// Number of the pod in the StatefulSet, from 0.
    pub ordinal: i32,
    /// Id of the node's volume, 16 hexadecimal digits, generated once per volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// Number that increases with each start of the broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<i64>,
    /// Running, Draining, NotReady, Forming, Unreachable, Missing or Foreign.
    pub state: String,
    /// Readiness checks that fail.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failing_checks: Vec<String>,
    /// Whether the node is a member of the cluster.
    pub member: bool,
    /// Access revision that the node enforces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acl_revision: Option<String>,
    /// Connected clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<i64>,
    /// Durable sessions in the shards that the node leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<i64>,
    /// Free space of the volume in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_free_percent: Option<i64>,
}

/// Id and first members of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Formation {
    /// Id of the cluster, a UUID.
    pub cluster_id: String,
    /// First members, at most three. Other nodes join them.
    pub members: Vec<FormationMember>,
}

/// A first member of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FormationMember {
    /// Number of the pod in the StatefulSet.
    pub ordinal: u32,
    /// Id of the volume that the node had at formation.
    pub node_id: String,
}

/// The StatefulSet as last applied. It is applied again only when one of these values differs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadStatus {
    /// Hash of the desired StatefulSet.
    pub hash: String,
    /// UID of the StatefulSet.
    pub uid: String,
    /// Generation of the StatefulSet after it was applied.
    pub generation: i64,
}

/// A firing alert.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AlertStatus {
    /// Name of the alert.
    pub name: String,
    /// One of info, warning and critical.
    pub severity: String,
    /// Pod that the alert is about. Absent: the whole cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Time at which it began to fire, RFC 3339.
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
