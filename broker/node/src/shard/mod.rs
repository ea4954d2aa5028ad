//! Durable sessions: the client of a shard on every node, and the shard's leader.
//!
//! ```text
//! connection -> Client (one per shard: numbers Enqueues, resends, finds the leader)
//!                  |  ToShard                        ^ FromShard
//!                  v                                 |
//!               Leader (one task per shard: commits batches, delivers, publishes routes, runs timers)
//! ```
//! The link is a pair of channels if the leader is on this node, else the gRPC stream `Shard`.

mod batch;
mod client;
mod context;
mod delivery;
mod leader;
mod routes;

pub(super) use client::{Client, DeliverySink, Link, ShardDialer};
pub(super) use context::{Inbound, LeaderContext, LinkId};
pub(super) use leader::Leader;
