//! The broker's configuration file. The operator or `covey local` writes it, and every broker of a cluster reads the
//! same one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::names;

/// Content of `broker.yaml`. Unknown fields are refused; absent ones have their default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Identity of the cluster.
    pub cluster: Cluster,
    /// Ports for clients.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// Addresses and ports of the nodes.
    #[serde(default)]
    pub peers: Peers,
    /// Limits of the protocol.
    #[serde(default)]
    pub mqtt: Mqtt,
    /// Limits of sessions.
    #[serde(default)]
    pub sessions: Sessions,
    /// Lease times.
    #[serde(default)]
    pub fence: Fence,
    /// Reserve of the data volume.
    #[serde(default)]
    pub storage: Storage,
    /// Raft timing.
    #[serde(default)]
    pub raft: Raft,
    /// Directories.
    #[serde(default)]
    pub paths: Paths,
    /// Disconnection of clients when the broker stops.
    #[serde(default)]
    pub drain: Drain,
    /// Whether clients without user name and password are admitted, with the rules of the user "".
    #[serde(default)]
    pub anonymous: bool,
}

/// Identity of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Cluster {
    /// Name of the `MqttCluster`.
    pub name: String,
    /// UID of the `MqttCluster`, which the URIs of certificates contain.
    pub uid: String,
    /// Cluster id (UUID), set by `covey local` after formation and never in Kubernetes. A node refuses a disk of another
    /// cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Number of nodes that a node with an empty disk asks to be admitted, with the ordinals `0..replicas`. In Kubernetes
    /// at most 3, whatever the size of the cluster is: these nodes every cluster has.
    pub replicas: u32,
    /// Number of shards of durable sessions. It cannot change after formation.
    #[serde(default = "default_shards")]
    pub shards: u16,
}

fn default_shards() -> u16 {
    8
}

/// A port for clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Listener {
    /// Name, used as the label `listener` of metrics.
    pub name: String,
    /// Transport.
    #[serde(default)]
    pub protocol: Protocol,
    /// TCP port of ordinal 0; the node listens on `port + ordinal * peers.portStep`.
    pub port: u16,
}

/// Transport of a listener. TLS and WebSocket are not supported yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Mqtt,
}

/// Addresses and ports of the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Peers {
    /// Host name of a node; `{ordinal}` is replaced.
    pub host: String,
    /// IP address that every port of the node is bound to.
    pub bind: String,
    /// Port of ordinal 0 for other brokers.
    pub port: u16,
    /// Port of ordinal 0 for the operator.
    pub admin_port: u16,
    /// Port of ordinal 0 for HTTP.
    pub http_port: u16,
    /// Distance between the ports of two consecutive ordinals: 0 in Kubernetes, 1 if nodes share an address.
    pub port_step: u16,
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            bind: "127.0.0.1".into(),
            port: names::PORT_PEER,
            admin_port: names::PORT_ADMIN,
            http_port: names::PORT_HTTP,
            port_step: 1,
        }
    }
}

impl Peers {
    /// Returns the host name of a peer.
    pub fn host_of(&self, ordinal: u32) -> String {
        self.host.replace("{ordinal}", &ordinal.to_string())
    }

    /// Returns the port of a node, given the port of ordinal 0. Saturates at 65,535.
    pub fn port_of(&self, port: u16, ordinal: u32) -> u16 {
        let step = u32::from(self.port_step).saturating_mul(ordinal);
        u16::try_from(u32::from(port).saturating_add(step)).unwrap_or(u16::MAX)
    }
}

/// Limits of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Mqtt {
    /// Connected clients per node.
    pub max_connections: u32,
    /// Largest packet in bytes; at most 16 MiB.
    pub max_packet_size: u32,
    /// Publishes at QoS 1 and 2 that a client may have unacknowledged.
    pub receive_maximum: u16,
    /// Highest topic alias that a client may use; 0 means none.
    pub topic_alias_maximum: u16,
    /// Bytes of retained messages in the cluster.
    pub max_retained_bytes: u64,
}

impl Default for Mqtt {
    fn default() -> Self {
        Self {
            max_connections: 20_000,
            max_packet_size: 256 * 1024,
            receive_maximum: 64,
            topic_alias_maximum: 32,
            max_retained_bytes: 256 << 20,
        }
    }
}

