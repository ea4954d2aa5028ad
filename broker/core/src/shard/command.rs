//! What can be asked of a shard's state machine and what it answers: the contents of the shard's log.
//!
//! The encoding (postcard, fields in order) is part of the log's format: a change needs a new `Entry` version.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::session::Limits;
use crate::rows::{self, UnreadableEntry};

/// Id of a broker's disk.
pub type NodeId = u64;

/// One log entry: operations that one fsync covers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Shard time in milliseconds: the last value plus monotonic time elapsed on the leader. Never runs backwards.
    pub time: u64,
    pub operations: Vec<Operation>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Operation {
    /// A connection takes its client id.
    Claim(Claim),
    /// The connection that holds `owner` is over.
    End(End),
    Subscribe {
        client: Box<str>,
        owner: u64,
        subscriptions: Vec<Subscription>,
    },
    Unsubscribe {
        client: Box<str>,
        owner: u64,
        filters: Vec<Box<str>>,
    },
    /// A message for whoever matches here.
    Enqueue(Enqueue),
    /// Deliveries that the client acknowledged, or that expired: inclusive ranges of inbox sequence numbers.
    Settle {
        client: Box<str>,
        owner: u64,
        ranges: Vec<(u64, u64)>,
    },
    /// PUBREC of a QoS 2 delivery: from now on only PUBREL is sent.
    Received {
        client: Box<str>,
        owner: u64,
        sequence: u64,
    },
    /// A QoS 2 PUBLISH of a durable session, before it is enqueued anywhere.
    Receive {
        client: Box<str>,
        owner: u64,
        packet: u16,
    },
    /// PUBREL of that packet id.
    Release {
        client: Box<str>,
        owner: u64,
        packet: u16,
    },
    /// Retained messages for a subscription that waits for them.
    Snapshot {
        client: Box<str>,
        owner: u64,
        filter: Box<str>,
        messages: Vec<Enqueue>,
        last: bool,
    },
    /// That epoch of a node is over: its connections are gone.
    NodeDown {
        node: NodeId,
        epoch: u64,
    },
    /// An offline session is past its expiry.
    Expire {
        client: Box<str>,
        owner: u64,
    },
    /// An offline session's will delay has passed.
    WillDue {
        client: Box<str>,
        owner: u64,
    },
    /// A due will was published.
    WillDone {
        will: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    pub client: Box<str>,
    pub principal: Box<str>,
    pub node: NodeId,
    /// The node's epoch and, within it, the connection: a repeated claim is answered as the first was.
    pub epoch: u64,
    pub connection: u64,
    pub clean_start: bool,
    /// Seconds; 0 is a transient session.
    pub expiry: u32,
    pub will: Option<Will>,
    pub limits: Limits,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Will {
    pub topic: Box<str>,
    pub qos: u8,
    pub retain: bool,
    /// Seconds between the end of the connection and the will.
    pub delay: u32,
    pub body: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub client: Box<str>,
    pub owner: u64,
    /// Session expiry of the DISCONNECT, seconds.
    pub expiry: Option<u32>,
    pub drop_will: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    pub filter: Box<str>,
    pub options: Options,
    /// Retain handling: send retained messages if the subscription is new, or always.
    pub retained: WantRetained,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WantRetained {
    Always,
    IfNew,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub identifier: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Enqueue {
    /// Who numbered it; the zero epoch is for messages that the shard makes itself.
    pub node: NodeId,
    pub epoch: u64,
    /// 1, 2, 3 … per node epoch and shard.
    pub number: u64,
    /// The sender's lowest number that is not acknowledged yet.
    pub floor: u64,
    pub topic: Box<str>,
    /// QoS of the PUBLISH, at least 1.
    pub qos: u8,
    pub retain: bool,
    /// Client id of the publisher, for No Local; empty for none.
    pub publisher: Box<str>,
    /// Seconds.
    pub expiry: Option<u32>,
    /// Index of the retained group at which a retained message was stored.
    pub retained_index: u64,
    /// Exactly once: (key, number, lowest number of the key that may still come).
    pub once: Option<Once>,
    /// The message as its readers encode it; opaque here.
    pub body: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Once {
    pub key: Box<str>,
    pub number: u64,
    pub floor: u64,
}

/// What became of an operation, in the order of the entry's operations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Done,
    Claimed(Claimed),
    /// Another principal opened that session: 0x85.
    WrongPrincipal,
    /// The owner epoch, node epoch or session is no longer current.
    Stale,
    /// Per filter: granted, whether it is new and whether retained messages are awaited; or refused for the limit.
    Subscribed(Vec<Subscribed>),
    /// Per filter: whether it existed.
    Unsubscribed(Vec<bool>),
    Enqueued {
        matched: u32,
        accepted: u32,
    },
    /// Not the next number: resend from `expected`.
    Gap {
        expected: u64,
    },
    /// Number of the QoS 2 publish, and the lowest one that is not released.
    Receiving {
        number: u64,
        floor: u64,
        incarnation: u64,
    },
    /// Whether the packet id or sequence was in use.
    Known(bool),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    pub owner: u64,
    pub present: bool,
    /// The shard holds subscriptions and inbox of this session; otherwise the node does.
    pub durable: bool,
    /// Filters of a resumed session, for a fresh look at the access rules.
    pub filters: Vec<Box<str>>,
    /// Messages that a full inbox did not take since the last claim.
    pub missed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subscribed {
    Granted { qos: u8, awaits_retained: bool },
    LimitReached,
}

impl Entry {
    /// Encoding for the log.
    pub fn encode(&self) -> Bytes {
        rows::encode(self).into()
    }

    /// Reads an entry of the log.
    ///
    /// # Errors
    /// No version up to this one wrote it.
    pub fn decode(bytes: &[u8]) -> Result<Self, UnreadableEntry> {
        rows::decode_entry("shard", bytes)
    }
}
