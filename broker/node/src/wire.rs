//! Messages of the streams `Shard` and `Transient` and of the call `Renew` between nodes: postcard in gRPC frames.

use bytes::Bytes;
use covey_codec::QoS;
use covey_core::shard::{Once, Operation, Outcome, Publication};
use covey_types::{InboxSeq, NodeEpoch, NodeId, OwnerEpoch, ShardId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use covey_contract::proto::Frame;

/// From a node to the leader of a shard. A client sends everything without an outcome again to every new leader.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum ToShard {
    /// First frame of a link: the node, its epoch, and the sessions of this shard that its connections hold. Answered
    /// with [`FromShard::Attached`] as soon as the leader serves.
    Attach { shard: ShardId, node: NodeId, epoch: NodeEpoch, sessions: Vec<HeldSession> },
    /// A connection of the node holds this session: start its deliveries. Sent when the session is claimed and after
    /// every `Attached`; a repetition continues the deliveries.
    Open(HeldSession),
    /// Commits an operation. Answered with [`FromShard::Answer`] under the same `id`; what a repetition does is part
    /// of each [`Operation`].
    Call { id: u64, operation: Operation },
    /// Commits an [`Operation::Enqueue`]. Answered with [`FromShard::Enqueued`] under its number, which also
    /// deduplicates it.
    Enqueue(covey_core::shard::Enqueue),
    /// A QoS 0 message, sent once and not logged. Matched against the applied state; delivered to sessions whose
    /// matching subscriptions all have a QoS below `below`. `expiry` is in seconds; `publisher` is a client id, for No
    /// Local. Not answered.
    Qos0 {
        topic: Box<str>,
        #[serde(with = "covey_types::zero_is_none")]
        publisher: Option<Box<str>>,
        retain: bool,
        below: u8,
        expiry: Option<u32>,
        body: Bytes,
    },
    /// The client acknowledged these deliveries, or they need no acknowledgement: inbox sequence numbers. Sent once
    /// and committed later; if that is lost, the next leader delivers them again and the node repeats the
    /// acknowledgement. Not answered.
    Acknowledge { client: Box<str>, owner: OwnerEpoch, sequences: Vec<InboxSeq> },
}

/// A session of a shard that a connection of the node holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct HeldSession {
    /// Client id.
    pub client: Box<str>,
    /// Owner epoch from the claim.
    pub owner: OwnerEpoch,
    /// Most deliveries that may be unacknowledged: the client's Receive Maximum.
    pub window: u16,
}

/// From the leader of a shard to a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum FromShard {
    /// The leader serves: the node may send operations. Answer to [`ToShard::Attach`].
    Attached,
    /// The operation of the call `id` is committed and has this outcome; that of a SUBSCRIBE is sent when its routes
    /// are confirmed.
    Answer { id: u64, outcome: Outcome },
    /// The message with that number is committed and has this outcome. [`Outcome::Gap`] asks for a new link, on which
    /// the node resends in order.
    Enqueued { number: u64, outcome: Outcome },
    /// Messages for a session, in the order of its inbox. A new leader repeats those that are not committed as
    /// acknowledged.
    Deliver { client: Box<str>, owner: OwnerEpoch, items: Vec<Item> },
    /// A QoS 0 message for a session, sent once. `expiry` is in seconds.
    Qos0 { client: Box<str>, owner: OwnerEpoch, retain: bool, identifiers: Vec<u32>, expiry: Option<u32>, body: Bytes },
    /// The owner does not hold the session any more: its connection is to be closed.
    Lost { client: Box<str>, owner: OwnerEpoch },
}

/// A message of an inbox on its way to the session's holder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Item {
    /// Sequence number in the inbox; the packet id follows from it.
    pub sequence: InboxSeq,
    /// QoS of the delivery; 0 only for a retained message.
    pub qos: QoS,
    /// DUP: an earlier connection may have received it.
    pub dup: bool,
    /// Retain flag of the delivery.
    pub retain: bool,
    /// Subscription identifiers.
    pub identifiers: Vec<u32>,
    /// Remaining message expiry in seconds; `None` for none.
    pub expiry: Option<u32>,
    /// An encoded MQTT 5 PUBLISH; `None` if PUBREC is committed and PUBREL is to be sent.
    pub body: Option<Bytes>,
}