/// Policy for a message whose session has a full queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueFullPolicy {
    /// Queued messages are kept; the new message is not stored and counts as missed.
    #[default]
    RejectNewest,
}

/// Limits of sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Sessions {
    /// Expiry of an MQTT 5 session with Clean Start 0, a client id of its own and no Session Expiry Interval; in
    /// seconds.
    #[serde(with = "seconds")]
    pub expiry_when_unset: Duration,
    /// Upper bound of every session expiry, and the expiry of a 3.1.1 session with Clean Session 0; in seconds.
    #[serde(with = "seconds")]
    pub expiry_max: Duration,
    /// Messages in the queue of one session.
    pub max_queued_messages: u32,
    /// Bytes in the queue of one session.
    pub max_queued_bytes: u64,
    /// Policy for a message whose session has a full queue.
    pub queue_full_policy: QueueFullPolicy,
    /// Subscriptions of one session.
    pub max_subscriptions: u32,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            expiry_when_unset: Duration::from_hours(2),
            expiry_max: Duration::from_hours(168),
            max_queued_messages: 100_000,
            max_queued_bytes: 64 << 20,
            queue_full_policy: QueueFullPolicy::RejectNewest,
            max_subscriptions: 1000,
        }
    }
}

/// Lease times: when a node that lost contact to the majority stops serving.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Fence {
    /// Duration of a lease in seconds, counted from the time at which the node sent the granted renewal.
    #[serde(with = "seconds")]
    pub lease: Duration,
    /// Time in seconds after the end of its lease at which a node closes its clients.
    #[serde(with = "seconds")]
    pub close_clients_after: Duration,
}

impl Default for Fence {
    fn default() -> Self {
        Self { lease: Duration::from_secs(3), close_clients_after: Duration::from_secs(5) }
    }
}

/// Reserve of the data volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Storage {
    /// Free space below which the volume counts as low, in percent of the volume.
    pub reserve_percent: u8,
    /// Lower bound of that space in bytes; it does not apply to volumes below 5 GiB.
    pub reserve_min_bytes: u64,
}

impl Default for Storage {
    fn default() -> Self {
        Self { reserve_percent: 10, reserve_min_bytes: 512 << 20 }
    }
}

/// Raft timing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Raft {
    /// Interval of heartbeats in milliseconds.
    #[serde(with = "milliseconds")]
    pub heartbeat: Duration,
    /// Shortest election timeout in milliseconds.
    #[serde(with = "milliseconds")]
    pub election_min: Duration,
    /// Longest election timeout in milliseconds.
    #[serde(with = "milliseconds")]
    pub election_max: Duration,
}

impl Default for Raft {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(75),
            election_min: Duration::from_millis(250),
            election_max: Duration::from_millis(450),
        }
    }
}

/// Directories of a broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Paths {
    /// Data directory.
    pub data: PathBuf,
    /// Mounted access Secret.
    pub access: PathBuf,
    /// Mounted peer certificate.
    pub peer_tls: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { data: names::PATH_DATA.into(), access: names::PATH_ACCESS.into(), peer_tls: names::PATH_PEER_TLS.into() }
    }
}

/// Disconnection of clients when the broker stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Drain {
    /// Clients that are disconnected per second.
    pub rate: u32,
    /// Time in seconds after which the remaining clients are disconnected at once.
    #[serde(with = "seconds")]
    pub deadline: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        // As many clients as a node takes by default, 20,000, leave within the deadline.
        Self { rate: 200, deadline: Duration::from_mins(2) }
    }
}

/// Reason why a configuration file is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to read the configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("failed to parse the configuration: {0}")]
    Parse(String),
    #[error("the configuration is not usable: {0}")]
    Invalid(&'static str),
}

