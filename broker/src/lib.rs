//! The broker: listeners, connections, cluster and storage around the core.

pub mod connection;
pub mod listener;
pub mod session;
