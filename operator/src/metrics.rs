//! The operator's own metrics. There is one registry per process; the HTTP server renders it.
//!
//! Invariant: label values come from fixed sets or names of Kubernetes objects; a deleted cluster has no series.

use std::time::Duration;

use prometheus::core::{MetricVec, MetricVecBuilder};
use prometheus::{Encoder as _, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

const CLUSTER: [&str; 2] = ["namespace", "mqtt_cluster"];

/// Why the metrics could not be set up or rendered.
#[derive(Debug, thiserror::Error)]
#[error("failed to handle metrics: {0}")]
pub struct Error(#[from] prometheus::Error);

/// The metrics of the operator.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    reconciles: IntCounterVec,
    reconcile_errors: IntCounterVec,
    reconcile_duration: HistogramVec,
    watch_errors: IntCounterVec,
    drift_corrected: IntCounterVec,
    cluster_info: IntGaugeVec,
    cluster_condition: IntGaugeVec,
    generation: IntGaugeVec,
    observed_generation: IntGaugeVec,
    replicas_desired: IntGaugeVec,
    replicas_ready: IntGaugeVec,
    acl_revision: IntGaugeVec,
    acl_rejected: IntGaugeVec,
    alert_active: IntGaugeVec,
}

/// State of one cluster, exported as gauges.
#[derive(Debug, Clone, Default)]
pub struct ClusterFacts {
    pub version: String,
    pub generation: i64,
    pub observed_generation: i64,
    pub desired: i64,
    pub ready: i64,
    pub acl_revision: u64,
    /// Number of nodes that refused an access revision.
    pub acl_rejected: i64,
    /// Type and status of each condition.
    pub conditions: Vec<(String, String)>,
    /// Name, severity and pod of each firing alert. The pod is empty if the alert is about the cluster.
    pub alerts: Vec<(String, String, String)>,
}

impl Metrics {
    /// Registers every metric. `version` is the operator's version.
    ///
    /// # Errors
    /// If a metric cannot be created or registered.
    pub fn new(version: &str) -> Result<Self, Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let metric = IntCounterVec::new(Opts::new(format!("mqtt_operator_{name}"), help), labels)?;
            registry.register(Box::new(metric.clone())).map(|()| metric)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| -> Result<IntGaugeVec, prometheus::Error> {
            let metric = IntGaugeVec::new(Opts::new(format!("mqtt_operator_{name}"), help), labels)?;
            registry.register(Box::new(metric.clone())).map(|()| metric)
        };
        let cluster = |extra: &[&'static str]| [&CLUSTER[..], extra].concat();
        let duration = HistogramVec::new(
            HistogramOpts::new("mqtt_operator_reconcile_duration_seconds", "Duration of one reconcile")
                .buckets(vec![0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]),
            &["controller"],
        )?;
        registry.register(Box::new(duration.clone()))?;
        gauge("info", "1, with the operator's version", &["version"])?.with_label_values(&[version]).set(1);
        Ok(Self {
            reconciles: counter("reconcile_total", "Reconciles by result", &["controller", "result"])?,
            reconcile_errors: counter(
                "reconcile_errors_total",
                "Failed reconciles by step",
                &["controller", "reason"],
            )?,
            reconcile_duration: duration,
            watch_errors: counter("watch_errors_total", "Failed watches of the API server", &["controller"])?,
            drift_corrected: counter(
                "drift_corrected_total",
                "Changes by other field managers that were undone",
                &cluster(&["kind", "field_manager"]),
            )?,
            cluster_info: gauge("cluster_info", "1 for every cluster, with its version", &cluster(&["version"]))?,
            cluster_condition: gauge(
                "cluster_condition",
                "1 for the current status of each condition",
                &cluster(&["type", "status"]),
            )?,
            generation: gauge("cluster_generation", "Generation of the spec", &CLUSTER)?,
            observed_generation: gauge(
                "cluster_observed_generation",
                "Generation that the status describes",
                &CLUSTER,
            )?,
            replicas_desired: gauge("cluster_replicas_desired", "Desired number of nodes", &CLUSTER)?,
            replicas_ready: gauge(
                "cluster_replicas_ready",
                "Number of nodes that the kubelet reports as ready",
                &CLUSTER,
            )?,
            acl_revision: gauge("acl_revision", "Access revision that nodes should enforce", &CLUSTER)?,
            acl_rejected: gauge("acl_rejected_nodes", "Number of nodes that refused an access revision", &CLUSTER)?,
            alert_active: gauge(
                "alert_active",
                "1 for every firing alert",
                &cluster(&["alertname", "severity", "pod"]),
            )?,
            registry,
        })
    }

    /// Records a finished reconcile. `error` names the step that failed.
    pub fn reconciled(&self, controller: &str, error: Option<&'static str>, took: Duration) {
        let result = if error.is_some() { "error" } else { "ok" };
        self.reconciles.with_label_values(&[controller, result]).inc();
        self.reconcile_duration.with_label_values(&[controller]).observe(took.as_secs_f64());
        if let Some(reason) = error {
            self.reconcile_errors.with_label_values(&[controller, reason]).inc();
        }
    }

    /// Counts a failed watch.
    pub fn watch_failed(&self, controller: &str) {
        self.watch_errors.with_label_values(&[controller]).inc();
    }

    /// Records that a change by another field manager was undone.
    pub fn drift(&self, namespace: &str, cluster: &str, kind: &str, manager: &str) {
        self.drift_corrected.with_label_values(&[namespace, cluster, kind, manager]).inc();
    }

    /// Replaces the gauges of a cluster.
    pub fn observe(&self, namespace: &str, cluster: &str, facts: &ClusterFacts) {
        let of = [namespace, cluster];
        self.forget_changing(namespace, cluster);
        self.cluster_info.with_label_values(&[namespace, cluster, &facts.version]).set(1);
        for (type_, status) in &facts.conditions {
            self.cluster_condition.with_label_values(&[namespace, cluster, type_, status]).set(1);
        }
        for (name, severity, pod) in &facts.alerts {
            self.alert_active.with_label_values(&[namespace, cluster, name, severity, pod]).set(1);
        }
        self.generation.with_label_values(&of).set(facts.generation);
        self.observed_generation.with_label_values(&of).set(facts.observed_generation);
        self.replicas_desired.with_label_values(&of).set(facts.desired);
        self.replicas_ready.with_label_values(&of).set(facts.ready);
        self.acl_revision.with_label_values(&of).set(i64::try_from(facts.acl_revision).unwrap_or(i64::MAX));
        self.acl_rejected.with_label_values(&of).set(facts.acl_rejected);
    }

    /// Removes every series of a deleted cluster.
    pub fn forget(&self, namespace: &str, cluster: &str) {
        self.forget_changing(namespace, cluster);
        for gauge in [
            &self.generation,
            &self.observed_generation,
            &self.replicas_desired,
            &self.replicas_ready,
            &self.acl_revision,
            &self.acl_rejected,
        ] {
            drop_matching(gauge, namespace, cluster);
        }
        drop_matching(&self.drift_corrected, namespace, cluster);
    }

    fn forget_changing(&self, namespace: &str, cluster: &str) {
        for gauge in [&self.cluster_info, &self.cluster_condition, &self.alert_active] {
            drop_matching(gauge, namespace, cluster);
        }
    }

    /// Returns all metrics in the Prometheus text format.
    ///
    /// # Errors
    /// If a metric cannot be encoded.
    pub fn render(&self) -> Result<Vec<u8>, Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Removes the series of a cluster. The library removes by exact label values only, so these are listed first.
fn drop_matching<B: MetricVecBuilder>(series: &MetricVec<B>, namespace: &str, cluster: &str) {
    use prometheus::core::Collector as _;
    for family in series.collect() {
        for metric in family.get_metric() {
            let labels: std::collections::HashMap<&str, &str> =
                metric.get_label().iter().map(|label| (label.name(), label.value())).collect();
            if labels.get("namespace") == Some(&namespace) && labels.get("mqtt_cluster") == Some(&cluster) {
                // Fails if the series was removed since it was listed, which is the desired outcome.
                series.remove(&labels).unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &Metrics) -> String {
        String::from_utf8(metrics.render().unwrap()).unwrap()
    }

    #[test]
    fn the_series_of_a_deleted_cluster_go_and_those_of_its_neighbour_stay() {
        let metrics = Metrics::new("1").unwrap();
        let facts = ClusterFacts {
            alerts: vec![("MqttBrokerDown".into(), "warning".into(), "prod-0".into())],
            conditions: vec![("Ready".into(), "True".into())],
            ..ClusterFacts::default()
        };
        metrics.observe("a", "prod", &facts);
        metrics.observe("b", "prod", &facts);
        metrics.drift("a", "prod", "StatefulSet", "somebody");
        assert!(text(&metrics).contains(r#"alertname="MqttBrokerDown",mqtt_cluster="prod",namespace="a""#));
        metrics.forget("a", "prod");
        assert!(!text(&metrics).contains(r#"namespace="a""#), "{}", text(&metrics));
        assert!(text(&metrics).contains(r#"namespace="b""#));
    }

    #[test]
    fn a_condition_has_one_status() {
        let metrics = Metrics::new("1").unwrap();
        for status in ["True", "False"] {
            let conditions = vec![("Ready".to_owned(), status.to_owned())];
            metrics.observe("a", "prod", &ClusterFacts { conditions, ..ClusterFacts::default() });
        }
        assert!(!text(&metrics).contains(r#"status="True""#), "{}", text(&metrics));
    }
}
