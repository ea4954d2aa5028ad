//! One broker of the cluster, as the rest of the process sees it: its sessions, its groups and its state.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use covey_contract::config::Config;
use covey_raft::{GroupStatus, RaftGroups};
use covey_types::{GroupId, NodeId, Ordinal, ShardId};
use futures::future::BoxFuture;
use tracing::debug;

use crate::lease::Lease;
use crate::membership::{Roster, voters_of};
use crate::network::Network;
use crate::publish::{RetainedMessages, Router};
use crate::session::NodeSessions;
use crate::state::{SharedMeta, SharedShard};
use crate::tasks::Tasks;
use crate::transient::{Filters, Incoming};

/// A replica that lacks at most this many entries counts as in sync.
const IN_SYNC_LAG: u64 = 100;

/// One broker of the cluster.
pub struct Node {
    /// Node id, made once per data directory.
    pub(crate) id: NodeId,
    /// The broker's configuration.
    pub(crate) config: Arc<Config>,
    /// The Raft groups.
    pub(crate) raft: RaftGroups,
    /// Applied state of the meta group: members, epochs and routes.
    pub(crate) meta: Arc<SharedMeta>,
    /// Applied state of each shard, by shard number; without meaning where this node has no replica.
    pub(crate) replicas: Vec<Arc<SharedShard>>,
    /// This node's epoch and lease.
    pub(crate) lease: Arc<Lease>,
    /// Sends publishes to shards, other nodes and local sessions.
    pub(crate) router: Arc<Router>,
    /// Writes and reads the retained messages.
    pub(crate) retained: Arc<RetainedMessages>,
    /// Sessions of this node, as connections use them.
    pub(crate) sessions: NodeSessions,
    /// Subscriptions of the transient sessions on this node.
    pub(crate) filters: Arc<Filters>,
    /// Streams on which other nodes publish to the transient sessions here.
    pub(crate) incoming: Arc<Incoming>,
    /// Reaches the services of other nodes.
    pub(crate) network: Arc<Network>,
    /// Starts tasks, and waits for them at the end.
    pub(crate) tasks: Tasks,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Node {
    /// Returns the node id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Returns the broker's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the sessions of this node, as connections use them.
    pub fn sessions(&self) -> NodeSessions {
        self.sessions.clone()
    }

    /// Returns whether this node holds a valid lease now.
    pub fn has_lease(&self) -> bool {
        self.lease.valid_epoch().is_some()
    }

    /// Returns the number of sessions that connections of this node hold.
    pub fn sessions_here(&self) -> usize {
        self.router.sessions.len()
    }

    /// Returns the number of sessions on this node, by user name.
    pub fn clients_by_user(&self) -> HashMap<String, u32> {
        self.router.sessions.by_user()
    }

    /// Returns the number of transient sessions on this node.
    pub fn transient_sessions(&self) -> usize {
        self.router.sessions.transient()
    }

    /// Returns the number of members that this node hears, itself included, and the number of members of the cluster.
    pub fn members_heard(&self) -> (usize, usize) {
        let members = self.meta.state.read().present_members().count();
        (1 + self.router.peers.heard(self.config.fence.lease).len(), members)
    }

    /// Returns totals of the durable sessions in the shards that this node leads. Takes each shard's lock for a pass
    /// over its sessions.
    pub fn durable_totals(&self) -> Durables {
        let mut totals = Durables::default();
        let led = |shard| self.leads(GroupId::shard(shard));
        for (replica, _) in self.replicas.iter().zip(self.shard_ids()).filter(|(_, shard)| led(*shard)) {
            let state = replica.state.lock();
            state
                .sessions()
                .filter(|(_, session)| session.profile.durable)
                .for_each(|(_, session)| totals.add(session));
        }
        totals
    }

    /// Returns the number of retained messages and the bytes that they are charged.
    pub fn retained_size(&self) -> (usize, u64) {
        self.retained.size()
    }

    /// Returns the members that were not removed, by ordinal, as of the meta entries applied here.
    pub fn members_by_ordinal(&self) -> BTreeMap<Ordinal, NodeId> {
        self.meta.members_by_ordinal()
    }

    /// Returns the members that were not removed, and which of them retire, as of the meta entries applied here.
    pub(crate) fn roster(&self) -> Roster {
        self.meta.roster()
    }

    /// Returns the number of nodes that the cluster is to have, as of the meta entries applied here; `None` if it was
    /// never told.
    pub fn cluster_size(&self) -> Option<u32> {
        self.meta.state.read().size()
    }

    /// Returns whether the voters and learners of a group that this node leads are those that the roster requires.
    pub(crate) fn has_wanted_members(&self, group: GroupId, roster: &Roster) -> bool {
        let (voters, learners) = voters_of(group, roster);
        let status = self.raft.status(group);
        // A joint change that an earlier leader left unfinished is still to be completed.
        !status.joint && status.voters == voters && status.learners == learners
    }

    /// Groups that this node leads and whose voters or learners are still to be changed.
    pub fn groups_changing(&self) -> impl Iterator<Item = GroupId> {
        let roster = self.roster();
        self.groups_led().filter(move |group| !self.has_wanted_members(*group, &roster))
    }

    /// Returns whether this node is a member, as of the meta entries applied here.
    pub fn is_member(&self) -> bool {
        self.meta.state.read().member(self.id).is_some_and(|member| !member.removed)
    }

    /// All groups of the cluster.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        [GroupId::META, GroupId::RETAINED].into_iter().chain(self.shard_ids().map(GroupId::shard))
    }

