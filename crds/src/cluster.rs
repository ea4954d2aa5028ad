//! `MqttCluster`: a clustered MQTT broker. Only fields that work are here.

#![expect(clippy::duplicated_attributes, reason = "every printer column has a name, a type and a path")]

use std::collections::BTreeMap;

use covey_contract::config;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::rule::AclRule;
use crate::status::MqttClusterStatus;
use crate::value::{Cpu, Percent, Quantity, Time, at_least, between, fits, some_cores};

/// A clustered MQTT broker.
#[derive(CustomResource, Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "covey.io",
    version = "v1alpha1",
    kind = "MqttCluster",
    plural = "mqttclusters",
    singular = "mqttcluster",
    shortname = "mqc",
    category = "covey",
    namespaced,
    status = "MqttClusterStatus",
    derive = "PartialEq",
    doc = "A clustered MQTT broker that keeps what it acknowledged. Every field has a default: replicas and storage.size are the ones to think about.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.ready"),
    printcolumn(name = "Quorum", type_ = "string", json_path = ".status.quorum.state"),
    printcolumn(name = "Conns", type_ = "integer", json_path = ".status.totals.connections"),
    printcolumn(name = "Sessions", type_ = "integer", json_path = ".status.totals.sessions"),
    printcolumn(name = "AclRev", type_ = "string", json_path = ".status.acl.revision"),
    printcolumn(
        name = "Rollout",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Progressing\")].reason"
    ),
    printcolumn(name = "Alerts", type_ = "integer", json_path = ".status.alertsFiring"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version.current"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": "self.replicas != 2", "message": "replicas must not be 2: two nodes have no majority when one is lost; use 1 or 3"},
    {"rule": "self.replicas < 4 || self.replicas % 2 == 1 || self.allowEvenReplicas",
     "message": "replicas must be odd: an even node adds no tolerance of failures; set allowEvenReplicas: true if you want the capacity"},
    {"rule": "oldSelf.replicas < 3 || self.replicas >= 3",
     "message": "replicas must stay at 3 or more once it was: fewer nodes cannot hold three copies"},
    {"rule": "self.replicas >= oldSelf.replicas",
     "message": "replicas can only grow: moving a node's copies away before it is removed is not supported yet"},
    {"rule": fits("self.mqtt.maxRetainedBytes", 2, "self.resources.limits.memory"),
     "message": "mqtt.maxRetainedBytes must not exceed half of resources.limits.memory: every node keeps all retained messages in memory"},
])))]
pub struct MqttClusterSpec {
    /// Number of nodes: 1, 3, 5, ... It can grow, never shrink.
    #[schemars(range(min = 1, max = 99))]
    pub replicas: u32,
    /// Permits 4, 6, ... nodes: more capacity, no more tolerance of failures.
    pub allow_even_replicas: bool,
    /// The broker's image; without one, the operator's own (the chart's `image`). A change rolls the pods one at a time.
    #[schemars(extend("x-kubernetes-validations" = json!([
        {"rule": "has(self.repository) || !has(self.tag) && !has(self.digest)", "message": "image.tag and image.digest need image.repository"}
    ])))]
    pub image: Image,
    /// Stops the operator from changing the brokers. They run on; access changes, the disruption budget and the status are kept up.
    pub paused: bool,
    /// Where clients connect. A change rolls the pods.
    #[schemars(length(min = 1, max = 8), extend(
        "x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"],
        "x-kubernetes-validations" = json!([
            {"rule": "self.all(a, self.exists_one(b, b.port == a.port))", "message": "every listener needs a port of its own"}
        ])
    ))]
    pub listeners: Vec<Listener>,
    /// The Service that clients use; it has the cluster's name.
    pub service: Service,
    /// Limits of the MQTT side. A change rolls the pods.
    pub mqtt: Mqtt,
    /// Limits of sessions and their queues. A change rolls the pods.
    pub sessions: Sessions,
    /// Shards of durable sessions; fixed at birth. Few cores want few shards.
    #[schemars(range(min = 1, max = 128), extend("x-kubernetes-validations" = json!([
        {"rule": "self == oldSelf", "message": "shards is fixed at birth: create another cluster"}
    ])))]
    pub shards: u16,
    /// When a node outside the cluster stops serving. A change rolls the pods.
    pub fence: Fence,
    /// The disk of each node.
    pub storage: Storage,
    /// How pods are replaced.
    pub rollout: Rollout,
    /// Access that is not a user's.
    pub acl: Acl,
    /// Alerts that the operator evaluates from the nodes' metrics.
    pub alerts: Alerts,
    /// Processor and memory of a node. A change rolls the pods.
    pub resources: Resources,
}

