//! Node leases: which nodes may serve (docs/clustering.md).
//!
//! ```text
//! holder (every node)  --Renewal--> keeper (every node; answers while the node leads meta)
//!        <--Grant-----                 every grant is sent after a ReadIndex round that began after it was decided
//! ```

mod holder;
mod keeper;

use std::time::Duration;

pub(super) use holder::{Holder, Lapsed, Lease, Surroundings};
pub(super) use keeper::{Keeper, Request};

/// Adds 10 % for the drift between two clocks: the keeper counts a node's lease longer than the node does.
pub(super) fn with_drift(duration: Duration) -> Duration {
    duration + duration / 10
}
