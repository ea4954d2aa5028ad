//! A node's own lease and epoch: until when it may serve, and under which name its sessions live.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use covey_core::meta::{Answer, Command};
use covey_raft::{Cluster, GroupId, NodeId};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, trace, warn};

use crate::clock;
use crate::wire::{Grant, Renewal, Verdict};

/// The epoch ended while something waited for its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node's epoch ended")]
pub struct Lapsed;

/// What everybody on the node may ask about the lease.
#[derive(Debug)]
pub struct Lease {
    state: watch::Sender<State>,
    nudge: Notify,
}

#[derive(Debug, Clone, Default)]
struct State {
    /// 0 while there is none.
    epoch: u64,
    /// Boot time; the lease may be used before it.
    until: Duration,
    /// When the renewal behind the newest grant was sent, and who may hold leases besides.
    granted: Duration,
    leased: Vec<NodeId>,
}

/// What the holder needs from the node around it.
pub(crate) trait Surroundings: Send + Sync + 'static {
    /// Asks the meta leader; `None` when it was not reached or did not answer.
    fn renew(&self, renewal: Renewal) -> BoxFuture<'static, Option<Grant>>;
    /// Members from which this node heard lately.
    fn reaches(&self) -> Vec<NodeId>;
    /// Returns when the filters of the node's transient sessions, as of after the call, are known here.
    fn fetch_filters(&self, node: NodeId) -> BoxFuture<'static, ()>;
    /// A new epoch: numbers begin at 1.
    fn on_epoch(&self, epoch: u64);
    /// The epoch is over: its clients are closed.
    fn on_epoch_end(&self, epoch: u64);
}

impl Lease {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: watch::channel(State::default()).0, nudge: Notify::new() })
    }

    /// The epoch whose lease is valid at this moment.
    pub fn valid_epoch(&self) -> Option<u64> {
        let state = self.state.borrow();
        (state.epoch > 0 && clock::now() < state.until).then_some(state.epoch)
    }

    /// The present epoch, leased or not; 0 for none.
    pub fn epoch(&self) -> u64 {
        self.state.borrow().epoch
    }

    /// Whether the epoch holds its lease now.
    pub fn is_valid(&self, epoch: u64) -> bool {
        self.valid_epoch() == Some(epoch)
    }

    /// Waits until the epoch holds its lease.
    pub async fn held(&self, epoch: u64) -> Result<(), Lapsed> {
        let mut changes = self.state.subscribe();
        loop {
            {
                let state = changes.borrow_and_update();
                if state.epoch != epoch {
                    return Err(Lapsed);
                }
                if clock::now() < state.until {
                    return Ok(());
                }
            }
            changes.changed().await.map_err(|_| Lapsed)?;
        }
    }

    /// Nodes that may hold a lease, by a grant asked for after this call.
    pub async fn leased_from_now(&self, epoch: u64) -> Result<Vec<NodeId>, Lapsed> {
        let (asked, mut changes) = (clock::now(), self.state.subscribe());
        self.nudge.notify_one();
        loop {
            {
                let state = changes.borrow_and_update();
                if state.epoch != epoch {
                    return Err(Lapsed);
                }
                if state.granted >= asked && clock::now() < state.until {
                    return Ok(state.leased.clone());
                }
            }
            changes.changed().await.map_err(|_| Lapsed)?;
        }
    }
}

/// Keeps the lease: one task per node.
#[derive(Debug)]
pub(crate) struct Holder<S> {
    pub lease: Arc<Lease>,
    pub cluster: Cluster,
    pub node: NodeId,
    pub incarnation: u64,
    pub duration: Duration,
    pub close_clients_after: Duration,
    pub surroundings: Arc<S>,
    pub shutdown: CancellationToken,
}

/// One epoch's progress.
#[derive(Debug, Default)]
struct Progress {
    sequence: u64,
    sent: BTreeMap<u64, Duration>,
    preparing: Option<Preparing>,
    preparations: u64,
}

/// A first lease, or one after a lapse, that is not used yet.
#[derive(Debug)]
struct Preparing {
    number: u64,
    /// The end it will have.
    until: Duration,
    /// Who may hold a lease by the newest grant: nobody else's filters are waited for.
    leased: watch::Sender<Vec<NodeId>>,
}

type Asking = FuturesUnordered<BoxFuture<'static, Option<Grant>>>;

