//! Durable sessions: the client of a shard on every node, and the shard's leader.
//!
//! ```text
//! connection -> ShardClient (one per shard: numbers Enqueues, resends, finds the leader)
//!                  |  ToShard                        ^ FromShard
//!                  v                                 |
//!               Leader (one task per shard: commits batches, delivers, publishes routes, runs timers)
//! ```
//! The link is a pair of channels if the leader is on this node, else the gRPC stream `Shard`.

mod client;
mod leader;
mod link;
mod wire;

pub(super) use client::{DeliverySink, ShardClient, ShardDialer};
pub(super) use leader::{Leader, LeaderContext};
pub(super) use link::{Inbound, LeaderEnd, Link, LinkId};
pub(super) use wire::{Acknowledgement, FromShard, HeldSession, Item, ToShard};
