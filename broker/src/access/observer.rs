//! What access control reports to whoever counts it.

use std::fmt;
use std::time::Duration;

use covey_core::access::{Action, Decision};

/// What came of a CONNECT's credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthResult {
    /// The client is the user that it names, or is anonymous where that is allowed.
    Success,
    /// The user is unknown or the password wrong.
    BadCredentials,
    /// The client id is not one of the user's.
    NotAuthorized,
    /// Too many passwords wait to be checked.
    Busy,
    /// The address failed too often.
    RateLimit,
}

/// What credentials were checked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthMethod {
    /// An argon2id verifier that the same password matched before.
    Cache,
    /// The MAC of a generated password.
    HmacSha256,
    /// A slow hash.
    Argon2id,
}

/// Counts what access control does. Every method may be called from any task and must not block.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// The credentials of a CONNECT were judged.
    fn authenticated(&self, result: AuthResult);

    /// A password was checked in this time, waiting for a free worker included.
    fn checked(&self, method: AuthMethod, duration: Duration);

    /// The rules decided about a publish or a filter.
    fn decided(&self, action: Action, decision: Decision);

    /// The document of this revision is enforced from now on.
    fn enforced(&self, revision: u64);

    /// A document could not be loaded, for a reason that was not reported since the last enforced document.
    fn load_failed(&self);

    /// The higher revision that is refused now; 0 for none.
    fn rejected(&self, revision: u64);
}
