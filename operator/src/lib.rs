//! The operator: watches `MqttCluster`s and `MqttUser`s, applies their child objects, forms clusters, rolls pods, sends
//! access rules to brokers and raises alerts. MQTT traffic never passes through it.
//!
//! ```text
//!  watch -> dereference (I/O) -> validate (pure) -> build (pure) -> apply (I/O) -> status (I/O)
//!               |  polls the nodes                     ^
//!               +--> access::project (pure) -----------+--> admin: ApplyAccess, Initialize, TransferLeaders
//! ```
//! `covey local` uses the pure parts: [`cluster::validate`], [`cluster::build::broker_config`], [`access::project`],
//! [`formation::decide`], [`peer_ca`], and the client in [`admin`].

pub mod access;
pub mod admin;
pub mod alerts;
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
