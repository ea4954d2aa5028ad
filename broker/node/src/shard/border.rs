//! The border of a shard's leader: what reaches it, and what it needs from the node around it.

use covey_core::meta::Command;
use covey_core::shard::{Enqueue, Will};
use futures::future::BoxFuture;
use tokio::sync::mpsc;

use crate::wire::{FromShard, ToShard};

/// A link from a node, unique in this process.
pub(crate) type LinkId = u64;

/// What arrives at a leader.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// A link begins; `from` is dropped when this node does not lead.
    Opened {
        link: LinkId,
        from: mpsc::UnboundedSender<FromShard>,
    },
    Frame {
        link: LinkId,
        frame: ToShard,
    },
    Closed {
        link: LinkId,
    },
}

/// What a leader needs from the node around it.
pub(crate) trait Services: Send + Sync + 'static {
    /// Commits a command in meta, trying until it is done, and applies it here; gives its index, or `None` where meta
    /// refused it.
    fn propose_meta(&self, command: Command) -> BoxFuture<'static, Option<u64>>;
    /// Returns when every node that may hold a lease has applied meta up to the index.
    fn await_route(&self, index: u64) -> BoxFuture<'static, ()>;
    /// Index up to which this node has applied meta.
    fn meta_applied(&self) -> u64;
    /// Retained messages that the filter matches, as of after the call.
    fn retained(&self, filter: Box<str>) -> BoxFuture<'static, Vec<Enqueue>>;
    /// Publishes a will; returns when it is in every inbox that it matched.
    fn publish_will(&self, key: Box<str>, will: Will) -> BoxFuture<'static, ()>;
    /// Messages that a full inbox did not take.
    fn on_missed(&self, count: u64);
}