    /// Returns what this node knows about a group.
    pub fn group_status(&self, group: GroupId) -> GroupStatus {
        self.raft.status(group)
    }

    /// Returns the leader of a group, as far as this node knows. It cannot know that of a group that it does not hold.
    pub fn leader_of(&self, group: GroupId) -> Option<NodeId> {
        self.raft.leadership(group).borrow().leader
    }

    /// Returns whether this node leads the group.
    pub fn leads(&self, group: GroupId) -> bool {
        self.raft.leadership(group).borrow().ours
    }

    /// Groups of which this node is a voter or a learner.
    pub fn groups_held(&self) -> impl Iterator<Item = GroupId> {
        let roster = self.roster();
        self.groups().filter(move |group| self.holds(*group, &roster))
    }

    /// Returns whether this node has a replica of the group. A node that was removed from a group may never receive
    /// the entry that removes it and still list itself, so its voters must name it as well, unless it still leads.
    fn holds(&self, group: GroupId, roster: &Roster) -> bool {
        if !self.raft.status(group).has_member(self.id) {
            return false;
        }
        let (voters, learners) = voters_of(group, roster);
        // Before the cluster is formed meta has no members.
        roster.is_empty() || voters.contains_key(&self.id) || learners.contains_key(&self.id) || self.leads(group)
    }

    /// Groups that this node leads.
    pub fn groups_led(&self) -> impl Iterator<Item = GroupId> {
        self.groups().filter(|group| self.leads(*group))
    }

    fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        ShardId::all(self.config.cluster.shards)
    }

    /// Returns the voters that lack more than `IN_SYNC_LAG` entries or are not heard, for each group that this node
    /// leads and that has such voters.
    pub fn voters_behind(&self) -> BTreeMap<GroupId, Vec<NodeId>> {
        let behind = |group: GroupId| {
            let status = self.raft.status(group);
            let is_behind = |node: &NodeId, lag: Option<u64>| {
                status.voters.contains_key(node) && lag.is_none_or(|lag| lag > IN_SYNC_LAG)
            };
            let voters: Vec<NodeId> =
                status.lag.iter().filter(|(node, lag)| is_behind(node, **lag)).map(|(node, _)| *node).collect();
            (!voters.is_empty()).then_some((group, voters))
        };
        self.groups_led().filter_map(behind).collect()
    }

    /// Transfers every leadership to the voter that lacks the fewest entries. A transfer that fails is logged and
    /// skipped.
    pub fn transfer_leaders(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let led: Vec<GroupId> = self.groups_led().collect();
            for group in led {
                let status = self.raft.status(group);
                let behind = |node: &NodeId| status.lag.get(node).copied().flatten().unwrap_or(u64::MAX);
                let others = status.voters.keys().copied().filter(|node| *node != self.id);
                if let Some(to) = others.min_by_key(behind)
                    && let Err(error) = self.raft.transfer_leader(group, to).await
                {
                    debug!(%group, %error, "leadership not transferred");
                }
            }
        })
    }

    /// Waits until all tasks have ended, and stops the groups. The token of [`StartOptions`](crate::StartOptions) must
    /// be cancelled before: the tasks end with it.
    pub fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.tasks.finish().await;
            self.raft.stop().await;
        })
    }
}

/// Totals of durable sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Durables {
    /// Sessions with a connection.
    pub online: usize,
    /// Sessions without a connection.
    pub offline: usize,
    /// Subscriptions.
    pub subscriptions: usize,
    /// Messages in inboxes.
    pub queued: usize,
    /// Bytes that they are charged.
    pub queued_bytes: u64,
    /// Fullest inbox, as a fraction of its limit of messages or bytes.
    pub fill_ratio_max: f64,
}

impl Durables {
    fn add(&mut self, session: &covey_core::shard::Session) {
        let (profile, inbox) = (&session.profile, &session.inbox);
        if profile.holder.is_some() {
            self.online += 1;
        } else {
            self.offline += 1;
        }
        self.subscriptions += profile.subscriptions.len();
        self.queued += inbox.len();
        self.queued_bytes += inbox.bytes();
        let messages = u32::try_from(inbox.len()).map_or(1.0, f64::from) / f64::from(profile.limits.messages.max(1));
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        let bytes = inbox.bytes() as f64 / profile.limits.bytes.max(1) as f64;
        self.fill_ratio_max = self.fill_ratio_max.max(messages).max(bytes);
    }
}
