//! State of a group on this node, for probes, metrics, rollouts and the choice of voters.

use std::collections::BTreeMap;

use covey_types::NodeId;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;

use super::group::Group;
use super::raft::LogId;
use super::types::{GroupStatus, Member};

fn index(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index)
}

impl Group {
    /// Returns the state that the engine last reported.
    pub(super) fn status(&self) -> GroupStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let named = |ids: Vec<NodeId>| -> BTreeMap<NodeId, Member> {
            ids.into_iter().map(|id| (id, membership.get_node(&id).copied().unwrap_or_default())).collect()
        };
        let last = metrics.last_log_index.unwrap_or(0);
        let leads = metrics.state == ServerState::Leader;
        let replication = metrics.replication.as_ref().filter(|_| leads);
        let lag = replication.into_iter().flatten().filter(|(id, _)| **id != metrics.id);
        GroupStatus {
            term: metrics.current_term,
            leader: metrics.current_leader,
            commit: index(metrics.cluster_committed.max(metrics.local_committed)),
            applied: *self.progress.applied.borrow(),
            last,
            snapshot: self.snapshots.current().and_then(|file| file.index()).unwrap_or(0),
            purged: index(metrics.purged),
            voters: named(membership.voter_ids().collect()),
            learners: named(membership.learner_ids().collect()),
            joint: membership.get_joint_config().len() > 1,
            lag: lag.map(|(id, matched)| (*id, matched.map(|at| last.saturating_sub(at.index)))).collect(),
        }
    }
}
