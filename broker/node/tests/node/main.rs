//! Nodes of a cluster in one process, over real sockets, certificates and files: what sessions see of them.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod resize;
mod sessions;
mod test_cluster;
