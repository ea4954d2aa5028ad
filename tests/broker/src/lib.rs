//! What process tests share: the program under test, an MQTT client of their own, and bounded waits.
//!
//! The tests in `tests/` start `covey local` and `covey broker` from the binary that `COVEY_BINARY` names, on free loopback
//! ports and in a temporary directory. Invariant: whatever a test starts ends with it, by process id.

pub mod client;
pub mod disk;
pub mod local;
pub mod wait;

/// What a test returns: a failed precondition is an error, a broken promise a panic.
pub type Result<T> = anyhow::Result<T>;
