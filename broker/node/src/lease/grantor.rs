//! Grants of leases by the meta leader. Its state is in memory; a new leader assumes that every node holds a lease
//! until leases of the former leader must have expired.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use covey_core::meta::{Command, Member};
use covey_raft::RaftGroups;
use covey_types::{GroupId, NodeEpoch, NodeId};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::wire::{Grant, Renewal, Verdict};
use super::with_drift;
use crate::channel::reply;
use crate::clock;
use crate::state::SharedMeta;

/// A request to the grantor. If this node does not lead meta or has no majority, the sender of the answer is dropped.
#[derive(Debug)]
pub(crate) enum Request {
    /// Asks for a lease.
    Renew(Renewal, oneshot::Sender<Grant>),
    /// Asks to be answered when every node that may hold a lease has applied meta up to the index.
    AwaitRoute(u64, oneshot::Sender<()>),
    /// Asks whether the node may hold a lease, by this leader's count.
    MayHoldLease(NodeId, oneshot::Sender<bool>),
}

/// Grants leases and ends epochs while this node leads meta; one task per node.
#[derive(Debug)]
pub(crate) struct Grantor {
    /// The groups.
    pub raft: RaftGroups,
    /// Members and their epochs.
    pub meta: Arc<SharedMeta>,
    /// Length of a lease.
    pub lease: Duration,
    /// Time after the end of a lease at which a node ends its epoch.
    pub close_clients_after: Duration,
    /// Requests of this node and of others.
    pub requests: mpsc::Receiver<Request>,
    /// Stops the task.
    pub shutdown: CancellationToken,
}

/// State of one term, dropped with it.
#[derive(Debug)]
struct Term {
    /// Raft term of the meta group.
    number: u64,
    /// Boot-time clock at the beginning of the term.
    elected: Duration,
    /// What is known of each node's current epoch.
    nodes: BTreeMap<NodeId, Count>,
    /// Commit indexes of meta with the boot-time clock at which they were read, oldest first; about one second.
    commits: VecDeque<(Duration, u64)>,
    /// Waiting `AwaitRoute` requests: log index and answer.
    waiting: Vec<(u64, oneshot::Sender<()>)>,
}

/// State of a node's epoch.
#[derive(Debug, Default)]
struct Count {
    /// The epoch to which the other fields belong.
    epoch: Option<NodeEpoch>,
    /// Boot-time clock at which this leader first knew the epoch.
    since: Duration,
    /// Boot-time clock at the last grant; `None` without one in this term.
    answered: Option<Duration>,
    /// Highest log index of meta that the node has reported as applied.
    applied: u64,
    /// Members that the node hears, by its last renewal.
    reaches: Vec<NodeId>,
    /// Members that the node does not hear although both may hold leases, each with the
    /// boot-time clock at which it was first missed.
    unreached: BTreeMap<NodeId, Duration>,
}

