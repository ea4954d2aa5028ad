//! What nodes say to each other on the streams `Shard`, `Lease` and `Transient`: postcard in gRPC frames.

use bytes::Bytes;
use covey_core::shard::{NodeId, Once, Operation, Outcome};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use covey_contract::proto::Frame;

/// A node to the leader of a shard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum ToShard {
    /// First on every stream: who I am and which sessions I hold here.
    Attach { shard: u16, node: NodeId, epoch: u64, sessions: Vec<Held> },
    /// A session of this node takes deliveries from now on.
    Open(Held),
    /// Answered with [`FromShard::Answer`].
    Call { id: u64, operation: Operation },
    /// An [`Operation::Enqueue`]; answered with [`FromShard::Enqueued`].
    Enqueue(covey_core::shard::Enqueue),
    /// QoS 0: matched against applied state, in no log; only for subscriptions whose QoS is below `below`.
    Volatile { topic: Box<str>, publisher: Box<str>, retain: bool, below: u8, expiry: Option<u32>, body: Bytes },
    /// The client acknowledged these deliveries; committed lazily.
    Settle { client: Box<str>, owner: u64, sequences: Vec<u64> },
}

/// A session that a connection of the node holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Held {
    pub client: Box<str>,
    pub owner: u64,
    /// Deliveries that may be unacknowledged.
    pub window: u16,
}

/// The leader of a shard to a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum FromShard {
    /// This node leads and serves; follows [`ToShard::Attach`].
    Attached,
    Answer {
        id: u64,
        outcome: Outcome,
    },
    Enqueued {
        number: u64,
        outcome: Outcome,
    },
    Deliver {
        client: Box<str>,
        owner: u64,
        items: Vec<Item>,
    },
    Volatile {
        client: Box<str>,
        owner: u64,
        retain: bool,
        identifiers: Vec<u32>,
        expiry: Option<u32>,
        body: Bytes,
    },
    /// Another connection, or nobody, holds the session.
    Lost {
        client: Box<str>,
        owner: u64,
    },
}

/// A queued message on its way to the session's holder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Item {
    pub sequence: u64,
    pub qos: u8,
    pub dup: bool,
    pub retain: bool,
    pub identifiers: Vec<u32>,
    /// Seconds that are left.
    pub expiry: Option<u32>,
    /// `None`: PUBREC was committed, PUBREL is due.
    pub body: Option<Bytes>,
}

/// A node to the meta leader.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Renewal {
    pub node: NodeId,
    pub epoch: u64,
    /// Which renewal is answered; the node remembers when it sent it.
    pub sequence: u64,
    /// Index of the meta group that the node has applied.
    pub applied: u64,
    /// Members from which the node heard within the last renewals.
    pub reaches: Vec<NodeId>,
}

/// The meta leader's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grant {
    pub sequence: u64,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Verdict {
    Granted {
        /// Commit index of meta: a first lease is used only with this applied.
        commit: u64,
        /// Every node that may hold a lease, this one included.
        leased: Vec<NodeId>,
        /// The lease had lapsed in the leader's count, or never was.
        anew: bool,
    },
    /// Not now: the node is behind, or not reached by others.
    Refused,
    /// The epoch is over.
    Ended,
}

/// The publishing node (it dialled) to the node that has transient subscribers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum ToTransient {
    Hello {
        node: NodeId,
        epoch: u64,
    },
    /// Numbered per stream pair and epoch of the receiver.
    Message(Box<Numbered>),
    /// QoS 0: no number, no receipt.
    Volatile(Box<Transported>),
    /// Answered with [`FromTransient::Synced`] behind every change so far.
    Sync(u64),
    /// The filters up to this change are known here.
    Known(u64),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Numbered {
    pub number: u64,
    pub message: Transported,
}

/// A message between nodes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Transported {
    pub topic: Box<str>,
    pub publisher: Box<str>,
    pub qos: u8,
    pub retain: bool,
    pub retained_index: u64,
    /// Exactly once, as in shards.
    pub once: Option<Once>,
    /// Seconds, as the publisher set it.
    pub expiry: Option<u32>,
    /// An MQTT 5 PUBLISH, see `node::message`.
    pub body: Bytes,
}

/// The node with transient subscribers to the publishing node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum FromTransient {
    /// First: the epoch that the filters and numbers belong to, all filters, the change they are at, and the last number
    /// received from this sender's epoch.
    State {
        epoch: u64,
        change: u64,
        filters: Vec<(Box<str>, u8)>,
        received: u64,
    },
    /// `None`: nobody here wants the filter any more.
    Change {
        change: u64,
        filter: Box<str>,
        qos: Option<u8>,
    },
    /// In memory here, in order, up to this number; how many sessions the last one matched.
    Receipt {
        number: u64,
        matched: u32,
    },
    Synced(u64),
}

/// Puts a value into a frame.
pub(super) fn frame<T: Serialize>(value: &T) -> Frame {
    Frame { data: covey_core::encode(value).into() }
}

/// Reads a frame; an unreadable one ends the stream.
pub(super) fn read<T: DeserializeOwned>(frame: &Frame) -> Result<T, tonic::Status> {
    postcard::from_bytes(&frame.data).map_err(|_| tonic::Status::invalid_argument("unreadable frame"))
}
