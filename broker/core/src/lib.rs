//! What the broker decides, without I/O and without a clock: topics and access decisions.

pub mod access;
pub mod topic;
