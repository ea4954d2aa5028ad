//! The broker: listeners, connections, cluster and storage around the core.

pub mod access;
pub mod clock;
pub mod cluster;
pub mod http;
pub mod metrics;
pub mod peer;
