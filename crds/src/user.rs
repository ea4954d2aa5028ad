//! `MqttUser`: the credentials and access rules of one user of a cluster.

#![expect(clippy::duplicated_attributes, reason = "every printer column has a name, a type and a path")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::rule::AclRule;

/// Desired state of the user.
#[derive(CustomResource, Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "covey.io",
    version = "v1alpha1",
    kind = "MqttUser",
    plural = "mqttusers",
    singular = "mqttuser",
    shortname = "mqu",
    category = "covey",
    namespaced,
    status = "MqttUserStatus",
    derive = "PartialEq",
    doc = "A user of an MqttCluster: credentials and access rules. Its Ready condition is True when every node enforces them.",
    selectable = ".spec.clusterRef.name",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Synced", type_ = "string", json_path = ".status.syncedNodes"),
    printcolumn(name = "Clients", type_ = "integer", json_path = ".status.connectedClients"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": "has(self.clientIdPattern) || !has(self.acl) || !self.acl.exists(r, r.topics.exists(t, t.contains('{clientId}')))",
     "message": "a topic with {clientId} needs spec.clientIdPattern: without it a client could choose its own topics"},
    {"rule": "has(self.username) == has(oldSelf.username) && (!has(self.username) || self.username == oldSelf.username)",
     "message": "username cannot change: create another MqttUser"},
    {"rule": "self.clusterRef.name == oldSelf.clusterRef.name",
     "message": "clusterRef cannot change: create another MqttUser"},
])))]
pub struct MqttUserSpec {
    /// The MqttCluster of the user, in the same namespace. Cannot change.
    pub cluster_ref: ClusterRef,
    /// MQTT user name. Default: the name of this object. Cannot change. If several MqttUsers of a cluster have it, the oldest one keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), extend("x-kubernetes-validations" = json!([
        {"rule": "!self.matches('[[:cntrl:]]')", "message": "username must not contain a line break or another control character"}
    ])))]
    pub username: Option<String>,
    /// Client ids that the user may connect with; `*` stands for any characters except / + #. Absent: any client id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), extend("x-kubernetes-validations" = json!([
        {"rule": "!self.matches('[/+#]')", "message": "clientIdPattern must not contain / + or #: use * for any run of other characters"}
    ])))]
    pub client_id_pattern: Option<String>,
    /// How the user authenticates.
    #[serde(default)]
    pub authentication: Authentication,
    /// Access rules, at most 32. What no rule allows is denied. A change takes effect without a restart.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub acl: Vec<AclRule>,
}

/// Reference to an MqttCluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRef {
    /// Name of the MqttCluster.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// How a user authenticates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Authentication {
    /// A password that the operator generates, or one from an existing Secret.
    pub password: Password,
}

/// Where the password comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": "(has(self.generate) && self.generate) != has(self.secretRef)",
     "message": "exactly one of generate: true and secretRef must be set"}
])))]
pub struct Password {
    /// Generates a password and stores it in Secret `<name of this object>-mqtt` under the keys username and password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generate: Option<bool>,
    /// An existing Secret in this namespace. It must have the label covey.io/user: <name of this object>.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

impl Default for Password {
    fn default() -> Self {
        Self { generate: Some(true), secret_ref: None }
    }
}

/// A key of a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key that holds the password, 1 to 1024 bytes without control characters and line breaks. Default password.
    #[serde(default = "default_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn default_key() -> String {
    "password".into()
}

impl MqttUser {
    /// Returns the MQTT user name: `spec.username`, or else the name of the object.
    pub fn username(&self) -> &str {
        self.spec.username.as_deref().or(self.metadata.name.as_deref()).unwrap_or_default()
    }
}

/// Observed state of the user.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MqttUserStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Name of the Secret with the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Access revision since which this user is unchanged, `r<number>:<hash>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acl_revision: Option<String>,
    /// Nodes that enforce this user of all nodes, such as 3/3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synced_nodes: Option<String>,
    /// Number of clients connected as this user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connected_clients: Option<i64>,
    /// Condition Ready: True when every node enforces this user.
    #[schemars(schema_with = "crate::status::conditions")]
    pub conditions: Vec<Condition>,
}
