//! Membership and leadership of a group: formation, growth, replacement and transfer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use covey_types::NodeId;
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use tokio::time::{Instant, timeout, timeout_at};

use super::group::{Group, chain};
use super::raft::Types;
use super::types::{ChangeError, InitializeError, Member};

/// Most entries that a learner may lack to become a voter; it gets the rest while the change is committed.
const CLOSE: u64 = 1_000;
/// Most entries that a follower may lack to receive the leadership; it gets the rest before it campaigns.
const AT_THE_TAIL: u64 = 256;
/// Time that a follower has to come that close.
const TAIL_WAIT: Duration = Duration::from_secs(2);

type WriteError = RaftError<Types, ClientWriteError<Types>>;

fn refused(error: WriteError) -> ChangeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => ChangeError::NotLeader(forward.leader_id),
        RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_))) => {
            ChangeError::InProgress
        }
        RaftError::APIError(other) => ChangeError::Refused(chain(&other)),
        RaftError::Fatal(_) => ChangeError::Stopped,
    }
}

impl Group {
    /// Forms the group with these voters. A group that has members is left as it is.
    pub(super) async fn initialize(&self, members: &BTreeMap<NodeId, Member>) -> Result<(), InitializeError> {
        let initialized = self.raft.is_initialized().await.map_err(|_| InitializeError::Stopped)?;
        if initialized {
            return Ok(());
        }
        match self.raft.initialize(members.clone()).await {
            Err(RaftError::APIError(openraft::errors::InitializeError::NotInMembers(_))) => {
                Err(InitializeError::NotListed)
            }
            // Not allowed: an entry or a vote of another member arrived in the meantime.
            Ok(()) | Err(RaftError::APIError(openraft::errors::InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::Fatal(_)) => Err(InitializeError::Stopped),
        }
    }

    /// Changes the members: adds learners, changes the voters in one joint change when they are close, then removes
    /// all other nodes.
    pub(super) async fn set_voters(
        &self,
        voters: BTreeMap<NodeId, Member>,
        learners: BTreeMap<NodeId, Member>,
        catch_up: Duration,
    ) -> Result<(), ChangeError> {
        let wanted: BTreeMap<NodeId, Member> = voters.iter().chain(&learners).map(|(id, m)| (*id, *m)).collect();
        let status = self.status();
        if !self.leadership.borrow().ours {
            return Err(ChangeError::NotLeader(status.leader));
        }
        let known: BTreeMap<NodeId, Member> =
            status.voters.iter().chain(&status.learners).map(|(id, m)| (*id, *m)).collect();
        for (id, member) in &wanted {
            if known.get(id) != Some(member) {
                self.add_node(*id, *member, known.contains_key(id)).await?;
            }
        }
        let deadline = Instant::now() + catch_up;
        for id in voters.keys().filter(|id| !status.voters.contains_key(id)) {
            self.await_lag(*id, CLOSE, deadline).await?.ok_or(ChangeError::Timeout(*id))?;
        }
        let ids: BTreeSet<NodeId> = voters.keys().copied().collect();
        let current: BTreeSet<NodeId> = status.voters.keys().copied().collect();
        if status.joint || ids != current {
            let change = ChangeMembers::ReplaceAllVoters(ids);
            self.raft.change_membership(change, true).await.map_err(refused)?;
        }
        let leavers: BTreeSet<NodeId> =
            self.status().learners.keys().filter(|id| !wanted.contains_key(id)).copied().collect();
        if !leavers.is_empty() {
            self.raft.change_membership(ChangeMembers::RemoveNodes(leavers), true).await.map_err(refused)?;
        }
        Ok(())
    }

    /// Adds a learner, or changes the ordinal of a known node.
    async fn add_node(&self, id: NodeId, member: Member, moved: bool) -> Result<(), ChangeError> {
        let result = if moved {
            let nodes = BTreeMap::from([(id, member)]);
            self.raft.change_membership(ChangeMembers::SetNodes(nodes), true).await
        } else {
            self.raft.add_learner(id, member, false).await
        };
        result.map(drop).map_err(refused)
    }

    /// Waits until the node lacks at most `lag` entries, by the leader's count. Returns `None` when the deadline has
    /// passed.
    async fn await_lag(&self, id: NodeId, lag: u64, deadline: Instant) -> Result<Option<()>, ChangeError> {
        let mut metrics = self.raft.metrics();
        loop {
            {
                let metrics = metrics.borrow_watched();
                let replication = metrics.replication.as_ref();
                let Some(replication) = replication else { return Err(ChangeError::NotLeader(metrics.current_leader)) };
                let matched = replication.get(&id).copied().flatten().map(|id| id.index);
                let last = metrics.last_log_index.unwrap_or(0);
                if matched.is_some_and(|matched| last.saturating_sub(matched) <= lag) {
                    return Ok(Some(()));
                }
            }
            match timeout_at(deadline, metrics.changed()).await {
                Ok(Ok(())) => (),
                Ok(Err(_)) => return Err(ChangeError::Stopped),
                Err(_) => return Ok(None),
            }
        }
    }

    /// Transfers the leadership. Commands are refused from then on, until a node leads in a higher term.
    pub(super) async fn transfer_leader(&self, to: NodeId, election_max: Duration) -> Result<(), ChangeError> {
        let status = self.status();
        if !self.leadership.borrow().ours {
            return Err(ChangeError::NotLeader(status.leader));
        }
        if status.leader == Some(to) {
            return Ok(());
        }
        if !status.voters.contains_key(&to) {
            return Err(ChangeError::Behind(to));
        }
        self.await_lag(to, AT_THE_TAIL, Instant::now() + TAIL_WAIT).await?.ok_or(ChangeError::Behind(to))?;
        let mut leadership = self.leadership.clone();
        let before = leadership.borrow().term;
        self.resigned.send_replace(Some(before));
        self.raft.trigger().transfer_leader(to).await.map_err(|_| ChangeError::Stopped)?;
        let landed = leadership.wait_for(|now| now.term > before && now.leader.is_some());
        match timeout(election_max * 4, landed).await {
            Ok(Ok(now)) if now.leader == Some(to) => Ok(()),
            Ok(Ok(_)) | Err(_) => Err(ChangeError::NotTaken(to)),
            Ok(Err(_)) => Err(ChangeError::Stopped),
        }
    }
}
