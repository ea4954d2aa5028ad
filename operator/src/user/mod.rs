//! `MqttUser`s: their credentials, their status, and the reconcile of users whose cluster does not exist. Every other user
//! is reconciled by the pass over its cluster ([`crate::cluster::reconcile`]).

pub mod credentials;
pub mod orphan;
pub mod status;
