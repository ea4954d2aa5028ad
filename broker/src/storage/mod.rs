//! Files of a node. The cluster runtime opens the marker of the data directory ([`marker`]) and then the Raft log
//! ([`segment`]). [`space`] reads the free space of the volume.
//!
//! Invariant: a refused disk is not changed, so that an administrator can examine, move or repair it.

pub mod marker;
pub mod segment;
pub mod space;
