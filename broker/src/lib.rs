//! A broker as one process: [`run()`] puts the crates below together and stops them in order.
//!
//! This crate owns what only the whole process has: who may enter (`access`), the metrics, the HTTP port, readiness and
//! the service that the operator asks (`admin`). It does not own the protocol of clients (`covey-mqtt`), sessions and
//! routes (`covey-node`), replication (`covey-raft`), connections between nodes (`covey-peer`) or the disk (`covey-log`);
//! `adapters` joins them through the traits that they define. Start reading in `run.rs`.

pub mod access;
mod adapters;
pub mod admin;
pub mod http;
pub mod metrics;
pub mod readiness;
mod run;
pub mod sampling;

pub use run::{Error, Options, ordinal_of, run};
