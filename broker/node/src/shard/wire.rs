//! Frames of the stream `Shard`, between a node and the leader of a shard.

use bytes::Bytes;
use covey_codec::QoS;
use covey_core::shard::{Enqueue, Operation, Outcome};
use covey_types::{InboxSeq, NodeEpoch, NodeId, OwnerEpoch, ShardId};
use serde::{Deserialize, Serialize};

/// From a node to the leader of a shard. A client sends everything without an outcome again to every new leader.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ToShard {
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
    Enqueue(Enqueue),
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
pub(crate) struct HeldSession {
    /// Client id.
    pub client: Box<str>,
    /// Owner epoch from the claim.
    pub owner: OwnerEpoch,
    /// Most deliveries that may be unacknowledged: the client's Receive Maximum.
    pub window: u16,
}

/// From the leader of a shard to a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum FromShard {
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
pub(crate) struct Item {
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

/// Deliveries of a session that are to be removed from its inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acknowledgement {
    /// Client id.
    pub(crate) client: Box<str>,
    /// Owner epoch of the session's holder.
    pub(crate) owner: OwnerEpoch,
    /// Sequence numbers in the inbox.
    pub(crate) sequences: Vec<InboxSeq>,
}

impl From<Acknowledgement> for ToShard {
    fn from(Acknowledgement { client, owner, sequences }: Acknowledgement) -> Self {
        Self::Acknowledge { client, owner, sequences }
    }
}
