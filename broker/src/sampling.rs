//! Samples gauges from the node at intervals. Counters are updated where the event happens.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use covey_log::segment::Log;
use covey_log::space::Space;
use covey_node::Node;
use covey_peer::Tls;
use covey_types::{GroupId, NodeId};
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, SessionKind, SessionState, SubscriptionKind, gauge_value};

/// Interval of sampling.
const SAMPLE: Duration = Duration::from_secs(2);

/// Sources of the gauges, and where they are written.
pub(crate) struct Sampling {
    pub(crate) node: Arc<Node>,
    /// Metrics that are written.
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tls: Tls,
    /// Source of the size of the log.
    pub(crate) log: Log,
    /// Data directory whose volume is measured.
    pub(crate) data: PathBuf,
    /// Listener label of the connected clients. All clients count for the first listener of the configuration.
    pub(crate) listener: String,
    /// Returns the number of connected clients.
    pub(crate) connections: Arc<dyn Fn() -> usize + Send + Sync>,
}

impl Sampling {
    /// Runs until shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut groups = GroupSeries::default();
        self.metrics.clients.limit.set(i64::from(self.node.config().mqtt.max_connections));
        loop {
            self.read(&mut groups);
            if shutdown.run_until_cancelled(tokio::time::sleep(SAMPLE)).await.is_none() {
                return;
            }
        }
    }

    /// Samples all gauges.
    fn read(&self, groups: &mut GroupSeries) {
        groups.read(&self.node, &self.metrics);
        let (heard, members) = self.node.members_heard();
        self.metrics.cluster.members_alive.set(gauge_value(heard));
        self.metrics.cluster.members_configured.set(gauge_value(members));
        let durable = self.node.durable_totals();
        let sessions = &self.metrics.sessions;
        sessions.sessions.get(SessionState::Online).get(SessionKind::Durable).set(gauge_value(durable.online));
        sessions.sessions.get(SessionState::Offline).get(SessionKind::Durable).set(gauge_value(durable.offline));
        let transient = self.node.transient_sessions();
        sessions.sessions.get(SessionState::Online).get(SessionKind::Transient).set(gauge_value(transient));
        sessions.subscriptions.get(SubscriptionKind::Plain).set(gauge_value(durable.subscriptions));
        let messages = &self.metrics.messages;
        messages.queued.set(gauge_value(durable.queued));
        messages.queued_bytes.set(gauge_value(durable.queued_bytes));
        self.metrics.subscribers.fill_ratio_max.set(durable.fill_ratio_max);
        let (retained, bytes) = self.node.retained_size();
        messages.retained.set(gauge_value(retained));
        messages.retained_bytes.set(gauge_value(bytes));
        self.metrics.clients.listener(&self.listener, "mqtt").set(gauge_value((self.connections)()));
        self.metrics.node.certificate_expiry("peer").set(self.tls.not_after());
        if let Ok(space) = Space::read(&self.data) {
            self.metrics.storage.free_bytes.set(gauge_value(space.free));
            self.metrics.storage.capacity_bytes.set(gauge_value(space.capacity));
        }
        let wal = self.log.metrics();
        self.metrics.storage.used_bytes.get(crate::metrics::StorageKind::Wal).set(gauge_value(wal.bytes));
    }
}

/// Series of the Raft groups of which the node holds a replica. Other groups have no series, because alert rules that
/// compare replicas would take zeros for a lagging replica.
#[derive(Debug, Default)]
pub struct GroupSeries {
    /// Last known leader of each group that has series; `None` until one was known.
    leaders: BTreeMap<GroupId, Option<NodeId>>,
}

impl GroupSeries {
    /// Updates the series of the groups that the node holds, and removes those of all others.
    pub fn read(&mut self, node: &Node, metrics: &Metrics) {
        let held: BTreeSet<GroupId> = node.groups_held().collect();
        for (group, _) in self.leaders.extract_if(.., |group, _| !held.contains(group)) {
            metrics.raft.remove_group(&label(group));
        }
        for group in held {
            let status = node.group_status(group);
            let leads = node.leads(group);
            let gauges = metrics.raft.group(&label(group));
            gauges.has_leader.set(i64::from(status.leader.is_some()));
            gauges.is_leader.set(i64::from(leads));
            gauges.term.set(gauge_value(status.term));
            gauges.commit_index.set(gauge_value(status.commit));
            gauges.applied_index.set(gauge_value(status.applied));
            gauges.snapshot_index.set(gauge_value(status.snapshot));
            gauges.uncommitted.set(if leads { gauge_value(status.last.saturating_sub(status.commit)) } else { 0 });
            let known = self.leaders.entry(group).or_default();
            if let Some(leader) = status.leader
                && known.replace(leader).is_some_and(|former| former != leader)
            {
                gauges.leader_changes.inc();
            }
        }
    }
}

/// Returns the value of the label `group`: `meta`, `retained`, `shard-0`.
fn label(group: GroupId) -> String {
    group.to_string().replace('/', "-")
}
