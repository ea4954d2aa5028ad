//! Whether a user may publish, subscribe, and take a client id.
//!
//! The broker compiles a user's part of the access document into [`Rules`] and asks for every publish and every filter of
//! a SUBSCRIBE. Deny wins, no match is deny. Invariant: whatever a user or a client calls itself, an allow rule never
//! reaches a topic that has something else than that very name in the placeholder's level, and a deny rule never loses
//! its hold.

mod pattern;
mod rules;
mod template;

pub use self::pattern::ClientIdPattern;
pub use self::rules::{Action, Decision, Effect, Error, RuleParts, Rules};

/// Who asks: what placeholders stand for.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    pub username: &'a str,
    pub client_id: &'a str,
}