/// From a node to the meta leader: asks for a lease.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Renewal {
    /// The node.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: NodeEpoch,
    /// Number of the renewal. The node remembers when it sent it and counts the lease from then.
    pub sequence: u64,
    /// Log index up to which the node has applied meta.
    pub applied: u64,
    /// Members that the node has heard within half a lease.
    pub reaches: Vec<NodeId>,
}

/// Answer of the meta leader to a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grant {
    /// Number of the renewal.
    pub sequence: u64,
    /// The decision.
    pub verdict: Verdict,
}

/// Decision on a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Verdict {
    /// The node holds a lease, counted from the time at which it sent the renewal.
    Granted {
        /// Commit index of meta: a new lease is used only when this is applied.
        commit: u64,
        /// All nodes that may hold a lease, this one included.
        leased: Vec<NodeId>,
        /// By the leader's count the node held no lease: it must prepare before it uses this one.
        anew: bool,
    },
    /// No lease now: the node is behind in applying meta, or it and another node do not reach each other.
    Refused,
    /// The epoch is over, or the node is not a member.
    Ended,
}

/// From the publishing node, which opened the stream, to a node with transient sessions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum ToTransient {
    /// First frame of a stream. Answered with [`FromTransient::State`].
    Hello { node: NodeId, epoch: NodeEpoch },
    /// A QoS 1 or 2 message. Numbered from 1 per pair of epochs (sender, receiver); resent on a new stream until there
    /// is a receipt, and deduplicated by its number. Answered with [`FromTransient::Receipt`].
    Message(Box<Numbered>),
    /// A QoS 0 message, sent once and not answered.
    Qos0(#[serde(with = "Transported")] Publication),
    /// Asks for [`FromTransient::Synced`] with the same id, which follows all changes made so far. The id 0 is a ping.
    Sync(u64),
    /// The sender knows the receiver's filters up to this change.
    Known(u64),
}

/// A message with its number.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Numbered {
    /// Sequence number, counted from 1.
    pub number: u64,
    /// The message.
    #[serde(with = "Transported")]
    pub message: Publication,
}

/// A [`Publication`] in the order of fields in which it goes to nodes with transient sessions; the log of a shard has
/// another one.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Publication")]
struct Transported {
    topic: Box<str>,
    #[serde(with = "covey_types::zero_is_none")]
    publisher: Option<Box<str>>,
    qos: QoS,
    retain: bool,
    #[serde(with = "covey_types::zero_is_none")]
    retained_index: Option<u64>,
    once: Option<Once>,
    expiry: Option<u32>,
    body: Bytes,
}

/// From a node with transient sessions to the publishing node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum FromTransient {
    /// First frame: the receiver's epoch, all filters with their highest QoS and the change as of which they are, and
    /// the number of the last message received from this epoch of the sender.
    State {
        #[serde(with = "covey_types::zero_is_none")]
        epoch: Option<NodeEpoch>,
        change: u64,
        filters: Vec<(Box<str>, QoS)>,
        received: u64,
    },
    /// A filter's highest QoS changed; `None`: no transient session here has the filter any more. Answered with
    /// [`ToTransient::Known`].
    Change { change: u64, filter: Box<str>, qos: Option<QoS> },
    /// All messages up to this number were delivered to the sessions here; `matched` is the number of sessions that
    /// the last one matched.
    Receipt { number: u64, matched: u32 },
    /// Answer to [`ToTransient::Sync`].
    Synced(u64),
}

/// Encodes a value into a frame.
pub(super) fn frame<T: Serialize>(value: &T) -> Frame {
    Frame { data: covey_core::encode(value).into() }
}

/// Decodes a frame.
///
/// # Errors
/// Returns `INVALID_ARGUMENT` for a frame that cannot be decoded; it ends the stream.
pub(super) fn read<T: DeserializeOwned>(frame: &Frame) -> Result<T, tonic::Status> {
    postcard::from_bytes(&frame.data).map_err(|_| tonic::Status::invalid_argument("unreadable frame"))
}
