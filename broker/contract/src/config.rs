//! The broker's configuration file: the operator (or `covey local`) writes it, every broker of a cluster reads the same one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::names;

/// `broker.yaml`. Unknown fields are refused; absent ones take the default that the CRD documents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    pub cluster: Cluster,
    #[serde(default)]
    pub listeners: Vec<Listener>,
    #[serde(default)]
    pub peers: Peers,
    #[serde(default)]
    pub mqtt: Mqtt,
    #[serde(default)]
    pub sessions: Sessions,
    #[serde(default)]
    pub fence: Fence,
    #[serde(default)]
    pub storage: Storage,
    #[serde(default)]
    pub raft: Raft,
    #[serde(default)]
    pub paths: Paths,
    #[serde(default)]
    pub drain: Drain,
    /// Clients without user name and password are admitted (with the rules of user name "").
    #[serde(default)]
    pub anonymous: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Cluster {
    /// Name of the `MqttCluster`.
    pub name: String,
    /// UID of the `MqttCluster`: certificates carry it.
    pub uid: String,
    /// The birth certificate, once there is one: a disk of another cluster is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Ordinals 0..replicas exist.
    pub replicas: u32,
    /// Shards of durable sessions; fixed at formation.
    #[serde(default = "default_shards")]
    pub shards: u16,
}

fn default_shards() -> u16 {
    8
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Listener {
    pub name: String,
    #[serde(default)]
    pub protocol: Protocol,
    /// TCP port of ordinal 0; the node listens on `port + ordinal * peers.portStep`.
    pub port: u16,
}

/// Transport of a listener. TLS and WebSocket follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Mqtt,
}

/// How nodes find each other: `host` and ports, with `{ordinal}` in the host replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Peers {
    pub host: String,
    /// Address to listen on, for every port of the node.
    pub bind: String,
    pub port: u16,
    pub admin_port: u16,
    pub http_port: u16,
    /// Added to every port once per ordinal (0 in Kubernetes; 1 where nodes share an address).
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
    /// Host of a peer.
    pub fn host_of(&self, ordinal: u32) -> String {
        self.host.replace("{ordinal}", &ordinal.to_string())
    }

    /// The port of a node, given the port of ordinal 0. Saturates at 65,535.
    pub fn port_of(&self, port: u16, ordinal: u32) -> u16 {
        let step = u32::from(self.port_step).saturating_mul(ordinal);
        u16::try_from(u32::from(port).saturating_add(step)).unwrap_or(u16::MAX)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Mqtt {
    pub max_connections: u32,
    /// Bytes; at most 16 MiB.
    pub max_packet_size: u32,
    /// Publishes at QoS 1 and 2 that a client may have unacknowledged.
    pub receive_maximum: u16,
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

/// What a full inbox does with a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueFullPolicy {
    /// What is queued stays promised; the new message is refused or counted as missed.
    #[default]
    RejectNewest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Sessions {
    /// Expiry of an MQTT 5 session with CleanStart 0, a client id of its own and no Session Expiry Interval.
    #[serde(with = "seconds")]
    pub expiry_when_unset: Duration,
    /// Upper bound of every session's expiry, and the expiry of a 3.1.1 session with CleanSession 0.
    #[serde(with = "seconds")]
    pub expiry_max: Duration,
    pub max_queued_messages: u32,
    pub max_queued_bytes: u64,
    pub queue_full_policy: QueueFullPolicy,
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

/// When a node outside the cluster stops serving.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Fence {
    /// L: a node may serve this long after it sent the renewal that was granted.
    #[serde(with = "seconds")]
    pub lease: Duration,
    /// A node whose lease lapsed closes its clients after this time.
    #[serde(with = "seconds")]
    pub close_clients_after: Duration,
}

impl Default for Fence {
    fn default() -> Self {
        Self { lease: Duration::from_secs(3), close_clients_after: Duration::from_secs(5) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Storage {
    /// Percent of the volume below which nothing new is stored; never less than 512 MiB unless the volume is smaller than 5 GiB.
    pub reserve_percent: u8,
    /// Lower bound of the reserve in bytes.
    pub reserve_min_bytes: u64,
}

impl Default for Storage {
    fn default() -> Self {
        Self { reserve_percent: 10, reserve_min_bytes: 512 << 20 }
    }
}

/// Raft timing, in milliseconds in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Raft {
    #[serde(with = "milliseconds")]
    pub heartbeat: Duration,
    #[serde(with = "milliseconds")]
    pub election_min: Duration,
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Paths {
    pub data: PathBuf,
    pub access: PathBuf,
    pub peer_tls: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { data: names::PATH_DATA.into(), access: names::PATH_ACCESS.into(), peer_tls: names::PATH_PEER_TLS.into() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Drain {
    /// Clients sent away per second on SIGTERM.
    pub rate: u32,
    /// After this, what is left is closed at once.
    #[serde(with = "seconds")]
    pub deadline: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self { rate: 200, deadline: Duration::from_secs(30) }
    }
}

/// Why a configuration file was refused.
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
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
        Self::parse(&text)
    }

    /// Parses and checks the text of a file.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let config: Self = serde_saphyr::from_str(text).map_err(|error| Error::Parse(error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// What no type can say: see the bounds in the messages.
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
        // The death of the meta leader must fence nobody: detection and election, twice, and one renewal fit in a lease.
        if self.fence.lease < self.raft.election_max * 4 + self.fence.lease / 6 {
            return Err(Error::Invalid(
                "fence.lease must be at least 4 x raft.electionMax plus one renewal (lease / 6)",
            ));
        }
        Ok(())
    }

    /// The file's text.
    pub fn to_yaml(&self) -> Result<String, Error> {
        serde_saphyr::to_string(self).map_err(|error| Error::Parse(error.to_string()))
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
    fn unknown_fields_are_refused() {
        assert!(Config::parse(&format!("{}surprise: 1\n", minimal())).is_err());
    }

    #[test]
    fn a_lease_shorter_than_two_elections_is_refused() {
        let error = Config::parse(&format!("{}fence: {{lease: 1}}\n", minimal())).unwrap_err();
        assert!(error.to_string().contains("fence.lease"), "{error}");
    }
}
