//! `MqttCluster`: a clustered MQTT broker. A field is added only together with its implementation.

#![expect(clippy::duplicated_attributes, reason = "every printer column has a name, a type and a path")]

use std::collections::BTreeMap;

use covey_contract::config;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::format::{OBJECT, PORT};
use crate::network::{NetworkPolicy, sources};
use crate::placement::Placement;
use crate::pod::{Image, Resources};
use crate::rollout::Rollout;
use crate::rule::AclRule;
use crate::status::MqttClusterStatus;
use crate::value::{Percent, QUANTITY, Quantity, TIME, Time, at_least, between, fits};

/// Desired state of the cluster.
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
    doc = "A clustered MQTT broker that keeps every message it acknowledges. All fields have defaults; decide on replicas and storage.size.",
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
     "message": "replicas must be odd: an even node adds no fault tolerance; set allowEvenReplicas: true if you want the capacity"},
    {"rule": "oldSelf.replicas < 3 || self.replicas >= 3",
     "message": "replicas cannot go below 3 again: fewer nodes cannot hold three copies"},
    {"rule": fits(QUANTITY, "self.mqtt.maxRetainedBytes", 2, "self.resources.limits.memory"),
     "message": "mqtt.maxRetainedBytes must not exceed half of resources.limits.memory: every node keeps all retained messages in memory"},
    {"rule": "self.networkPolicy.enabled || !has(self.networkPolicy.monitoringFrom) && self.listeners.all(listener, !has(listener.from))",
     "message": "listeners[].from and networkPolicy.monitoringFrom need networkPolicy.enabled: true"},
])))]
pub struct MqttClusterSpec {
    /// Number of nodes, 1 to 99; default 3. Never 2; odd unless allowEvenReplicas is true. From 3 on it can grow and shrink, but not below 3. When it shrinks, the nodes with the highest ordinals leave one at a time, after their sessions have moved.
    #[schemars(range(min = 1, max = 99))]
    pub replicas: u32,
    /// Permits 4, 6, ... nodes. An even node adds capacity but no fault tolerance. Default false.
    pub allow_even_replicas: bool,
    /// Image of the brokers. Default: the operator's own image. A change replaces the pods one at a time.
    #[schemars(extend("x-kubernetes-validations" = json!([
        {"rule": "has(self.repository) || !has(self.tag) && !has(self.digest)", "message": "image.tag and image.digest need image.repository"}
    ])))]
    pub image: Image,
    /// Stops formation, rollouts and changes of child objects. Brokers, access changes, disruption budget, alerts and status go on. Default false.
    pub paused: bool,
    /// Ports for MQTT clients, 1 to 8, with unique names and numbers. A change rolls the pods, except of `from`.
    #[schemars(length(min = 1, max = 8), extend(
        "x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"],
        "x-kubernetes-validations" = json!([
            {"rule": "self.all(a, self.exists_one(b, b.port == a.port))", "message": "every listener needs a unique port"}
        ])
    ))]
    pub listeners: Vec<Listener>,
    /// The Service that clients connect to. It has the name of the MqttCluster. A change does not restart pods.
    pub service: Service,
    /// Limits of MQTT connections and messages. A change rolls the pods.
    pub mqtt: Mqtt,
    /// Limits of sessions and their queues. A change rolls the pods; a session gets it when its client next connects.
    pub sessions: Sessions,
    /// Number of shards (Raft groups) of durable sessions, 1 to 128; default 8. Cannot change. Use fewer with few CPU cores.
    #[schemars(range(min = 1, max = 128), extend("x-kubernetes-validations" = json!([
        {"rule": "self == oldSelf", "message": "shards cannot change after creation: create another cluster"}
    ])))]
    pub shards: u16,
    /// When a node that has lost contact with the majority stops serving clients. A change rolls the pods.
    pub fence: Fence,
    /// The volume of each node.
    pub storage: Storage,
    /// When and how pods are stopped and replaced.
    pub rollout: Rollout,
    /// Access of clients that connect without a user name.
    pub acl: Acl,
    /// Alerts that the operator evaluates from the nodes' metrics.
    pub alerts: Alerts,
    /// CPU and memory of each broker container. A change rolls the pods.
    pub resources: Resources,
    /// Where the pods are scheduled. A change rolls the pods.
    pub placement: Placement,
    /// From where the ports of the pods can be reached. A change does not restart pods.
    pub network_policy: NetworkPolicy,
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
            placement: Placement::default(),
            network_policy: NetworkPolicy::default(),
        }
    }
}

