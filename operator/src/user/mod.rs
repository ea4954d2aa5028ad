//! `MqttUser`s: their credentials, their status, and the reconcile of users whose cluster does not exist.

pub mod credentials;
pub mod orphan;
pub mod status;
