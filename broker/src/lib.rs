//! The broker process: [`run()`] starts the parts from the other crates and stops them in order.
//!
//! This crate owns what exists once per process: access control (`access`), metrics, the HTTP port, readiness and the
//! admin service for the operator (`admin`). It does not own the protocol of clients (`covey-mqtt`), sessions and
//! routes (`covey-node`), replication (`covey-raft`), connections between nodes (`covey-peer`) or the disk
//! (`covey-log`); `adapters` connects them through the traits that they define. Start reading in `run.rs`.

pub mod access;
mod adapters;
pub mod admin;
pub mod http;
pub mod metrics;
pub mod readiness;
mod run;
pub mod sampling;

pub use run::{Error, Options, ordinal_of, run};
