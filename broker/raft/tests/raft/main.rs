//! Nodes of one process over real gRPC on loopback and real files: what the promises of the cluster runtime rest on.

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
