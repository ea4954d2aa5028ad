//! `MqttUser`s: their credentials, their status, and those whose cluster does not exist.

pub mod credentials;
pub mod orphan;
pub mod status;
