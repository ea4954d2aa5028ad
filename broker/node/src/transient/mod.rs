//! Transient sessions: in the memory of the node that holds the connection, reached from other nodes over numbered
//! streams (docs/design/replication.md).
//!
//! ```text
//!  publishing node  --Message 1, 2, 3 …-->  node with subscribers
//!                   <--State, Change, Receipt--
//! ```
//! Each node opens a stream to every other node. It publishes on the streams that it opened, and sends its own filters
//! on the streams that it accepted.

mod filters;
mod incoming;
mod outgoing;
mod peers;
mod session;
mod wire;

pub(super) use filters::Filters;
pub(super) use incoming::Incoming;
pub(super) use outgoing::{PeerDialer, Stream};
pub(super) use peers::Peers;
pub(super) use session::TransientSession;
#[cfg(test)]
pub(super) use wire::{FromTransient, Numbered, ToTransient};
