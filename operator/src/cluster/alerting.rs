//! Evaluates the built-in alerts of one cluster: scrapes the nodes, runs the evaluator, publishes changes as Events.
//!
//! Runs at most once every ten seconds per cluster. A failed scrape is an input of the evaluator too.

use std::collections::BTreeMap;
use std::time::Duration;

use covey_contract::names;
use covey_crds::{AlertStatus, MqttCluster};
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::EventType;
use tokio::time::Instant;

use super::nodes::{self, Node};
use crate::alerts::catalogue::{self, Catalogue};
use crate::alerts::evaluate::{Active, Evaluator, Facts, Remembered, Transition};
use crate::alerts::samples::Samples;
use crate::context::Context;
use crate::scrape;

/// Minimum time between two rounds.
const ROUND: Duration = Duration::from_secs(10);
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(2);

/// The alerts of one cluster, kept from round to round.
#[derive(Debug)]
pub(crate) struct Alerting {
    evaluator: Evaluator,
    /// Wall time of the start. Elapsed time is added to it, so that a change of the wall clock does not affect alerts.
    started: Timestamp,
    clock: Instant,
    last: Option<Instant>,
}

impl Alerting {
    /// Continues with the alerts that `status.alerts` lists. `for_scale` multiplies the `for` of every alert.
    pub(crate) fn new(cluster: &MqttCluster, now: Timestamp, for_scale: f64) -> Result<Self, catalogue::Error> {
        let mut evaluator = Evaluator::new(&Catalogue::shipped()?, for_scale);
        let alerts = cluster.status.iter().flat_map(|status| &status.alerts);
        let remembered: Vec<Remembered> = alerts
            .map(|alert| Remembered {
                name: alert.name.clone(),
                pod: alert.pod.clone(),
                since: alert.since.parse().unwrap_or(now),
            })
            .collect();
        evaluator.restore(&remembered, now);
        Ok(Self { evaluator, started: now, clock: Instant::now(), last: None })
    }

    fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.clock.elapsed()).unwrap_or_default();
        self.started.checked_add(passed).unwrap_or(self.started)
    }

    /// Returns the firing alerts.
    pub(crate) fn active(&self) -> Vec<AlertStatus> {
        self.evaluator.active().iter().map(alert_status).collect()
    }

    /// Runs a round if one is due: evaluates the alerts and publishes an Event for each that began or ended.
    pub(crate) async fn observe(
        &mut self,
        context: &Context,
        about: &ObjectReference,
        nodes: &[Node],
        acl_revision: Option<u64>,
    ) {
        if self.last.is_some_and(|last| last.elapsed() < ROUND) {
            return;
        }
        self.last = Some(Instant::now());
        let facts = facts(nodes, acl_revision, scrape_all(nodes).await);
        for change in self.evaluator.observe(self.now(), &facts) {
            let alert = &change.alert;
            let subject = alert.pod.as_deref().unwrap_or("cluster");
            let (type_, reason, note) = match change.transition {
                Transition::Fired => {
                    (EventType::Warning, "AlertFiring", format!("{} ({subject}): {}", alert.name, alert.message))
                }
                Transition::Resolved => (EventType::Normal, "AlertResolved", format!("{} ({subject})", alert.name)),
            };
            tracing::info!(alert = %alert.name, subject, reason, "alert changed");
            context.event(about, type_, reason, &format!("{}/{subject}", alert.name), &note).await;
        }
    }
}

fn facts(nodes: &[Node], acl_revision: Option<u64>, scrapes: BTreeMap<String, Option<Samples>>) -> Facts {
    Facts {
        desired: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
        ready: u32::try_from(nodes::ready_by_kubelet(nodes)).unwrap_or(u32::MAX),
        acl_revision,
        scrapes,
    }
}

fn alert_status(alert: &Active) -> AlertStatus {
    AlertStatus {
        name: alert.name.clone(),
        severity: alert.severity.as_str().to_owned(),
        pod: alert.pod.clone(),
        since: Timestamp::from_second(alert.since.as_second()).unwrap_or(alert.since).to_string(),
    }
}

async fn scrape_all(nodes: &[Node]) -> BTreeMap<String, Option<Samples>> {
    let scrapes = nodes.iter().map(|node| async move {
        let host = node.pod.as_ref().and_then(|pod| pod.ip.as_deref());
        let page = match host {
            Some(host) => scrape::get(host, names::PORT_HTTP, "/metrics", SCRAPE_TIMEOUT).await.ok(),
            None => None,
        };
        (node.name.clone(), page.and_then(|page| Samples::parse(&page).ok()))
    });
    join_all(scrapes).await.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::super::node_samples::{at, fail, nodes};
    use super::*;

    /// Evaluates the alerts for three minutes with nodes whose metrics cannot be read.
    fn firing(nodes: &[Node]) -> Vec<String> {
        let mut evaluator = Evaluator::new(&Catalogue::shipped().unwrap(), 1.0);
        for second in (0..=180).step_by(10) {
            let scrapes = nodes.iter().map(|node| (node.name.clone(), None)).collect();
            evaluator.observe(at(second), &facts(nodes, Some(1), scrapes));
        }
        evaluator.active().into_iter().map(|alert| alert.name).collect()
    }

    #[test]
    fn a_cluster_that_only_the_operator_does_not_reach_is_not_offline() {
        let mut nodes = nodes(["new", "new", "new"]);
        for node in &mut nodes {
            node.report = None;
        }
        let found = firing(&nodes);
        assert!(!found.contains(&"MqttClusterOffline".to_owned()), "{found:?}");
        assert!(found.contains(&"MqttBrokerDown".to_owned()), "its metrics are not read: {found:?}");
        for node in &mut nodes {
            fail(node, 1, None);
        }
        assert!(firing(&nodes).contains(&"MqttClusterOffline".to_owned()));
    }
}
