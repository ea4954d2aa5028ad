//! What a node keeps on its disk. The cluster runtime opens it at start.
//!
//! Invariant: opening refuses before it changes anything, so a disk that is refused can still be examined, moved back
//! or repaired by a human.

pub mod segment;