impl Default for MqttClusterSpec {
    fn default() -> Self {
        Self {
            replicas: 3,
            allow_even_replicas: false,
            image: Image::default(),
            paused: false,
            listeners: vec![Listener::default()],
            service: Service::default(),
            mqtt: Mqtt::default(),
            sessions: Sessions::default(),
            shards: 8,
            fence: Fence::default(),
            storage: Storage::default(),
            rollout: Rollout::default(),
            acl: Acl::default(),
            alerts: Alerts::default(),
            resources: Resources::default(),
        }
    }
}

/// An image reference in parts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Image {
    /// Repository, with the registry where one is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), extend("x-kubernetes-validations" = json!([
        {"rule": "self.matches('^([A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$')",
         "message": "image.repository must look like registry.example.org/team/covey, without tag and digest"}
    ])))]
    pub repository: Option<String>,
    /// Tag; without one, the operator's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), extend("x-kubernetes-validations" = json!([
        {"rule": "self.matches('^[A-Za-z0-9_][A-Za-z0-9._-]*$')",
         "message": "image.tag must consist of letters, digits, dots, dashes and underscores"}
    ])))]
    pub tag: Option<String>,
    /// Digest such as sha256:...; it decides when it is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128), extend("x-kubernetes-validations" = json!([
        {"rule": "self == '' || self.matches('^[a-z0-9]+:[0-9a-f]{32,}$')", "message": "digest must look like sha256:<hexadecimal digits>"}
    ])))]
    pub digest: Option<String>,
    /// When a node's kubelet pulls the image.
    pub pull_policy: PullPolicy,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

/// A port for clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Name of the port, unique.
    #[schemars(length(min = 1, max = 15), extend("x-kubernetes-validations" = json!([
        {"rule": "self.matches('^[a-z]([a-z0-9-]*[a-z0-9])?$') && !self.contains('--')",
         "message": "a listener's name is a port name: lower case letters, digits and single dashes, a letter first"},
        {"rule": "!(self in ['peer', 'admin', 'http'])", "message": "peer, admin and http are names of the broker's own ports"}
    ])))]
    pub name: String,
    /// Transport: mqtt is MQTT 5 and 3.1.1 over TCP.
    #[serde(default)]
    pub protocol: Protocol,
    /// TCP port of the pod and of the Service.
    #[schemars(range(min = 1024, max = 65535), extend("x-kubernetes-validations" = json!([
        {"rule": "!(self in [7883, 7884, 9464])", "message": "7883, 7884 and 9464 are the broker's own ports"}
    ])))]
    pub port: u16,
}

impl Default for Listener {
    fn default() -> Self {
        Self { name: "mqtt".into(), protocol: Protocol::Mqtt, port: covey_contract::names::PORT_MQTT }
    }
}

/// Transport of a listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Mqtt,
}

/// The Service that clients use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": "!has(self.externalTrafficPolicy) || self.type != 'ClusterIP'",
     "message": "externalTrafficPolicy needs service.type NodePort or LoadBalancer"}
])))]
pub struct Service {
    /// How the Service is reached.
    #[serde(rename = "type")]
    pub type_: ServiceType,
    /// Annotations for it, as load balancers want them.
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
    /// Local keeps the client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<ExternalTrafficPolicy>,
}

/// How a Service is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    NodePort,
    LoadBalancer,
}

/// Where traffic from outside may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExternalTrafficPolicy {
    Cluster,
    Local,
}

