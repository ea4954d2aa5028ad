//! Node leases: which nodes may serve (docs/clustering.md).
//!
//! ```text
//! holder (every node)  --Renewal--> grantor (every node; answers while the node leads meta)
//!        <--Grant-----                 every grant is sent after a ReadIndex round that began after it was decided
//! ```

mod grantor;
mod holder;
mod validity;
mod wire;

use std::time::Duration;

pub(super) use grantor::{Grantor, Request};
pub(super) use holder::{Holder, HolderContext};
pub(super) use validity::{EpochOver, Lease};
#[cfg(test)]
pub(super) use wire::Verdict;
pub(super) use wire::{Grant, Renewal};

/// Adds 10 % for the drift between two clocks: the grantor counts a node's lease longer than the node does.
pub(super) fn with_drift(duration: Duration) -> Duration {
    duration + duration / 10
}
