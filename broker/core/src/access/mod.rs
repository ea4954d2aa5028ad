//! Access rules: whether a user may publish, subscribe, and use a client id.
//!
//! The broker compiles a user's part of the access document into [`Rules`] and checks every publish and every filter
//! of a SUBSCRIBE. Deny takes precedence over allow, and no match means deny. Invariant: whatever user name or client
//! id a client chooses, an allow rule matches only topics that have exactly that text in the placeholder's level, and
//! a deny rule still applies.

mod pattern;
mod rules;
mod template;

pub use self::pattern::ClientIdPattern;
pub use self::rules::{Action, Decision, Effect, Error, RuleParts, Rules};

/// Identity of a client: the values of the placeholders.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// Value of `{username}`.
    pub username: &'a str,
    /// Value of `{clientId}`.
    pub client_id: &'a str,
}
