//! Leases: who may serve (`docs/` and the design's "Leases").
//!
//! ```text
//!  holder (every node)  --Renewal--> keeper (the meta leader's node; asleep elsewhere)
//!         <--Grant-----                 every word leaves after a ReadIndex round begun after it was formed
//! ```

mod holder;
mod keeper;

use std::time::Duration;

pub(super) use holder::{Holder, Lapsed, Lease, Surroundings};
pub(super) use keeper::{Keeper, Request};

/// The drift that two clocks may have: a leader counts a node alive this much longer than the node counts its lease.
pub(super) fn with_drift(duration: Duration) -> Duration {
    duration + duration / 10
}
