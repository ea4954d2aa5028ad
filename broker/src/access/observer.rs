//! Events of access control, for counting.

use std::fmt;
use std::time::Duration;

use covey_core::access::{Action, Decision};

/// Result of the authentication of a CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthResult {
    /// The client was authenticated, or is anonymous and anonymous clients are allowed.
    Success,
    /// The user is unknown or the password is wrong.
    BadCredentials,
    /// The user may not use the client id.
    NotAuthorized,
    /// Too many password checks are queued.
    Busy,
    /// The address failed too often.
    RateLimit,
}

/// Method by which credentials were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthMethod {
    /// An argon2id success that was cached.
    Cache,
    /// HMAC-SHA-256, for generated passwords.
    HmacSha256,
    /// argon2id, for passwords chosen by people.
    Argon2id,
}

/// Receives the events of access control, to count them. Methods may be called from any task and must not block.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// The credentials of a CONNECT were checked.
    fn authenticated(&self, result: AuthResult);

    /// A password was checked in this time, including the wait for a free worker.
    fn checked(&self, method: AuthMethod, duration: Duration);

    /// The rules decided on a publish or a filter.
    fn decided(&self, action: Action, decision: Decision);

    /// The document of this revision was put in force.
    fn enforced(&self, revision: u64);

    /// A document was refused for a reason that was not reported since the last enforced document.
    fn load_failed(&self);

    /// The last refused revision above the enforced one changed; 0 means none.
    fn rejected(&self, revision: u64);
}
