//! Frames of the stream `Transient`, between a publishing node and a node with transient sessions.

use bytes::Bytes;
use covey_codec::QoS;
use covey_core::shard::{Once, Publication};
use covey_types::{NodeEpoch, NodeId};
use serde::{Deserialize, Serialize};

/// From the publishing node, which opened the stream, to a node with transient sessions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ToTransient {
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
pub(crate) struct Numbered {
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
pub(crate) enum FromTransient {
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
