//! What a node keeps on its disk, opened by the cluster runtime in this order: [`marker`] (whose disk is it?), then
//! [`segment`] (the Raft log); [`space`] is asked before anything new is taken in.
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
