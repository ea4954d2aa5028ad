//! Transient sessions: in the memory of the node that holds the connection, reached from other nodes over numbered streams.
//!
//! ```text
//!  publishing node  --Message 1, 2, 3 …-->  node with subscribers
//!                   <--State, Change, Receipt--
//! ```
//! Each node dials every other: messages go out on the stream that it dialled, its own filters on those it accepted.

mod incoming;
mod local;
mod outgoing;
mod peers;

pub(super) use incoming::Incoming;
pub(super) use local::{Filters, Local, Match, Options};
pub(super) use outgoing::{Dial, Stream};
pub(super) use peers::{Peers, Tasks};
