//! What the broker decides: topics, sessions, queues, routes, access. No I/O, no clock, no tokio: time is a parameter,
//! effects are returned. The shell in `covey-broker` drives it.

pub mod access;
pub mod meta;
pub mod retained;
mod rows;
pub mod shard;
pub mod topic;

pub use rows::{Rows, Unreadable, UnreadableEntry, encode};