impl Config {
    /// Reads and checks a file. Blocks on file I/O.
    ///
    /// # Errors
    /// Fails if the file cannot be read or does not pass [`Config::parse`].
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
        Self::parse(&text)
    }

    /// Parses and checks the text of a file.
    ///
    /// # Errors
    /// Fails if the text is no YAML of this structure or does not pass [`Config::check`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let config: Self = serde_saphyr::from_str(text).map_err(|error| Error::Parse(error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Checks the bounds that the types do not express.
    ///
    /// # Errors
    /// Returns the bound that does not hold.
    pub fn check(&self) -> Result<(), Error> {
        if self.cluster.replicas == 0 || self.cluster.shards == 0 {
            return Err(Error::Invalid("cluster.replicas and cluster.shards must be at least 1"));
        }
        if self.mqtt.max_packet_size > 16 << 20 {
            return Err(Error::Invalid("mqtt.maxPacketSize must not exceed 16 MiB"));
        }
        if self.raft.heartbeat * 2 > self.raft.election_min || self.raft.election_min >= self.raft.election_max {
            return Err(Error::Invalid("raft: 2 x heartbeat <= electionMin < electionMax must hold"));
        }
        // Leases must survive the loss of the meta leader: two rounds of detection and election and one renewal fit in
        // one.
        if self.fence.lease < self.raft.election_max * 4 + self.fence.lease / 6 {
            return Err(Error::Invalid(
                "fence.lease must be at least 4 x raft.electionMax plus one renewal (lease / 6)",
            ));
        }
        Ok(())
    }

    /// Returns the text of the file. It has no field that has its default value: a broker refuses fields that it does not
    /// know, and one of an earlier version shall read the file of a later operator until somebody uses a new field.
    ///
    /// # Errors
    /// Fails if the configuration cannot be serialized.
    pub fn to_yaml(&self) -> Result<String, Error> {
        let parse = |error: serde_json::Error| Error::Parse(error.to_string());
        let default: Self = serde_json::from_value(serde_json::json!({"cluster": self.cluster})).map_err(parse)?;
        let mut text = serde_json::to_value(self).map_err(parse)?;
        let mut default = serde_json::to_value(default).map_err(parse)?;
        // The cluster has no default.
        default.as_object_mut().map(|fields| fields.remove("cluster"));
        remove_defaults(&mut text, &default);
        serde_saphyr::to_string(&text).map_err(|error| Error::Parse(error.to_string()))
    }
}

/// Removes every field of `value` that has the same value in `default`.
fn remove_defaults(value: &mut serde_json::Value, default: &serde_json::Value) {
    let (Some(fields), Some(defaults)) = (value.as_object_mut(), default.as_object()) else { return };
    fields.retain(|name, field| defaults.get(name) != Some(field));
    for (name, field) in fields {
        if let Some(default) = defaults.get(name) {
            remove_defaults(field, default);
        }
    }
}

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.as_secs())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_secs)
    }
}

mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> String {
        "cluster: {name: prod, uid: u-1, replicas: 3}\nlisteners: [{name: mqtt, port: 1883}]\n".into()
    }

    #[test]
    fn defaults_are_usable_and_survive_a_round_trip() {
        let config = Config::parse(&minimal()).unwrap();
        assert_eq!(config.cluster.shards, 8);
        assert_eq!(Config::parse(&config.to_yaml().unwrap()).unwrap(), config);
    }

    #[test]
    fn the_file_names_only_what_differs_from_the_defaults() {
        let changed = "mqtt: {maxRetainedBytes: 77}\ndrain: {rate: 7}\nanonymous: true\n";
        let config = Config::parse(&format!("{}{changed}", minimal())).unwrap();
        let text = config.to_yaml().unwrap();
        let fields: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        let mut names: Vec<&String> = fields.as_object().unwrap().keys().collect();
        names.sort();
        assert_eq!(names, ["anonymous", "cluster", "drain", "listeners", "mqtt"], "{text}");
        assert_eq!(fields["mqtt"], serde_json::json!({"maxRetainedBytes": 77}));
        assert_eq!(fields["drain"], serde_json::json!({"rate": 7}));
        assert_eq!(Config::parse(&text).unwrap(), config);
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(Config::parse(&format!("{}surprise: 1\n", minimal())).is_err());
    }

    #[test]
    fn a_lease_shorter_than_two_elections_is_refused() {
        let error = Config::parse(&format!("{}fence: {{lease: 1}}\n", minimal())).unwrap_err();
        assert!(error.to_string().contains("fence.lease"), "{error}");
    }
}
