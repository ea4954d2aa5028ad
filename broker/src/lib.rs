//! placeholder

pub mod cluster;
pub mod storage;
