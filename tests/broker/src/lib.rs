//! Helpers of process tests: the program under test, an independent MQTT client, and bounded waits.
//!
//! The tests in `tests/` start `covey local` and `covey broker` from the binary that `COVEY_BINARY` names, on free
//! loopback ports and in a temporary directory. Invariant: every process that a test starts ends with the test.

pub mod client;
pub mod disk;
pub mod local;
pub mod wait;

/// Result of a test: a failed precondition is an error, a broken guarantee a panic.
pub type Result<T> = anyhow::Result<T>;
