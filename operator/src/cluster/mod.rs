//! The reconcile of an `MqttCluster`.

pub mod build;
pub mod formation;
pub mod validate;