/// A port that MQTT clients connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Unique name of the port: at most 15 lower case letters, digits and single dashes.
    #[schemars(length(min = 1, max = 15), extend("x-kubernetes-validations" = json!([
        {"rule": format!("self.matches('{PORT}') && !self.contains('--')"),
         "message": "a listener's name is a port name: lower case letters, digits and single dashes, a letter first"},
        {"rule": "!(self in ['peer', 'admin', 'http'])", "message": "peer, admin and http are names of the broker's own ports"}
    ])))]
    pub name: String,
    /// Protocol of the port. The only value, mqtt, is MQTT 5.0 and 3.1.1 over TCP without TLS.
    #[serde(default)]
    pub protocol: Protocol,
    /// Unique TCP port of the pods and of the Service, 1024 to 65535.
    #[schemars(range(min = 1024, max = 65535), extend("x-kubernetes-validations" = json!([
        {"rule": "!(self in [7883, 7884, 9464])", "message": "7883, 7884 and 9464 are the broker's own ports"}
    ])))]
    pub port: u16,
    /// Sources that may connect to this port, 1 to 16, with the fields of a NetworkPolicyPeer: podSelector, namespaceSelector, ipBlock. Absent: anyone. Enforced by the NetworkPolicy of spec.networkPolicy. A change does not restart pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "sources")]
    pub from: Option<Vec<Map<String, Value>>>,
}

impl Default for Listener {
    fn default() -> Self {
        Self { name: "mqtt".into(), protocol: Protocol::Mqtt, port: covey_contract::names::PORT_MQTT, from: None }
    }
}

/// Transport of a listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Mqtt,
}

/// The Service that clients connect to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": "!has(self.externalTrafficPolicy) || self.type != 'ClusterIP'",
     "message": "externalTrafficPolicy needs service.type NodePort or LoadBalancer"}
])))]
pub struct Service {
    /// How the Service is exposed. Default ClusterIP.
    #[serde(rename = "type")]
    pub type_: ServiceType,
    /// Annotations of the Service, for example for a load balancer. At most 64.
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
    /// Local preserves the client's source address. Needs type NodePort or LoadBalancer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<ExternalTrafficPolicy>,
}

/// How a Service is exposed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    NodePort,
    LoadBalancer,
}

/// Which brokers take traffic from outside the Kubernetes cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExternalTrafficPolicy {
    Cluster,
    Local,
}

/// Limits of MQTT connections and messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": at_least("self.maxPacketSize", "1Ki"), "message": "mqtt.maxPacketSize must be between 1Ki and 16Mi"},
    {"rule": format!("!string(self.maxPacketSize).matches('{QUANTITY}') || quantity(string(self.maxPacketSize)).compareTo(quantity('16Mi')) <= 0"),
     "message": "mqtt.maxPacketSize must be between 1Ki and 16Mi"}
])))]
pub struct Mqtt {
    /// Client connections that one node accepts, 1 to 1000000; default 20000. Further ones are refused with 0x97.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections_per_node: u32,
    /// Largest MQTT packet in bytes, 1Ki to 16Mi; default 256Ki. A larger one is refused with 0x95.
    pub max_packet_size: Quantity,
    /// QoS 1 and 2 publishes that a client may have unacknowledged (Receive Maximum), 1 to 65535; default 64.
    #[schemars(range(min = 1, max = 65535))]
    pub receive_maximum: u16,
    /// Topic aliases that a client may use, 0 to 65535; default 32; 0 disables them.
    #[schemars(range(min = 0, max = 65535))]
    pub topic_alias_maximum: u16,
    /// Bytes of retained messages in the cluster; default 256Mi, at most half of resources.limits.memory. Every node holds all in memory. Further ones are refused with 0x97.
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
    {"rule": format!("!has(self.expiryWhenUnset) || !self.expiryWhenUnset.matches('{TIME}') || !self.expiryMax.matches('{TIME}') || duration(self.expiryWhenUnset) <= duration(self.expiryMax)"),
     "message": "sessions.expiryWhenUnset must not exceed sessions.expiryMax: lower it, or leave it out to get 2h or expiryMax, whichever is less"},
    {"rule": at_least("self.maxQueuedBytes", "1Ki"), "message": "sessions.maxQueuedBytes must be at least 1Ki: a session could queue nothing"},
])))]
pub struct Sessions {
    /// Expiry of a session whose MQTT 5 client sets Clean Start 0 and no Session Expiry Interval. Default: 2h, or expiryMax if that is less. 0s ends the session with its connection, as MQTT 5 specifies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiry_when_unset: Option<Time>,
    /// Upper bound of every session's expiry, and the expiry of MQTT 3.1.1 sessions with Clean Session 0. Default 168h.
    pub expiry_max: Time,
    /// Messages queued for one session, 1 to 10000000; default 100000.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_queued_messages: u32,
    /// Bytes queued for one session; default 64Mi.
    pub max_queued_bytes: Quantity,
    /// What happens to a message for a full queue. RejectNewest, the only value, keeps the queue and rejects the message.
    pub queue_full_policy: QueueFullPolicy,
    /// Subscriptions of one session, 1 to 100000; default 1000. A further one is refused with 0x97.
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

/// What happens to a message for a full queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum QueueFullPolicy {
    #[default]
    RejectNewest,
}

