//! Contents of a shard's log: the operations and their outcomes.
//!
//! The encoding is postcard with the fields in order. It is the format on disk and between nodes: adding, removing or
//! reordering a field or a variant breaks it.

use bytes::Bytes;
use covey_codec::QoS;
use covey_types::{ConnectionId, InboxSeq, NodeEpoch, NodeId, OwnerEpoch};
use serde::{Deserialize, Serialize};

use super::session::Limits;
use crate::rows::{self, UnreadableEntry};
use crate::subscriptions::Options;

/// One log entry: operations that are committed by one fsync and applied in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Shard time in milliseconds: shard time at the beginning of the leader's term plus the time since then on the
    /// leader's boot-time clock. The state machine never lets it go back.
    pub time: u64,
    /// Operations, in the order in which the leader received them.
    pub operations: Vec<Operation>,
}

/// One operation of a shard.
///
/// What has no outcome is sent again to every new leader, so each operation may be applied more than once. `owner` is
/// the owner epoch from [`Claimed`]: an operation of an owner that no longer holds the session changes nothing and
/// returns [`Outcome::Stale`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Operation {
    /// A connection takes over its client id.
    ///
    /// Sent by the node of the connection at each CONNECT, for transient sessions too. While the connection holds the
    /// session, a repetition gets the first answer again, except for `missed`. Outcomes: [`Outcome::Claimed`],
    /// [`Outcome::WrongPrincipal`], or [`Outcome::Stale`] if the node's epoch has ended.
    Claim(Claim),
    /// A connection has ended: its session goes offline, or is removed if its expiry is 0.
    ///
    /// Sent by the node of the connection when it closes, and for a claim that was committed after its CONNECT had
    /// timed out. Outcomes: [`Outcome::Done`]; `Stale` for a repetition, since the session has no holder then.
    End(End),
    /// SUBSCRIBE of a durable session.
    ///
    /// Sent by the holder's node; the leader holds the answer back until the routes are confirmed. A repetition sets
    /// the same options again. Outcomes: [`Outcome::Subscribed`] or `Stale`.
    Subscribe { client: Box<str>, owner: OwnerEpoch, subscriptions: Vec<Subscription> },
    /// UNSUBSCRIBE of a durable session.
    ///
    /// Sent by the holder's node. A repetition removes nothing and reports `false` per filter. Outcomes:
    /// [`Outcome::Unsubscribed`] or `Stale`.
    Unsubscribe { client: Box<str>, owner: OwnerEpoch, filters: Vec<Box<str>> },
    /// Puts a QoS 1 or 2 message into the inbox of every matching session.
    ///
    /// Sent by the node on which it was published. Deduplicated by `number` within the sender's epoch and, where it
    /// has one, by `once`. Outcomes: [`Outcome::Enqueued`], [`Outcome::Gap`], or [`Outcome::Stale`] if the sender's
    /// epoch has ended or a newer one is known.
    Enqueue(Enqueue),
    /// Removes deliveries from an inbox: those that the client acknowledged, that have expired or were sent at QoS 0.
    ///
    /// Proposed by the leader, which collects acknowledgements for a short time. `ranges` are inclusive ranges of inbox
    /// sequence numbers; numbers that are not in the inbox are skipped. Outcomes: [`Outcome::Done`] or `Stale`.
    Acknowledge { client: Box<str>, owner: OwnerEpoch, ranges: Vec<(InboxSeq, InboxSeq)> },
    /// PUBREC for a QoS 2 delivery: the body is released and only PUBREL is sent from now on.
    ///
    /// Sent by the holder's node when the client's PUBREC arrives. A repetition changes nothing. Outcomes:
    /// [`Outcome::Known`] (`false`: no delivery with that sequence number) or `Stale`.
    Pubrec {
        client: Box<str>,
        owner: OwnerEpoch,
        /// Sequence number of the delivery in the inbox.
        sequence: InboxSeq,
    },
    /// Reserves the packet id of a QoS 2 PUBLISH from the client, before the message is routed (MQTT-4.3.3).
    ///
    /// Sent by the holder's node, for durable sessions only. A packet id that is not released yet keeps its number, so
    /// a resent PUBLISH is routed under the same [`Once`]. Outcomes: [`Outcome::Qos2Begun`] or `Stale`.
    BeginQos2 { client: Box<str>, owner: OwnerEpoch, packet: u16 },
    /// PUBREL from the client for its own QoS 2 PUBLISH: frees the packet id that `BeginQos2` reserved.
    ///
    /// Sent by the holder's node, also when a QoS 2 PUBLISH was refused. Outcomes: [`Outcome::Known`] (`false`: the
    /// packet id was not reserved, as for a repetition) or `Stale`.
    Release { client: Box<str>, owner: OwnerEpoch, packet: u16 },
    /// Retained messages for a subscription that awaits them.
    ///
    /// Proposed by the leader in chunks after the subscription's route is confirmed; `last` marks the final chunk and
    /// ends the wait. Copies that are not newer than a live copy of the same topic are skipped. A new leader reads and
    /// proposes all chunks of an unfinished subscription again, so messages of committed chunks are queued twice.
    /// Outcomes: [`Outcome::Known`] (`false`: the subscription is gone or awaits nothing) or `Stale`.
    DeliverRetained {
        client: Box<str>,
        owner: OwnerEpoch,
        filter: Box<str>,
        #[serde(with = "unnumbered")]
        messages: Vec<Publication>,
        last: bool,
    },
    /// An epoch of a node has ended: its sessions go offline and its messages are refused from now on.
    ///
    /// Proposed by the leader when meta has ended an epoch that this shard does not know to be over. A repetition
    /// changes nothing. Outcome: always [`Outcome::Done`].
    NodeDown { node: NodeId, epoch: NodeEpoch },
    /// Removes an offline session whose expiry has passed; its will is queued.
    ///
    /// Proposed by the leader each second until it is applied. Outcome: [`Outcome::Known`]; `false` if the session is
    /// gone, was claimed again or is not due.
    Expire { client: Box<str>, owner: OwnerEpoch },
    /// Queues the will of an offline session whose will delay has passed.
    ///
    /// Proposed by the leader each second until it is applied. Outcome: [`Outcome::Known`], `false` as for `Expire`.
    WillDue { client: Box<str>, owner: OwnerEpoch },
    /// A queued will was published: it is removed.
    ///
    /// Proposed by the leader that published it. Outcome: [`Outcome::Known`]; `false` if it was removed before.
    WillDone { will: u64 },
}

