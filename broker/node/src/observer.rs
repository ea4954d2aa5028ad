//! Events of the node that are counted outside it.

/// Counts events of the node. Methods may be called from any task and must not block.
pub trait Observer: Send + Sync + 'static {
    /// A QoS 0 message was dropped because its receiver is not reachable, or because too many wait to be routed.
    fn dropped_unreachable(&self);
    /// A QoS 0 message was dropped because the client's connection is too slow.
    fn dropped_slow(&self);
    /// `count` full inboxes did not take a message.
    fn missed(&self, count: u64);
}
