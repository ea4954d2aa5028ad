//! Alerts: their definitions (`catalogue`), the Prometheus rules and runbook generated from them (`render`), and the
//! operator's own evaluation of the built-in ones (`evaluate`).
//!
//! The reconciler of an `MqttCluster` calls [`evaluate::Evaluator`] with the scraped metrics of the brokers; the
//! example `generate_monitoring` writes the files that `render` returns. Nothing here does I/O or reads a clock.
//!
//! ```text
//!  catalogue.yaml ──> catalogue ──> render ──> rules.yml, runbook
//!                         └───────> evaluate <── samples <── /metrics of each broker
//!                                      └──────> condition, Events, status.alerts
//! ```

pub mod catalogue;
pub mod evaluate;
mod history;
mod predicate;
pub mod render;
pub mod samples;

#[cfg(test)]
mod generated_tests;
#[cfg(test)]
mod parity_tests;
