//! Nodes of a cluster in one process: what their metrics say of them.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod groups;
#[expect(dead_code, reason = "shared with the tests of covey-node, which use the rest")]
#[path = "../../node/tests/node/test_cluster.rs"]
mod test_cluster;
