//! Interface between a connection and the node for one session. Connections call it, the node implements it, and tests
//! replace it with a fake.
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

/// Request of an authenticated client to open its session.
#[derive(Debug, Clone)]
pub struct ConnectRequest {
    /// Client id of the CONNECT, or the one that the server assigned.
    pub client_id: MqttStr,
    /// Whether the server assigned the client id: such a session cannot be resumed.
    pub assigned: bool,
    /// User name. A session belongs to the principal that opened it.
    pub principal: Arc<str>,
    /// Protocol version of the CONNECT.
    pub version: ProtocolVersion,
    /// Clean Start, or Clean Session of MQTT 3.1.1.
    pub clean_start: bool,
    /// Effective session expiry, as sent in CONNACK; zero is a transient session.
    pub expiry: Duration,
    /// QoS 1 and 2 messages that may be in flight to the client.
    pub receive_maximum: u16,
    /// Will message, published by the node when the connection or the session ends.
    pub will: Option<Message>,
    /// Delay between the end of the connection and the will.
    pub will_delay: Duration,
}

/// An application message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Topic name; a topic alias is already resolved.
    pub topic: MqttStr,
    /// Application message.
    pub payload: Bytes,
    /// Quality of service of this publish or delivery.
    pub qos: QoS,
    /// RETAIN flag.
    pub retain: bool,
    /// Properties without topic alias and subscription identifiers.
    pub properties: PublishProperties,
}

/// One filter of a SUBSCRIBE that the access rules allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Topic filter.
    pub filter: MqttStr,
    /// Maximum QoS of deliveries.
    pub qos: QoS,
    /// No Local option (MQTT 5, 3.8.3.1).
    pub no_local: bool,
    /// Retain As Published option (MQTT 5, 3.8.3.1).
    pub retain_as_published: bool,
    /// Retain Handling option: 0 sends retained messages, 1 only for a new subscription, 2 never.
    pub retain_handling: u8,
    /// Subscription Identifier of the SUBSCRIBE.
    pub identifier: Option<u32>,
}

/// A message for the client.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// Packet id chosen by the node, the same for every resend; `None` for QoS 0.
    pub packet_id: Option<PacketId>,
    /// DUP flag: the message was sent before.
    pub dup: bool,
    /// The message as the client receives it; its expiry is already reduced by the time it waited ([MQTT-3.3.2-6]).
    pub message: Message,
    /// Identifiers of the matching subscriptions.
    pub subscription_identifiers: Vec<u32>,
}

/// Event from the node to a connection.
#[derive(Debug)]
pub enum Event {
    /// Send a message. Boxed, because a channel allocates room for 32 events when it is created.
    Deliver(Box<Delivery>),
    /// Send PUBREL again for a QoS 2 message whose PUBREC was committed on an earlier connection ([MQTT-4.4.0-1]).
    Release(PacketId),
    /// End the connection, which no longer owns the session. MQTT 5 clients get DISCONNECT with the reason.
    Close(Close),
}

/// Reason why the node ends a connection, with the reason code of the DISCONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// Another connection took the client id (0x8E).
    TakenOver,
    /// The node was without a lease for longer than `closeClientsAfter` (0x89).
    Fenced,
    /// A task of the session panicked (0x83).
    Failed,
    /// The queue of a transient session is full (0x97).
    QueueFull,
}

/// Outcome of a publish that may now be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// Matching sessions have the message (0x00).
    Accepted,
    /// No session matched (0x10).
    NoMatchingSubscribers,
    /// No matching session had room for the message, or the retained messages are at their limit (0x97).
    QuotaExceeded,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Whether the will is discarded: the client sent DISCONNECT with reason 0x00 ([MQTT-3.14.4-3]).
    pub drop_will: bool,
    /// Session expiry of the DISCONNECT; `None` if it carried none.
    pub expiry: Option<Duration>,
}

/// The node as connections use it.
pub trait Sessions: Send + Sync + 'static {
    /// An opened session.
    type Session: Session;

    /// Returns whether clients are served. If not, CONNECT is answered with 0x88 (MQTT 3.1.1: 3) before it is checked.
    fn is_serving(&self) -> bool;

    /// Opens or resumes a session. Taking a session over closes its former connection, on whichever node it is.
    ///
    /// # Errors
    /// Returns the reason code for CONNACK; 0x88 if the client's shard does not answer within 5 s.
    fn connect(
        &self,
        request: ConnectRequest,
    ) -> impl Future<Output = Result<Connected<Self::Session>, ReasonCode>> + Send;
}

/// An opened session.
#[derive(Debug)]
pub struct Connected<S> {
    /// Session Present of CONNACK.
    pub session_present: bool,
    /// Filters of a resumed session, which must be checked against the rules in force.
    pub filters: Vec<MqttStr>,
    /// Requests of the connection.
    pub session: S,
    /// Events for the connection.
    pub events: mpsc::Receiver<Event>,
}

/// One session, owned by one connection.
///
/// A future that yields an acknowledgement resolves only if the node held its lease after the work was done. Without a
/// lease it waits for the next lease of the same epoch. If the epoch ends first, it never resolves, and `Event::Close` ends
/// the connection.
pub trait Session: Send + Sync + 'static {
    /// Starts a publish. Messages enter every queue in the order of the calls. A QoS 0 publish waits for no session.
    /// `packet_id` is set for QoS 2; a resent id joins the publish that it started.
    fn publish(
        &self,
        message: Message,
        packet_id: Option<PacketId>,
    ) -> impl Future<Output = Published> + Send + 'static;

    /// Handles PUBREL from the client, which frees the packet id. Resolves to `false` if the id was not in use (0x92).
    fn release(&self, packet_id: PacketId) -> impl Future<Output = bool> + Send + 'static;

    /// Adds subscriptions. Resolves to one reason code per filter for SUBACK: the granted QoS or a failure.
    fn subscribe(&self, subscriptions: Vec<Subscription>) -> impl Future<Output = Vec<ReasonCode>> + Send + 'static;

    /// Removes subscriptions. Resolves to one reason code per filter for UNSUBACK.
    fn unsubscribe(&self, filters: Vec<MqttStr>) -> impl Future<Output = Vec<ReasonCode>> + Send + 'static;

    /// Completes a delivery after PUBACK, PUBCOMP, or PUBREC with an error. Unknown ids are ignored. The caller has
    /// checked that the packet fits the QoS of the delivery.
    fn acknowledge(&self, packet_id: PacketId);

    /// Handles PUBREC from the client. Resolves once it is committed, and PUBREL may be sent; `false` if the packet id
    /// is unknown (0x92).
    fn received(&self, packet_id: PacketId) -> impl Future<Output = bool> + Send + 'static;

    /// Ends the connection's ownership. Called exactly once, also if the connection broke.
    fn end(&self, ended: Ended);
}