/// Limits of the MQTT side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": at_least("self.maxPacketSize", "1Ki"), "message": "mqtt.maxPacketSize must be between 1Ki and 16Mi"},
    {"rule": "!string(self.maxPacketSize).matches('^[0-9]+(Ki|Mi|Gi|Ti|k|M|G|T)?$') || quantity(string(self.maxPacketSize)).compareTo(quantity('16Mi')) <= 0",
     "message": "mqtt.maxPacketSize must be between 1Ki and 16Mi"}
])))]
pub struct Mqtt {
    /// Connections that one node admits.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections_per_node: u32,
    /// Largest packet, 1Ki to 16Mi.
    pub max_packet_size: Quantity,
    /// Publishes at QoS 1 and 2 that a client may have unacknowledged.
    #[schemars(range(min = 1, max = 65535))]
    pub receive_maximum: u16,
    /// Topic aliases that a client may use; 0 is none.
    #[schemars(range(min = 0, max = 65535))]
    pub topic_alias_maximum: u16,
    /// Retained messages in the whole cluster, in bytes. Every node keeps all of them in memory: at most half of resources.limits.memory.
    pub max_retained_bytes: Quantity,
}

impl Default for Mqtt {
    fn default() -> Self {
        let broker = config::Mqtt::default();
        Self {
            max_connections_per_node: broker.max_connections,
            max_packet_size: Quantity::new("256Ki"),
            receive_maximum: broker.receive_maximum,
            topic_alias_maximum: broker.topic_alias_maximum,
            max_retained_bytes: Quantity::new("256Mi"),
        }
    }
}

/// Limits of sessions and their queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": "!has(self.expiryWhenUnset) || !self.expiryWhenUnset.matches('^([0-9]+[hms])+$') || !self.expiryMax.matches('^([0-9]+[hms])+$') || duration(self.expiryWhenUnset) <= duration(self.expiryMax)",
     "message": "sessions.expiryWhenUnset must not exceed sessions.expiryMax: lower it, or leave it out to get 2h or expiryMax, whichever is less"},
    {"rule": at_least("self.maxQueuedBytes", "1Ki"), "message": "sessions.maxQueuedBytes must be at least 1Ki: a session could queue nothing"},
])))]
pub struct Sessions {
    /// Expiry of a session whose MQTT 5 client set CleanStart 0 and no Session Expiry Interval; absent: 2h or expiryMax, whichever is less. 0s takes the specification's word: it ends with the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiry_when_unset: Option<Time>,
    /// Upper bound of every session's expiry, and the expiry of a 3.1.1 session.
    pub expiry_max: Time,
    /// Messages that wait for one session.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_queued_messages: u32,
    /// Bytes that wait for one session.
    pub max_queued_bytes: Quantity,
    /// What a full queue does: RejectNewest keeps what it holds and refuses the new message.
    pub queue_full_policy: QueueFullPolicy,
    /// Subscriptions of one session.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_subscriptions: u32,
}

impl Default for Sessions {
    fn default() -> Self {
        let broker = config::Sessions::default();
        Self {
            expiry_when_unset: None,
            expiry_max: broker.expiry_max.into(),
            max_queued_messages: broker.max_queued_messages,
            max_queued_bytes: Quantity::new("64Mi"),
            queue_full_policy: QueueFullPolicy::RejectNewest,
            max_subscriptions: broker.max_subscriptions,
        }
    }
}

/// What a full queue does with a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum QueueFullPolicy {
    #[default]
    RejectNewest,
}

/// When a node outside the cluster stops serving.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": between("self.lease", "3s", "60s"),
     "message": "fence.lease must be between 3s and 60s: a shorter lease would fence healthy nodes at every election"},
    {"rule": between("self.closeClientsAfter", "1s", "10m"),
     "message": "fence.closeClientsAfter must be between 1s and 10m: sooner, every hiccup closes all clients; later, wills and takeovers wait for it"},
])))]
pub struct Fence {
    /// A node may serve this long after it was last in touch with a majority; 3s or more.
    pub lease: Time,
    /// A node whose lease lapsed closes its clients after this time, so that they go where they are served.
    pub close_clients_after: Time,
}

impl Default for Fence {
    fn default() -> Self {
        let broker = config::Fence::default();
        Self { lease: broker.lease.into(), close_clients_after: broker.close_clients_after.into() }
    }
}