/// A CONNECT as the shard sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// Client id.
    pub client: Box<str>,
    /// User name. Only the user that opened a session may claim it.
    pub principal: Box<str>,
    /// Node that has the connection.
    pub node: NodeId,
    /// Epoch of that node.
    pub epoch: NodeEpoch,
    /// The connection. With `node` and `epoch` it identifies a repeated claim.
    pub connection: ConnectionId,
    /// Clean Start of the CONNECT: an existing session is removed first.
    pub clean_start: bool,
    /// Session expiry in seconds. 0 makes the session transient.
    pub expiry: u32,
    /// Will of the connection, if it has one; it replaces the will of the former connection.
    pub will: Option<Will>,
    /// Limits of the session from now on.
    pub limits: Limits,
}

/// A will message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Will {
    /// Topic of the will.
    pub topic: Box<str>,
    /// QoS of the will.
    pub qos: QoS,
    /// Retain flag of the will.
    pub retain: bool,
    /// Will Delay Interval in seconds, counted from the end of the connection.
    pub delay: u32,
    /// The message as an encoded MQTT 5 PUBLISH; opaque here.
    pub body: Bytes,
}

/// The end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Client id.
    pub client: Box<str>,
    /// Owner epoch of the connection.
    pub owner: OwnerEpoch,
    /// Session expiry in seconds from the DISCONNECT; `None` leaves it as it is.
    pub expiry: Option<u32>,
    /// True after a normal DISCONNECT: the will is discarded ([MQTT-3.1.2-10]).
    pub drop_will: bool,
}

/// One filter of a SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// Topic filter, without a share name.
    pub filter: Box<str>,
    /// Subscription options.
    pub options: Options,
    /// Retain Handling: when retained messages are sent.
    pub retained: WantRetained,
}

/// Retain Handling of a subscription (MQTT 5, section 3.8.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WantRetained {
    /// 0: at every SUBSCRIBE.
    Always,
    /// 1: only if the subscription did not exist.
    IfNew,
    /// 2: never.
    Never,
}

/// A message for the sessions of a shard, numbered by the node that sends it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Enqueue {
    /// Sender and number of the message.
    pub sender: SenderSeq,
    /// The message.
    pub publication: Publication,
}

/// Place of a message among all that a node sends to a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SenderSeq {
    /// Node that sends the message.
    pub node: NodeId,
    /// Epoch of that node.
    pub epoch: NodeEpoch,
    /// Sequence number, counted from 1 per node epoch and shard.
    pub number: u64,
    /// The sender's lowest number without an outcome. The shard forgets rejected numbers below it.
    pub floor: u64,
}

