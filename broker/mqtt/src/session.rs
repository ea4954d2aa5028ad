//! What a connection and the node say to each other about one session. `connection` calls it, `node` implements it; tests
//! put a fake behind it.
//!
//! ```text
//!  client <-> connection (protocol, order of acknowledgements)  <-> Sessions/Session (routes, leases, shards, queues)
//! ```

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use covey_codec::packet::PublishProperties;
use covey_codec::{MqttStr, PacketId, ProtocolVersion, QoS, ReasonCode};
use tokio::sync::mpsc;

/// A client that proved who it is and may take its client id.
#[derive(Debug, Clone)]
pub struct ConnectRequest {
    pub client_id: MqttStr,
    /// The server chose the client id: nobody can resume this session.
    pub assigned: bool,
    /// User name; a session belongs to the principal that opened it.
    pub principal: Arc<str>,
    pub version: ProtocolVersion,
    pub clean_start: bool,
    /// Effective session expiry, as CONNACK states it; zero is a transient session.
    pub expiry: Duration,
    /// QoS 1 and 2 messages that may be unacknowledged at the client.
    pub receive_maximum: u16,
    pub will: Option<Message>,
    pub will_delay: Duration,
}

/// An application message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub topic: MqttStr,
    pub payload: Bytes,
    pub qos: QoS,
    pub retain: bool,
    /// Without topic alias and subscription identifiers.
    pub properties: PublishProperties,
}

/// One filter of a SUBSCRIBE that access rules have admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    pub filter: MqttStr,
    pub qos: QoS,
    pub no_local: bool,
    pub retain_as_published: bool,
    /// 0 send retained, 1 only when new, 2 never.
    pub retain_handling: u8,
    pub identifier: Option<u32>,
}

/// A message for the client.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// Absent for QoS 0. The node chose it; it stays the same when the message is sent again.
    pub packet_id: Option<PacketId>,
    pub dup: bool,
    /// QoS, topic, payload, retain flag and properties as the client must see them (expiry already reduced).
    pub message: Message,
    pub subscription_identifiers: Vec<u32>,
}

/// What the node tells a connection.
#[derive(Debug)]
pub enum Event {
    /// Boxed: a channel keeps room for 32 events as soon as it exists.
    Deliver(Box<Delivery>),
    /// A QoS 2 message whose PUBREC was committed before: send PUBREL again ([MQTT-4.3.3-7]).
    Release(PacketId),
    /// The session is no longer this connection's. MQTT 5 clients get DISCONNECT with the reason.
    Close(Close),
}

/// Why the node ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// Another connection took the client id (0x8E).
    TakenOver,
    /// The node left the cluster for longer than `closeClientsAfter` (0x89).
    Fenced,
    /// A task of the session panicked (0x83).
    Failed,
    /// A transient session did not keep up (0x97).
    QueueFull,
}

/// Result of a publish that may be acknowledged now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// Matched sessions have it.
    Delivered,
    /// 0x10.
    NoMatchingSubscribers,
    /// 0x97: no matched session could take it.
    QuotaExceeded,
}

/// How the connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// DISCONNECT with reason 0x00: the will is dropped ([MQTT-3.14.4-3]).
    pub drop_will: bool,
    /// Session expiry of the DISCONNECT, where the client sent one.
    pub expiry: Option<Duration>,
}

/// The node behind all connections.
pub trait Sessions: Send + Sync + 'static {
    type Session: Session;

    /// Whether clients are served at all; if not, CONNECT is answered 0x88 (3.1.1: 3) without looking further.
    fn is_serving(&self) -> bool;

    /// Opens or resumes a session. Waits at most 5 s for the client's shard, then refuses with 0x88. Refusals are reason
    /// codes of CONNACK. Taking a session over ends its former connection, wherever it is.
    fn connect(
        &self,
        request: ConnectRequest,
    ) -> impl Future<Output = Result<Connected<Self::Session>, ReasonCode>> + Send;
}

/// An opened session.
#[derive(Debug)]
pub struct Connected<S> {
    pub session_present: bool,
    /// Filters of a resumed session, to be checked against the rules of today.
    pub filters: Vec<MqttStr>,
    pub session: S,
    pub events: mpsc::Receiver<Event>,
}

/// One session, owned by one connection. Every future that yields an acknowledgement resolves only when the node held its
/// lease after the work was done; when the node is fenced it resolves never, and `Event::Close` ends the connection.
pub trait Session: Send + Sync + 'static {
    /// Begins a publish. Calls are ordered: the order of calls is the order in every inbox. QoS 0 resolves at once.
    /// `packet_id` is given for QoS 2: a resent id runs the same publish.
    fn publish(
        &self,
        message: Message,
        packet_id: Option<PacketId>,
    ) -> impl Future<Output = Published> + Send + 'static;

    /// PUBREL from the client: the packet id is free after this. `false`: it was not in use (0x92).
    fn release(&self, packet_id: PacketId) -> impl Future<Output = bool> + Send + 'static;

    /// One reason code per filter, granted QoS or failure, to be sent as the SUBACK.
    fn subscribe(&self, subscriptions: Vec<Subscription>) -> impl Future<Output = Vec<ReasonCode>> + Send + 'static;

    /// One reason code per filter.
    fn unsubscribe(&self, filters: Vec<MqttStr>) -> impl Future<Output = Vec<ReasonCode>> + Send + 'static;

    /// The client is done with a delivery: PUBACK, PUBCOMP, or PUBREC with an error. Unknown ids are ignored; that the
    /// packet is the one of the delivery's QoS was checked.
    fn acknowledge(&self, packet_id: PacketId);

    /// PUBREC from the client: resolves when it is committed, then PUBREL is sent. `false`: unknown id (0x92).
    fn received(&self, packet_id: PacketId) -> impl Future<Output = bool> + Send + 'static;

    /// The connection is over. Called once, also for a connection that broke.
    fn end(&self, ended: Ended);
}