/// The disk of each node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": "self.size == oldSelf.size && self.accessMode == oldSelf.accessMode && has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)",
     "message": "storage.size, accessMode and storageClassName cannot change in this version: grow the claims themselves, or create another cluster"},
    {"rule": at_least("self.size", "64Mi"), "message": "storage.size must be at least 64Mi"},
])))]
pub struct Storage {
    /// Size of a node's volume, at least 64Mi.
    pub size: Quantity,
    /// Part of the volume to keep free. Not enforced yet: the broker stores new messages below it.
    pub reserve: Percent,
    /// How the volume is attached; ReadWriteOncePod where the driver is CSI.
    pub access_mode: AccessMode,
    /// StorageClass; absent: the default one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = json!([
        {"rule": "self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')",
         "message": "storage.storageClassName must be the name of a StorageClass: lower case letters, digits, dashes and dots"}
    ])))]
    pub storage_class_name: Option<String>,
    /// What happens to the claims when the MqttCluster is deleted.
    pub deletion_policy: DeletionPolicy,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            size: Quantity::new("10Gi"),
            reserve: Percent::new("10%"),
            access_mode: AccessMode::ReadWriteOnce,
            storage_class_name: None,
            deletion_policy: DeletionPolicy::Retain,
        }
    }
}

/// How a volume is attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessMode {
    #[default]
    ReadWriteOnce,
    ReadWriteOncePod,
}

impl AccessMode {
    /// As a claim spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadWriteOnce => "ReadWriteOnce",
            Self::ReadWriteOncePod => "ReadWriteOncePod",
        }
    }
}

/// What happens to claims.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    #[default]
    Retain,
    Delete,
}

/// How pods are replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rollout {
    /// How a node that stops sends its clients away.
    pub drain: Drain,
}

/// How a node that stops sends its clients away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": between("self.deadline", "0s", "1h"),
     "message": "rollout.drain.deadline must not exceed 1h: rollouts and drains of machines wait for it"}
])))]
pub struct Drain {
    /// Clients sent away per second.
    #[schemars(range(min = 1, max = 100_000))]
    pub rate: u32,
    /// After this, what is left is closed at once; a pod has a minute more to stop.
    pub deadline: Time,
}

impl Default for Drain {
    fn default() -> Self {
        let broker = config::Drain::default();
        Self { rate: broker.rate, deadline: broker.deadline.into() }
    }
}

/// Access that is not a user's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": "self.anonymous || size(self.anonymousRules) == 0", "message": "anonymousRules need anonymous: true"},
    {"rule": "!self.anonymousRules.exists(r, r.topics.exists(t, t.contains('{clientId}') || t.contains('{username}')))",
     "message": "anonymousRules cannot use {clientId} or {username}: an anonymous client could choose its own topics"},
])))]
pub struct Acl {
    /// Admits clients without user name and password. They may do what anonymousRules allow, and nothing else.
    pub anonymous: bool,
    /// What anonymous clients may do.
    #[schemars(length(max = 32))]
    pub anonymous_rules: Vec<AclRule>,
}

/// Alerts that the operator evaluates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Alerts {
    /// Evaluate the built-in alerts: condition Alerting, Events, status.alerts. Off where Prometheus does it all.
    pub builtin: bool,
}

impl Default for Alerts {
    fn default() -> Self {
        Self { builtin: true }
    }
}

/// Processor and memory of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": fits("self.requests.memory", 1, "self.limits.memory"),
     "message": "resources.requests.memory must not exceed resources.limits.memory, which is 1Gi unless you set it"},
    {"rule": fits("self.requests.cpu", 1, "self.limits.cpu"),
     "message": "resources.requests.cpu must not exceed resources.limits.cpu"},
    {"rule": at_least("self.limits.memory", "128Mi"), "message": "resources.limits.memory must be at least 128Mi"},
    {"rule": at_least("self.requests.memory", "1Mi"), "message": "resources.requests.memory must be at least 1Mi"},
    {"rule": some_cores("self.limits.cpu"), "message": "resources.limits.cpu must be more than 0"},
    {"rule": some_cores("self.requests.cpu"), "message": "resources.requests.cpu must be more than 0"},
])))]
pub struct Resources {
    /// What the scheduler sets aside.
    pub requests: ResourceList,
    /// What the node may not exceed.
    pub limits: ResourceList,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            requests: ResourceList { cpu: Some(Cpu::new("100m")), memory: Some(Quantity::new("256Mi")) },
            limits: ResourceList { cpu: None, memory: Some(Quantity::new("1Gi")) },
        }
    }
}

/// Amounts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceList {
    /// Cores, such as 500m or 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Bytes, such as 512Mi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
}
