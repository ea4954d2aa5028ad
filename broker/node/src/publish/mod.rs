//! Publishing: from a message of a client, or a will, to the shards, peers and local sessions that it matches.

pub(crate) mod message;
mod retained;
mod route;
mod will;

pub(crate) use retained::{Job, RetainedMessages};
pub(crate) use route::{PendingAck, Router};
pub(crate) use will::WillPublisher;
