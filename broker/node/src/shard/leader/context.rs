//! Callbacks that a shard's leader makes into the node.

use covey_core::meta::Command;
use covey_core::shard::{Publication, Will};
use futures::future::BoxFuture;

/// Callbacks of a leader into the node.
pub(crate) trait LeaderContext: Send + Sync + 'static {
    /// Commits a command in meta, retrying until it has an answer, and waits until it is applied here. Returns its log
    /// index, or `None` if meta refused it.
    fn propose_meta(&self, command: Command) -> BoxFuture<'static, Option<u64>>;
    /// Waits until every node that may hold a lease has applied meta up to the index.
    fn await_route(&self, index: u64) -> BoxFuture<'static, ()>;
    /// Returns the log index up to which this node has applied meta.
    fn meta_applied(&self) -> u64;
    /// Reads the retained messages that match the filter, as of a point after the call (linearizable read).
    fn retained(&self, filter: Box<str>) -> BoxFuture<'static, Vec<Publication>>;
    /// Publishes a will, retrying; returns when every shard and peer that it matched has answered. Receivers deduplicate
    /// by `key`.
    fn publish_will(&self, key: Box<str>, will: Will) -> BoxFuture<'static, ()>;
    /// Counts messages that full inboxes did not take.
    fn on_missed(&self, count: u64);
}
