//! The broker: client listeners and connections, access control, the cluster runtime and its storage.

pub mod access;
pub mod admin;
pub mod clock;
pub mod cluster;
pub mod connection;
pub mod gauges;
mod glue;
pub mod http;
pub mod listener;
pub mod metrics;
pub mod node;
pub mod peer;
pub mod run;
pub mod session;
pub mod storage;
pub mod supervise;
