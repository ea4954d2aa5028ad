//! State machine of a shard: sessions, their subscriptions and their inboxes (docs/design/replication.md).
//!
//! Deterministic: the same entries give the same state on every replica. Shard time is part of the entry, rows are
//! written through [`Rows`](crate::rows::Rows), and the work that an entry causes for the leader is collected in
//! [`ShardState::take_effects`].
//!
//! ```text
//!  Entry{time, operations} --apply--> Outcome per operation   (to the proposer)
//!                              |----> rows                    (stored with the applied index)
//!                              '----> effects                 (the leader delivers, closes, publishes routes and wills)
//! ```

mod bodies;
mod command;
mod enqueue;
mod restore;
mod session;
mod state;
mod view;

pub use crate::subscriptions::Options;
pub use bodies::{Body, Expired};
pub use command::{
    Claim, Claimed, End, Enqueue, Entry, Once, Operation, Outcome, Publication, SenderSeq, Subscribed, Subscription,
    WantRetained, Will,
};
pub use session::{Counters, Holder, Inbox, Limits, Profile, Session, SessionId, Slot};
pub use state::{Effect, ShardState};

#[cfg(test)]
mod format;
#[cfg(test)]
mod tests;
