//! Files of a node. A broker opens the marker of the data directory ([`marker`]) and then the Raft log
//! ([`segment`]). [`space`] reads the free space of the volume.
//!
//! Invariant: opening refuses before it changes anything, so a disk that is refused can still be examined, moved back
//! or repaired by a human.
//!
//! This crate does not know what the log's records mean; `covey-raft` does, and it keeps its state store and snapshots
//! beside the log itself. Start reading in [`segment`].

pub mod fs;
pub mod marker;
pub mod segment;
pub mod space;
