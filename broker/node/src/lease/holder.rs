//! Takes the epochs of this node and renews its lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use covey_core::meta::{Answer, Command};
use covey_raft::RaftGroups;
use covey_types::{GroupId, NodeEpoch, NodeId};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, trace, warn};

use super::validity::{Lease, State};
use super::wire::{Grant, Renewal, Verdict};
use crate::clock;

/// Callbacks of the holder into the node.
pub(crate) trait HolderContext: Send + Sync + 'static {
    /// Asks the meta leader for a lease; `None` if it was not reached or did not answer in time.
    fn renew(&self, renewal: Renewal) -> BoxFuture<'static, Option<Grant>>;
    /// Returns the members that this node has heard within half a lease.
    fn reaches(&self) -> Vec<NodeId>;
    /// Waits until the filters of the node's transient sessions are known here, as of a point after the call.
    fn fetch_filters(&self, node: NodeId) -> BoxFuture<'static, ()>;
    /// Handles a new epoch: numbers begin at 1.
    fn on_epoch(&self, epoch: NodeEpoch);
    /// Handles the end of an epoch: its clients are closed.
    fn on_epoch_end(&self, epoch: NodeEpoch);
}

/// Takes epochs and renews their leases; one task per node.
#[derive(Debug)]
pub(crate) struct Holder<S> {
    /// The lease that this task writes.
    pub lease: Arc<Lease>,
    /// Access to meta.
    pub raft: RaftGroups,
    /// This node.
    pub node: NodeId,
    /// Number of this process start.
    pub incarnation: u64,
    /// Length of a lease.
    pub duration: Duration,
    /// Time after the end of a lease at which the epoch ends.
    pub close_clients_after: Duration,
    /// The node around the holder.
    pub context: Arc<S>,
    /// Stops the task.
    pub shutdown: CancellationToken,
}

/// Renewals of one epoch.
#[derive(Debug, Default)]
struct Progress {
    /// Number of the last renewal.
    sequence: u64,
    /// Boot-time clock at which each unanswered renewal was sent, by number; the 64 newest.
    sent: BTreeMap<u64, Duration>,
    /// New lease in preparation; `None` if the lease is in use or was not granted.
    preparing: Option<Preparing>,
    /// Number of the last preparation.
    preparations: u64,
}

/// A new lease, or one after a lapse, that is not used yet.
#[derive(Debug)]
struct Preparing {
    /// Number of the preparation; an earlier one is superseded.
    number: u64,
    /// Boot-time clock until which it will be valid; extended by further grants.
    until: Duration,
    /// Nodes that may hold a lease, by the newest grant: only the filters of these are waited for.
    leased: watch::Sender<Vec<NodeId>>,
}

/// Renewals in progress.
type Asking = FuturesUnordered<BoxFuture<'static, Option<Grant>>>;

impl<S: HolderContext> Holder<S> {
    /// Runs until shutdown: takes an epoch, renews its lease, ends it when it is lost for good, and takes the next.
    pub(crate) async fn run(self) {
        let mut former = None;
        while let Some(epoch) = self.take_epoch(former).await {
            info!(epoch = epoch.get(), "epoch begun");
            self.context.on_epoch(epoch);
            self.lease.state.send_modify(|state| *state = State { epoch: Some(epoch), ..State::default() });
            let stopped = self.renew_until_over(epoch).await;
            self.lease.state.send_modify(|state| *state = State::default());
            self.context.on_epoch_end(epoch);
            if stopped {
                return;
            }
            warn!(epoch = epoch.get(), "epoch over: its clients are closed");
            former = Some(epoch);
        }
    }

