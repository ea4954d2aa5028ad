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
mod border;
mod client;
mod delivery;
mod leader;
mod routes;

pub(super) use border::{Inbound, LinkId, Services};
pub(super) use client::{Client, Connector, Events, Link};
pub(super) use leader::Leader;
