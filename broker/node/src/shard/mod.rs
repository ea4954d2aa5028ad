//! Durable sessions: every node's side of a shard, and the side of the node that leads it.
//!
//! ```text
//!  connection -> Client (per shard: numbers Enqueues, resends, finds the leader)
//!                   |  ToShard                        ^ FromShard
//!                   v                                 |
//!                Leader (one task per shard: batches into the log, delivers, publishes routes, watches timers)
//! ```
//! The link is a channel where the leader is this node, else the gRPC stream `Shard`.

mod batch;
mod border;
mod client;
mod delivery;
mod leader;
mod routes;

pub(super) use border::{Inbound, LinkId, Services};
pub(super) use client::{Client, Connector, Events, Link};
pub(super) use leader::Leader;