    /// Proposes `NodeUp` until meta assigns an epoch; `None` at shutdown.
    async fn take_epoch(&self, former: Option<NodeEpoch>) -> Option<NodeEpoch> {
        loop {
            let command = Command::NodeUp { node: self.node, incarnation: self.incarnation, former }.encode();
            // A repetition is harmless. A leader that is cut off may never answer.
            let asked = tokio::time::timeout(self.duration, self.raft.propose_at_leader(GroupId::META, command));
            tokio::select! {
                () = self.shutdown.cancelled() => return None,
                answer = asked => match answer.map(|answer| answer.map(|response| Answer::decode(&response.bytes))) {
                    Ok(Ok(Some(Answer::Epoch(epoch)))) => return Some(epoch),
                    Ok(Ok(answer)) => debug!(?answer, "no epoch yet: not a member"),
                    Ok(Err(error)) => debug!(%error, "no epoch yet"),
                    Err(_) => debug!("no epoch yet: no answer"),
                },
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return None,
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
    }

    /// Renews the lease of one epoch. Returns `true` at shutdown, `false` when the epoch is over.
    async fn renew_until_over(&self, epoch: NodeEpoch) -> bool {
        let mut progress = Progress::default();
        let mut asking: Asking = FuturesUnordered::new();
        let mut preparing: FuturesUnordered<BoxFuture<'static, u64>> = FuturesUnordered::new();
        let mut applied = self.raft.applied(GroupId::META);
        let mut tick = tokio::time::interval(self.duration / 6);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return true,
                _ = tick.tick() => self.ask(epoch, &mut progress, &asking),
                () = self.lease.nudge.notified() => self.ask(epoch, &mut progress, &asking),
                Ok(()) = applied.changed(), if asking.len() < 2 => self.ask(epoch, &mut progress, &asking),
                Some(grant) = asking.next() => {
                    trace!(?grant, "renewal answered");
                    let verdict = grant.map(|grant| self.on_grant(grant, &mut progress));
                    match verdict {
                        Some(Some(Verdict::Ended)) => return false,
                        Some(Some(Verdict::Granted { commit, .. })) => {
                            preparing.extend(progress.preparing.as_ref().map(|begun| self.prepare(begun, commit)));
                        }
                        _ => {}
                    }
                }
                Some(number) = preparing.next() => self.on_prepared(number, &mut progress),
            }
            // An epoch that never had a lease has no clients to close.
            let until = self.lease.state.borrow().until;
            if until.is_some_and(|until| clock::now() > until + self.close_clients_after) {
                return false;
            }
        }
    }

    /// Sends a renewal, unless too many are unanswered.
    fn ask(&self, epoch: NodeEpoch, progress: &mut Progress, asking: &Asking) {
        // Bounds the renewals to a leader that does not answer.
        if asking.len() >= 16 {
            return;
        }
        progress.sequence += 1;
        progress.sent.insert(progress.sequence, clock::now());
        while progress.sent.len() > 64 {
            progress.sent.pop_first();
        }
        asking.push(self.context.renew(Renewal {
            node: self.node,
            epoch,
            sequence: progress.sequence,
            applied: *self.raft.applied(GroupId::META).borrow(),
            reaches: self.context.reaches(),
        }));
    }

    /// Extends the lease, or returns the verdict if it is not a grant or a new lease must be prepared.
    fn on_grant(&self, grant: Grant, progress: &mut Progress) -> Option<Verdict> {
        let sent = progress.sent.remove(&grant.sequence)?;
        let Verdict::Granted { leased, anew, .. } = &grant.verdict else { return Some(grant.verdict) };
        let until = sent + self.duration;
        let lapsed = !self.lease.state.borrow().is_valid();
        if let (Some(preparing), false) = (&mut progress.preparing, *anew) {
            preparing.until = until.max(preparing.until);
            preparing.leased.send_replace(leased.clone());
            return None;
        }
        if lapsed || *anew {
            progress.preparations += 1;
            let leased = watch::channel(leased.clone()).0;
            progress.preparing = Some(Preparing { number: progress.preparations, until, leased });
            return Some(grant.verdict);
        }
        self.lease.state.send_modify(|state| {
            state.until = state.until.max(Some(until));
            if Some(sent) >= state.granted {
                state.granted = Some(sent);
                state.leased.clone_from(leased);
            }
        });
        None
    }

    /// Waits for what a new lease requires: meta applied up to the grant, and the transient filters of every other
    /// leased node.
    fn prepare(&self, begun: &Preparing, commit: u64) -> BoxFuture<'static, u64> {
        let (raft, context, node) = (self.raft.clone(), self.context.clone(), self.node);
        let (number, leased) = (begun.number, begun.leased.subscribe());
        Box::pin(async move {
            raft.await_applied(GroupId::META, commit).await;
            let others: Vec<NodeId> = leased.borrow().iter().copied().filter(|other| *other != node).collect();
            for other in others {
                let mut leased = leased.clone();
                let left = async {
                    // Fails if another preparation has superseded this one.
                    drop(leased.wait_for(|leased| !leased.contains(&other)).await);
                };
                tokio::select! {
                    () = context.fetch_filters(other) => {}
                    () = left => {}
                }
            }
            number
        })
    }

    /// Starts to use a new lease, unless its preparation was superseded.
    fn on_prepared(&self, number: u64, progress: &mut Progress) {
        if progress.preparing.as_ref().is_none_or(|preparing| preparing.number != number) {
            return;
        }
        if let Some(preparing) = progress.preparing.take() {
            info!("lease held");
            self.lease.state.send_modify(|state| state.until = state.until.max(Some(preparing.until)));
        }
    }
}
