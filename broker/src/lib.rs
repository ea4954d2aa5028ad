//! The broker: listeners, connections, cluster and storage around the core.

pub mod admin;
pub mod clock;
pub mod cluster;
pub mod connection;
pub mod listener;
pub mod node;
pub mod peer;
pub mod session;
pub mod storage;