/// When a node that has lost contact with the majority stops serving clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": between("self.lease", "3s", "60s"),
     "message": "fence.lease must be between 3s and 60s: a shorter lease would fence healthy nodes at every election"},
    {"rule": between("self.closeClientsAfter", "1s", "10m"),
     "message": "fence.closeClientsAfter must be between 1s and 10m: with less, every short outage closes all clients; with more, wills and takeovers are delayed"},
])))]
pub struct Fence {
    /// Time that a node may serve clients after its last contact with the majority, 3s to 60s; default 3s.
    pub lease: Time,
    /// Time from the end of the lease until the node closes its client connections, 1s to 10m; default 5s.
    pub close_clients_after: Time,
}

impl Default for Fence {
    fn default() -> Self {
        let broker = config::Fence::default();
        Self { lease: broker.lease.into(), close_clients_after: broker.close_clients_after.into() }
    }
}

/// The volume of each node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": at_least("self.size", "64Mi"), "message": "storage.size must be at least 64Mi"},
])))]
pub struct Storage {
    /// Size of each node's volume in bytes, at least 64Mi; default 10Gi. Cannot change once the cluster is formed.
    pub size: Quantity,
    /// Part of the volume to keep free, 0% to 99%; default 10%. Not enforced yet: the broker stores new messages below it. A change rolls the pods.
    pub reserve: Percent,
    /// Access mode of the volume claims; default ReadWriteOnce. ReadWriteOncePod needs a CSI driver. Cannot change once the cluster is formed.
    pub access_mode: AccessMode,
    /// StorageClass of the volume claims. Default: the default class of the Kubernetes cluster. Cannot change once the cluster is formed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = json!([
        {"rule": format!("self.matches('{OBJECT}')"),
         "message": "storage.storageClassName must be the name of a StorageClass: lower case letters, digits, dashes and dots"}
    ])))]
    pub storage_class_name: Option<String>,
    /// Whether the volume claims are kept (Retain, the default) or deleted (Delete) when the MqttCluster is deleted.
    pub deletion_policy: DeletionPolicy,
    /// Whether the volume claim of a node that has left, because replicas was lowered, is kept (Retain, the default) or deleted (Delete). Its sessions have moved to other nodes before. A node that comes back on a kept volume empties it first.
    pub scale_down_policy: ScaleDownPolicy,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            size: Quantity::new("10Gi"),
            reserve: Percent::new("10%"),
            access_mode: AccessMode::ReadWriteOnce,
            storage_class_name: None,
            deletion_policy: DeletionPolicy::Retain,
            scale_down_policy: ScaleDownPolicy::Retain,
        }
    }
}

/// Access mode of a volume claim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessMode {
    #[default]
    ReadWriteOnce,
    ReadWriteOncePod,
}

impl AccessMode {
    /// The name of the mode in a PersistentVolumeClaim.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadWriteOnce => "ReadWriteOnce",
            Self::ReadWriteOncePod => "ReadWriteOncePod",
        }
    }
}

/// What happens to the volume claims when the cluster is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    #[default]
    Retain,
    Delete,
}

/// What happens to the volume claim of a node that has left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ScaleDownPolicy {
    #[default]
    Retain,
    Delete,
}

/// Access of clients that connect without a user name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": "self.anonymous || size(self.anonymousRules) == 0", "message": "anonymousRules need anonymous: true"},
    {"rule": "!self.anonymousRules.exists(r, r.topics.exists(t, t.contains('{clientId}') || t.contains('{username}')))",
     "message": "anonymousRules cannot use {clientId} or {username}: an anonymous client could choose its own topics"},
])))]
pub struct Acl {
    /// Accepts clients without user name and password, limited to what anonymousRules allow. Default false. A change rolls the pods.
    pub anonymous: bool,
    /// Access rules of anonymous clients, at most 32. A change does not restart pods.
    #[schemars(length(max = 32))]
    pub anonymous_rules: Vec<AclRule>,
}

/// Alerts that the operator evaluates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Alerts {
    /// Evaluates the built-in alerts and reports them in condition Alerting, Events and status.alerts. Default true; false if Prometheus alone evaluates alerts.
    pub builtin: bool,
}

impl Default for Alerts {
    fn default() -> Self {
        Self { builtin: true }
    }
}
