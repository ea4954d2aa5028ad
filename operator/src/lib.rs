//! The operator: watches `MqttCluster`s and `MqttUser`s, applies their child objects, forms clusters, rolls pods, sends
//! access rules to brokers and raises alerts. MQTT traffic never passes through it.
//!
//! The steps of a pass over a cluster are drawn in docs/design/operator.md#one-pass.
//!
//! `covey local` uses the pure parts: [`cluster::validate`], [`cluster::build::broker_config`], [`access::project`],
//! [`formation::decide`], [`peer_ca`], and the client in [`admin`].

pub mod access;
pub mod admin;
pub mod alerts;
mod changes;
pub mod cluster;
pub mod conditions;
pub mod context;
pub mod fleet;
pub mod http;
pub mod metrics;
pub mod options;
pub mod peer_ca;
pub mod run;
pub mod scrape;
pub mod user;

pub use cluster::formation;
pub use options::Options;
pub use run::{Error, run, run_with};

#[cfg(test)]
mod test_support;
