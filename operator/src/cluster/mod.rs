//! Reconciles an `MqttCluster`: brings the observed state to the desired state.
//!
//! The steps of a pass are drawn in docs/design/operator.md#one-pass; [`reconcile`] carries them out.

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
pub mod scale;
pub mod status;
pub(crate) mod trial;
pub mod validate;
