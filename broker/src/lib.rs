//! The broker: listeners, connections, cluster and storage around the core.

pub mod session;
