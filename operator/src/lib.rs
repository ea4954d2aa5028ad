//! The operator: watches the custom resources, builds their children and evaluates alerts.

pub mod alerts;
