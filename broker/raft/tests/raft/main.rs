//! Tests of the Raft groups of several nodes in one process over real gRPC on loopback and real files.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on fails here"
)]

mod faults;
mod harness;
mod lifecycle;
mod snapshots;