impl Grantor {
    /// Answers requests while this node leads meta, until shutdown.
    pub(crate) async fn run(mut self) {
        let mut leadership = self.raft.leadership(GroupId::META);
        let mut term: Option<Term> = None;
        let mut tick = tokio::time::interval(self.lease / 12);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = *leadership.borrow_and_update();
            match &term {
                Some(known) if now.ours && known.number == now.term => {}
                _ if now.ours => term = Some(Term::new(now.term)),
                _ => term = None,
            }
            let first = tokio::select! {
                () = self.shutdown.cancelled() => return,
                _ = leadership.changed() => continue,
                request = self.requests.recv() => match request { Some(request) => Some(request), None => return },
                _ = tick.tick() => None,
            };
            let Some(term) = &mut term else { continue };
            self.round(term, first).await;
        }
    }

    /// Handles all queued requests with one ReadIndex round.
    async fn round(&mut self, term: &mut Term, first: Option<Request>) {
        let mut renewals = Vec::new();
        let mut requests: Vec<Request> = first.into_iter().collect();
        while let Ok(request) = self.requests.try_recv() {
            requests.push(request);
        }
        for request in requests {
            match request {
                Request::Renew(renewal, answer) => {
                    let verdict = self.judge(term, &renewal);
                    renewals.push((renewal, verdict, answer));
                }
                Request::AwaitRoute(index, answer) => term.waiting.push((index, answer)),
                Request::MayHoldLease(node, answer) => {
                    reply(answer, self.leased_nodes(term).contains(&node));
                }
            }
        }
        let applied = self.applied_by_all(term);
        let (ready, waiting) = std::mem::take(&mut term.waiting).into_iter().partition(|(index, _)| *index <= applied);
        term.waiting = waiting;
        let ready: Vec<(u64, oneshot::Sender<()>)> = ready;
        let overdue = self.overdue(term);
        if renewals.is_empty() && ready.is_empty() && overdue.is_empty() {
            return;
        }
        // Without a confirmation by a majority nothing is answered: another leader may have answered already.
        let Ok(commit) = self.raft.read_index(GroupId::META).await else { return };
        term.note_commit(commit);
        self.grant(term, renewals, commit);
        for (_, answer) in ready {
            reply(answer, ());
        }
        for (node, epoch) in overdue {
            warn!(%node, epoch = epoch.get(), "the node has had no lease for too long; ending its epoch");
            let command = Command::NodeDown { node, epoch }.encode();
            drop(self.raft.propose(GroupId::META, command).await);
        }
    }

    /// Answers renewals. The grantor counts a lease from here, after the ReadIndex round.
    fn grant(&self, term: &mut Term, renewals: Vec<(Renewal, Verdict, oneshot::Sender<Grant>)>, commit: u64) {
        for (renewal, mut verdict, answer) in renewals {
            if let Verdict::Granted { anew, .. } = verdict {
                let now = clock::now();
                let count = term.nodes.entry(renewal.node).or_default();
                count.answered = Some(now);
                let leased = self.leased_nodes(term);
                verdict = Verdict::Granted { commit, leased, anew };
            }
            reply(answer, Grant { sequence: renewal.sequence, verdict });
        }
    }

    /// Decides on a renewal. Commit index and leased nodes of a grant are filled in after the ReadIndex round.
    fn judge(&self, term: &mut Term, renewal: &Renewal) -> Verdict {
        let now = clock::now();
        let current = {
            let state = self.meta.state.read();
            state
                .member(renewal.node)
                .is_some_and(|member| !member.removed && member.open_epoch() == Some(renewal.epoch))
        };
        if !current {
            return Verdict::Ended;
        }
        let due = term.commit_a_second_ago(now).unwrap_or_default();
        let behind = renewal.applied < due;
        if behind {
            let (node, applied) = (renewal.node, renewal.applied);
            debug!(%node, applied, due, "lease refused: the node is behind in applying meta");
        }
        let count = term.count(renewal.node, renewal.epoch, now);
        count.applied = count.applied.max(renewal.applied);
        count.reaches.clone_from(&renewal.reaches);
        let anew = !self.leased_nodes(term).contains(&renewal.node);
        self.note_reach(term, renewal.node, now);
        if behind || self.is_cut_off(term, renewal.node, now) {
            return Verdict::Refused;
        }
        Verdict::Granted { commit: 0, leased: Vec::new(), anew }
    }

    /// Returns the nodes that may hold a lease: by a grant of this term, or by one of a former leader that may still
    /// be valid.
    fn leased_nodes(&self, term: &Term) -> Vec<NodeId> {
        let now = clock::now();
        let state = self.meta.state.read();
        let may_hold = |node: NodeId| {
            let counted = term.nodes.get(&node).and_then(|count| count.answered).unwrap_or(term.elected);
            now < counted.max(term.elected) + with_drift(self.lease)
        };
        state
            .present_members()
            .filter(|(node, member)| member.open_epoch().is_some() && may_hold(*node))
            .map(|(node, _)| node)
            .collect()
    }

    /// Returns the log index up to which all nodes that may hold a lease have applied meta.
    fn applied_by_all(&self, term: &Term) -> u64 {
        let applied = |node: &NodeId| term.nodes.get(node).map_or(0, |count| count.applied);
        self.leased_nodes(term).iter().map(applied).min().unwrap_or(u64::MAX)
    }

    /// Returns the epochs to end: their node got no grant for the length of a lease and `close_clients_after` (with
    /// drift), counted from the beginning of the term or of the epoch at the earliest.
    fn overdue(&self, term: &mut Term) -> Vec<(NodeId, NodeEpoch)> {
        let patience = with_drift(self.lease + self.close_clients_after);
        let (now, elected) = (clock::now(), term.elected);
        let state = self.meta.state.read();
        let mut overdue = Vec::new();
        let open = |(node, member): (NodeId, &Member)| Some((node, member.open_epoch()?));
        for (node, epoch) in state.members().filter_map(open) {
            let count = term.count(node, epoch, now);
            let counted = count.answered.unwrap_or_default().max(count.since).max(elected);
            if now > counted + patience {
                overdue.push((node, epoch));
            }
        }
        overdue
    }

    /// Records when the node stopped hearing each leased node.
    fn note_reach(&self, term: &mut Term, node: NodeId, now: Duration) {
        let alive = self.leased_nodes(term);
        let Some(count) = term.nodes.get_mut(&node) else { return };
        let reaches = &count.reaches;
        count.unreached.retain(|other, _| alive.contains(other) && !reaches.contains(other));
        for other in alive.iter().filter(|other| **other != node && !reaches.contains(other)) {
            count.unreached.entry(*other).or_insert(now);
        }
    }

    /// Returns whether the node is refused a lease because it and another node have not heard each other for the
    /// length of a lease. Of the two, the one that reaches fewer members is refused; if equal, the one with the higher id.
    fn is_cut_off(&self, term: &Term, node: NodeId, now: Duration) -> bool {
        let links = |node: NodeId| term.nodes.get(&node).map_or(0, |count| count.reaches.len());
        let since =
            |from: NodeId, to: NodeId| term.nodes.get(&from).and_then(|count| count.unreached.get(&to)).copied();
        self.leased_nodes(term).into_iter().filter(|other| *other != node).any(|other| {
            let cut = [since(node, other), since(other, node)].into_iter().flatten().min();
            let loses = (links(node), std::cmp::Reverse(node)) < (links(other), std::cmp::Reverse(other));
            let lost = cut.is_some_and(|cut| now > cut + self.lease) && loses;
            if lost {
                info!(%node, %other, "lease refused: the two do not reach each other");
            }
            lost
        })
    }
}

impl Term {
    fn new(number: u64) -> Self {
        Self { number, elected: clock::now(), nodes: BTreeMap::new(), commits: VecDeque::new(), waiting: Vec::new() }
    }

    /// Returns the state of a node's epoch; a new epoch starts with an empty one.
    fn count(&mut self, node: NodeId, epoch: NodeEpoch, now: Duration) -> &mut Count {
        let count = self.nodes.entry(node).or_default();
        if count.epoch != Some(epoch) {
            *count = Count { epoch: Some(epoch), since: now, ..Count::default() };
        }
        count
    }

    /// Records a commit index and drops those that are too old.
    fn note_commit(&mut self, commit: u64) {
        let now = clock::now();
        self.commits.push_back((now, commit));
        while self.commits.get(1).is_some_and(|(when, _)| now > *when + Duration::from_secs(1)) {
            self.commits.pop_front();
        }
    }

    /// Returns the newest known commit index that is more than a second old; `None` in the first second of a term.
    fn commit_a_second_ago(&self, now: Duration) -> Option<u64> {
        self.commits.front().filter(|(when, _)| now > *when + Duration::from_secs(1)).map(|(_, commit)| *commit)
    }
}
