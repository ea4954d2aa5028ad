//! Reconciles an `MqttCluster`: brings the observed state to the desired state.
//!
//! ```text
//!  dereference -> validate -> certificates -> poll nodes -> project access -> record -> alerts -> push
//!                                                                                              |
//!                                        status <- roll a pod <- form <- apply children <------+
//! ```

pub(crate) mod access;
pub(crate) mod alerting;
pub mod apply;
pub mod build;
pub mod certificates;
pub(crate) mod claims;
pub(crate) mod configs;
pub mod dereference;
pub mod evictions;
pub mod formation;

#[cfg(test)]
mod node_samples;
pub mod nodes;
pub mod ownership;
pub mod postponement;
pub mod problem;
pub mod reconcile;
pub mod rollout;
pub mod status;
pub(crate) mod trial;
pub mod validate;