/// A message on its way from its publisher to the sessions that it matches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Publication {
    /// Topic name.
    pub topic: Box<str>,
    /// QoS of the PUBLISH.
    pub qos: QoS,
    /// Retain flag of the PUBLISH.
    pub retain: bool,
    /// Client id of the publisher, for No Local; `None` for wills and retained messages.
    #[serde(with = "covey_types::zero_is_none")]
    pub publisher: Option<Box<str>>,
    /// Message expiry in seconds, counted from the arrival in the shard; `None` for none.
    pub expiry: Option<u32>,
    /// Log index at which the retained group stored the message; `None` for a message that is not retained.
    #[serde(with = "covey_types::zero_is_none")]
    pub retained_index: Option<u64>,
    /// Key for exactly-once delivery across senders and epochs; `None` for none.
    pub once: Option<Once>,
    /// The message as an encoded MQTT 5 PUBLISH; opaque here.
    pub body: Bytes,
}

/// Retained messages in the log: each with the four numbers of a [`SenderSeq`] before it, which are zero.
mod unnumbered {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Publication;

    type Zeros = (u64, u64, u64, u64);

    pub(super) fn serialize<S: Serializer>(messages: &[Publication], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(messages.iter().map(|message| (Zeros::default(), message)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Publication>, D::Error> {
        let messages = Vec::<(Zeros, Publication)>::deserialize(deserializer)?;
        Ok(messages.into_iter().map(|(_, message)| message).collect())
    }
}

/// Identity of a message that may reach the shard under several sender numbers: a QoS 2 publish of a durable session,
/// or a will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Once {
    /// Source of the numbers: `q:<client id>:<owner epoch that created the session>` or `w:<shard>:<number of the will>`.
    pub key: Box<str>,
    /// Number of the message within the key.
    pub number: u64,
    /// Lowest number of the key that may still arrive; lower ones count as repetitions.
    pub floor: u64,
}

/// Result of an operation. `apply` returns them in the order of the entry's operations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The operation was applied, or had been applied before.
    Done,
    /// The connection holds the session.
    Claimed(Claimed),
    /// Another user opened that session: CONNACK 0x85.
    WrongPrincipal,
    /// The owner epoch or the node epoch is no longer current, or the session is gone. Nothing changed.
    Stale,
    /// One result per filter, in the order of the SUBSCRIBE.
    Subscribed(Vec<Subscribed>),
    /// Per filter, whether a subscription existed.
    Unsubscribed(Vec<bool>),
    /// The message was handled.
    Enqueued {
        /// Sessions that matched at QoS 1 or 2. 1 for a repetition, whose true count is not kept.
        matched: u32,
        /// Sessions whose inbox took it; `matched - accepted` had no room. For a repetition 1, or 0 if no inbox took
        /// the first one.
        accepted: u32,
    },
    /// The number is not the next one. The sender resends from `expected`.
    Gap { expected: u64 },
    /// The packet id is reserved.
    Qos2Begun {
        /// Number of the publish within the session, counted from 1.
        number: u64,
        /// Lowest number that is reserved and not released.
        floor: u64,
        /// Owner epoch of the claim that created the session: distinguishes its numbers from those of an earlier
        /// session with the same client id.
        created_by: OwnerEpoch,
    },
    /// Whether the subject of the operation existed; each operation says what `false` means.
    Known(bool),
}

/// Answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// Owner epoch: all operations of this connection carry it.
    pub owner: OwnerEpoch,
    /// Session Present of the CONNACK: the session existed and was resumed.
    pub present: bool,
    /// True if the shard holds subscriptions and inbox. For a transient session the node holds them.
    pub durable: bool,
    /// Filters of a resumed session, which the node checks against the current access rules; empty for a new one.
    pub filters: Vec<Box<str>>,
    /// Messages that the full inbox did not take since the previous claim.
    pub missed: u64,
}

/// Result for one filter of a SUBSCRIBE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subscribed {
    /// The subscription exists with this QoS. `awaits_retained`: retained messages will follow in a
    /// `DeliverRetained`.
    Granted { qos: QoS, awaits_retained: bool },
    /// The filter is malformed, the session has the maximum number of subscriptions, or its filters take more than 1
    /// MiB.
    LimitReached,
}

impl Entry {
    /// Encodes the entry for the log.
    pub fn encode(&self) -> Bytes {
        rows::encode(self).into()
    }

    /// Decodes a log entry.
    ///
    /// # Errors
    /// Returns [`UnreadableEntry`] if the bytes were not written by this version or an earlier one.
    pub fn decode(bytes: &[u8]) -> Result<Self, UnreadableEntry> {
        rows::decode_entry("shard", bytes)
    }
}