impl<S: Surroundings> Holder<S> {
    /// Runs until shutdown: takes an epoch, keeps its lease, ends it when it is lost for good, takes the next.
    pub(crate) async fn run(self) {
        let mut former = 0;
        while let Some(epoch) = self.take_epoch(former).await {
            info!(epoch, "epoch begun");
            self.surroundings.on_epoch(epoch);
            self.lease.state.send_modify(|state| *state = State { epoch, ..State::default() });
            let stopped = self.keep(epoch).await;
            self.lease.state.send_modify(|state| *state = State::default());
            self.surroundings.on_epoch_end(epoch);
            if stopped {
                return;
            }
            warn!(epoch, "epoch over: its clients are closed");
            former = epoch;
        }
    }

    /// Asks meta until it gives an epoch; `None` at shutdown.
    async fn take_epoch(&self, former: u64) -> Option<u64> {
        loop {
            let command = Command::NodeUp { node: self.node, incarnation: self.incarnation, former }.encode();
            // Asking again is harmless; a leader that was cut off may keep the question for ever.
            let asked = tokio::time::timeout(self.duration, self.cluster.propose_at_leader(GroupId::META, command));
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

    /// Keeps the lease of one epoch; true when the node stops, false when the epoch is over.
    async fn keep(&self, epoch: u64) -> bool {
        let mut progress = Progress::default();
        let mut asking: Asking = FuturesUnordered::new();
        let mut preparing: FuturesUnordered<BoxFuture<'static, u64>> = FuturesUnordered::new();
        let mut applied = self.cluster.applied(GroupId::META);
        let mut tick = tokio::time::interval(self.duration / 6);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // An epoch that never had a lease has no clients to close.
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
            let until = self.lease.state.borrow().until;
            if until > Duration::ZERO && clock::now() > until + self.close_clients_after {
                return false;
            }
        }
    }

    fn ask(&self, epoch: u64, progress: &mut Progress, asking: &Asking) {
        // A leader that does not answer must not pile questions up.
        if asking.len() >= 16 {
            return;
        }
        progress.sequence += 1;
        progress.sent.insert(progress.sequence, clock::now());
        while progress.sent.len() > 64 {
            progress.sent.pop_first();
        }
        asking.push(self.surroundings.renew(Renewal {
            node: self.node,
            epoch,
            sequence: progress.sequence,
            applied: *self.cluster.applied(GroupId::META).borrow(),
            reaches: self.surroundings.reaches(),
        }));
    }

    /// Extends the lease, or returns the verdict where more must happen.
    fn on_grant(&self, grant: Grant, progress: &mut Progress) -> Option<Verdict> {
        let sent = progress.sent.remove(&grant.sequence)?;
        let Verdict::Granted { leased, anew, .. } = &grant.verdict else { return Some(grant.verdict) };
        let until = sent + self.duration;
        let lapsed = clock::now() >= self.lease.state.borrow().until;
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
            state.until = state.until.max(until);
            if sent >= state.granted {
                state.granted = sent;
                state.leased.clone_from(leased);
            }
        });
        None
    }

    /// What must be known before a new lease is used: meta up to the grant, and everybody's transient filters after it.
    fn prepare(&self, begun: &Preparing, commit: u64) -> BoxFuture<'static, u64> {
        let (cluster, surroundings, node) = (self.cluster.clone(), self.surroundings.clone(), self.node);
        let (number, leased) = (begun.number, begun.leased.subscribe());
        Box::pin(async move {
            cluster.await_applied(GroupId::META, commit).await;
            let others: Vec<NodeId> = leased.borrow().iter().copied().filter(|other| *other != node).collect();
            for other in others {
                let mut leased = leased.clone();
                let left = async {
                    // An error means that another preparation took the place of this one.
                    drop(leased.wait_for(|leased| !leased.contains(&other)).await);
                };
                tokio::select! {
                    () = surroundings.fetch_filters(other) => {}
                    () = left => {}
                }
            }
            number
        })
    }

    fn on_prepared(&self, number: u64, progress: &mut Progress) {
        if progress.preparing.as_ref().is_none_or(|preparing| preparing.number != number) {
            return;
        }
        if let Some(preparing) = progress.preparing.take() {
            info!("lease held");
            self.lease.state.send_modify(|state| state.until = state.until.max(preparing.until));
        }
    }
}
