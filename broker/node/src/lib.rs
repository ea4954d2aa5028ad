//! The node: everything between client connections and the Raft groups.
//!
//! ```text
//! connection ── session ─┬─ publish ── routes (meta), peers' filters, local filters
//!                        │      └── shard::ShardClient ══ shard::Leader (on this node or another one)
//!                        │      └── transient::Outgoing ══ transient::Incoming (on other nodes)
//!                        └─ session::Registry: the sessions of this node
//! lease::Holder ── renews at ── lease::Grantor (meta leader)    membership ── formation, joining, voters
//! ```
//! Invariant: nothing is acknowledged to a client unless the node held its lease after the work was done.
//!
//! This crate owns leases, shards, publishes, transient sessions and membership. It does not own the protocol of clients
//! (`covey-mqtt`, whose traits it implements), replication (`covey-raft`) or the replicated state machines
//! (`covey-core`). Start reading at [`start`](fn@start) and [`NodeSessions`].

mod channel;
mod clock;
#[cfg(test)]
mod format;
mod frame;
mod holder_context;
mod leader_context;
mod lease;
mod membership;
mod network;
mod node;
mod observer;
mod publish;
mod server;
mod session;
mod shard;
mod start;
mod state;
mod tasks;
mod transient;

pub use membership::{FormError, Identity, Membership, ResizeError};
pub use node::{Durables, Node};
pub use observer::Observer;
pub use server::peer_services;
pub use session::{NodeSession, NodeSessions};
pub use start::{StartOptions, Started, start};
