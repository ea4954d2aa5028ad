//! `MqttUser`: who may connect to a cluster, and what they may do there.

#![expect(clippy::duplicated_attributes, reason = "every printer column has a name, a type and a path")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::rule::AclRule;

/// A user of an MqttCluster: credentials and access rules. Its Ready condition is True when every node enforces them.
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
])))]
pub struct MqttUserSpec {
    /// The MqttCluster, in the same namespace.
    pub cluster_ref: ClusterRef,
    /// The MQTT user name; absent: the name of this object. Unique in the cluster: the oldest MqttUser wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), extend("x-kubernetes-validations" = json!([
        {"rule": "!self.matches('[[:cntrl:]]')", "message": "username must not contain a line break or another control character"}
    ])))]
    pub username: Option<String>,
    /// Client ids that this user may take; `*` is any run without / + #. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), extend("x-kubernetes-validations" = json!([
        {"rule": "!self.matches('[/+#]')", "message": "clientIdPattern must not contain / + or #: use * for any run of other characters"}
    ])))]
    pub client_id_pattern: Option<String>,
    /// How the user proves who they are.
    #[serde(default)]
    pub authentication: Authentication,
    /// What the user may do; what no rule allows is denied.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub acl: Vec<AclRule>,
}

/// Names the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRef {
    /// Name of the MqttCluster.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// How a user proves who they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Authentication {
    /// A password: generated, or from a Secret of yours.
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
    /// The operator makes one and keeps it in Secret `<name of this object>-mqtt`, keys username and password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generate: Option<bool>,
    /// A Secret in this namespace with the label covey.io/user: <name of this object>.
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
    /// Key that holds the password: 1 to 65535 bytes without control characters, so without a line break at the end.
    #[serde(default = "default_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn default_key() -> String {
    "password".into()
}

impl MqttUser {
    /// The MQTT user name in force.
    pub fn username(&self) -> &str {
        self.spec.username.as_deref().or(self.metadata.name.as_deref()).unwrap_or_default()
    }
}

/// What the operator observed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MqttUserStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Secret with the credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Access revision since which this user stands as it is, `r<number>:<hash>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acl_revision: Option<String>,
    /// Nodes that enforce it, of all, as in 3/3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synced_nodes: Option<String>,
    /// Clients connected as this user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connected_clients: Option<i64>,
    /// Ready: every node enforces this user.
    #[schemars(schema_with = "crate::status::conditions")]
    pub conditions: Vec<Condition>,
}
