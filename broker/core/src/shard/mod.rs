//! The state machine of a shard: sessions, their subscriptions and their inboxes.
//!
//! Deterministic: the same entries make the same state on every replica. Time comes in the entry, rows go out through
//! [`Rows`](crate::rows::Rows), and what the leader must do about an entry is left in [`Machine::take_effects`].
//!
//! ```text
//!  Entry{time, operations} --apply--> Outcome per operation   (to whoever proposed)
//!                              |----> rows                    (stored with the applied index)
//!                              '----> effects                 (the leader delivers, kicks, publishes routes and wills)
//! ```

mod bodies;
mod command;
mod enqueue;
mod machine;
mod restore;
mod session;
mod view;

pub use bodies::{Body, Expired};
pub use command::{
    Claim, Claimed, End, Enqueue, Entry, NodeId, Once, Operation, Options, Outcome, Subscribed, Subscription,
    WantRetained, Will,
};
pub use machine::{Effect, Machine};
pub use session::{Counters, Holder, Inbox, Limits, Profile, Session, SessionId, Slot};
pub use view::highest;

#[cfg(test)]
mod tests;
