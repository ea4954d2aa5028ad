//! Nodes of one process over real gRPC on loopback and real files: what the promises of the runtime rest on.

mod faults;
mod harness;
mod lifecycle;
mod snapshots;
