//! The decisions of the broker: topics, sessions, queues, routes and access rules.
//!
//! No I/O, no clock and no async runtime: time is a parameter and effects are return values. `covey-node` and
//! `covey-raft` drive the state machines.

pub mod access;
pub mod dedup;
#[cfg(test)]
mod format;
pub mod live_copies;
pub mod meta;
pub mod retained;
mod rows;
pub mod shard;
pub mod subscriptions;
pub mod topic;

pub use rows::{Rows, Unreadable, UnreadableEntry, encode};
