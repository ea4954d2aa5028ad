//! The leader of a shard: takes operations from all nodes, commits them in batches, answers, delivers, publishes
//! routes and wills, and runs timers. One task per shard; its state is rebuilt in every term.

mod batch;
mod commit;
mod context;
mod delivery;
mod frames;
mod routes;
mod timers;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use covey_core::shard::{Effect, Operation, Publication};
use covey_raft::{Leadership, RaftGroups, RowReader};
use covey_types::{GroupId, NodeEpoch, NodeId, OwnerEpoch, ShardId};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

pub(crate) use context::LeaderContext;

use batch::{Batch, Waiter};
use delivery::{Deliveries, Output};
use routes::Routes;

use super::link::{Inbound, LinkId};
use super::wire::{FromShard, ToShard};
use crate::state::{SharedMeta, SharedShard};

/// Longest time that acknowledgements are collected before they are committed.
const ACK_COALESCE_DELAY: Duration = Duration::from_millis(20);
/// Pause before the leader begins again if it still leads: when Raft rejected an entry on an overloaded machine, all
/// nodes resend, which adds to the load.
const REENTRY_DELAY: Duration = Duration::from_millis(100);

/// The task of one shard's leader.
pub(crate) struct Leader {
    /// Number of the shard.
    pub shard: ShardId,
    /// Commits entries, and tells whether this node leads.
    pub raft: RaftGroups,
    /// Reads message bodies that are not in memory.
    pub rows: RowReader,
    /// Applied state of the shard.
    pub replica: Arc<SharedShard>,
    /// Members, their epochs, and the routes.
    pub meta: Arc<SharedMeta>,
    /// Callbacks into the node.
    pub context: Arc<dyn LeaderContext>,
    /// Frames of nodes, and beginnings and ends of links.
    pub inbound: mpsc::UnboundedReceiver<Inbound>,
    /// Effects of applied entries.
    pub effects: mpsc::UnboundedReceiver<Vec<Effect>>,
    /// Stops the task.
    pub shutdown: CancellationToken,
    /// Highest number of a route change that this process has used.
    pub order: u64,
}

/// Retained messages read for a subscription: client id, owner epoch, filter, messages.
type Found = (Box<str>, OwnerEpoch, Box<str>, Vec<Publication>);

/// State of one term.
struct Term {
    /// Raft term.
    number: u64,
    /// Group of the shard.
    group: GroupId,
    /// Reads message bodies that are not in memory.
    rows: RowReader,
    /// Open links, from this node and from others.
    links: HashMap<LinkId, LinkState>,
    /// Operations on their way into the log.
    batch: Batch,
    /// Messages on their way to the sessions' holders.
    deliveries: Deliveries,
    /// Routes of the shard in meta.
    routes: Routes,
    /// Reads of retained messages in progress.
    retained_reads: FuturesUnordered<BoxFuture<'static, Found>>,
    /// Publishes of wills in progress.
    wills: FuturesUnordered<BoxFuture<'static, u64>>,
    /// Numbers of the wills whose publishing has begun and whose removal is not applied.
    wills_begun: BTreeSet<u64>,
    /// When collected acknowledgements are committed; `None` if there are none.
    flush_at: Option<tokio::time::Instant>,
}

#[derive(Debug)]
struct LinkState {
    /// Sends to the node. Dropping it closes the link.
    replies: mpsc::UnboundedSender<FromShard>,
    /// Node and epoch from `Attach`; `None` before.
    node: Option<(NodeId, NodeEpoch)>,
    /// Frames that arrived before the fence was committed, in order.
    early: Vec<ToShard>,
}

impl Leader {
    /// Leads whenever this node is the group's leader, until shutdown.
    pub(crate) async fn run(mut self) {
        let mut leadership = self.raft.leadership(GroupId::shard(self.shard));
        let mut changes = self.meta.changes();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut term: Option<Term> = None;
        loop {
            let now = *leadership.borrow_and_update();
            if !term.as_ref().is_some_and(|term| now.ours && term.number == now.term) {
                self.end(&mut term);
                term = now.ours.then(|| self.begin(now));
            }
            let Some(current) = &mut term else {
                tokio::select! {
                    () = self.shutdown.cancelled() => return,
                    _ = leadership.changed() => {}
                    // Dropping the sender in `Opened` closes the link: the client looks for another leader.
                    _ = self.inbound.recv() => {}
                    _ = self.effects.recv() => {}
                }
                continue;
            };
            let flush_at = current.flush_at;
            current.deliveries.advance(current.batch.time());
            let lost = tokio::select! {
                () = self.shutdown.cancelled() => return,
                _ = leadership.changed() => false,
                Some(inbound) = self.inbound.recv() => { self.on_inbound(current, inbound); false }
                Some(effects) = self.effects.recv() => { self.on_effects(current, effects); false }
                completed = current.batch.next() => !self.on_completed(current, completed),
                step = current.routes.next() => !self.on_step(current, step),
                Some(read) = current.retained_reads.next() => { commit::on_retained(current, read); false }
                Some(will) = current.wills.next() => {
                    current.batch.push(Operation::WillDone { will }, Waiter::Will(will));
                    false
                }
                _ = changes.changed() => { self.watch_nodes(current); false }
                _ = tick.tick() => {
                    self.watch_timers(current);
                    self.watch_nodes(current);
                    self.is_stuck(current)
                }
                () = sleep_until(flush_at) => { flush_acknowledgements(current); false }
            };
            if lost {
                debug!(shard = self.shard.get(), "term ended; the links are closed");
                self.end(&mut term);
                tokio::select! {
                    () = self.shutdown.cancelled() => return,
                    () = tokio::time::sleep(REENTRY_DELAY) => continue,
                }
            }
            self.take_queued_input(current);
            current.batch.propose(&self.raft, current.group);
        }
    }

    /// Handles queued input, up to 1024 items, so that the batch grows with the load.
    fn take_queued_input(&mut self, term: &mut Term) {
        for _ in 0..1024 {
            let Ok(inbound) = self.inbound.try_recv() else { return };
            self.on_inbound(term, inbound);
        }
    }

    /// Ends the term. All links are closed, and clients look for the new leader.
    fn end(&mut self, term: &mut Option<Term>) {
        if let Some(term) = term.take() {
            self.order = term.routes.order();
        }
    }

    fn begin(&self, leadership: Leadership) -> Term {
        info!(shard = self.shard.get(), term = leadership.term, "leading the shard");
        let group = GroupId::shard(self.shard);
        Term {
            number: leadership.term,
            group,
            rows: self.rows.clone(),
            links: HashMap::new(),
            batch: Batch::new(self.replica.state.lock().time()),
            deliveries: Deliveries::default(),
            routes: Routes::new(self.shard, leadership.term, self.order, self.context.clone()),
            retained_reads: FuturesUnordered::new(),
            wills: FuturesUnordered::new(),
            wills_begun: BTreeSet::new(),
            flush_at: None,
        }
    }

    fn on_inbound(&self, term: &mut Term, inbound: Inbound) {
        match inbound {
            Inbound::Opened { link, replies } => {
                term.links.insert(link, LinkState { replies, node: None, early: Vec::new() });
            }
            Inbound::Closed { link } => {
                term.links.remove(&link);
                term.deliveries.drop_link(link);
            }
            Inbound::Frame { link, frame } => {
                let serving = term.routes.is_serving();
                match term.links.get_mut(&link) {
                    Some(state) if !serving => state.early.push(frame),
                    Some(_) => self.on_frame(term, link, frame),
                    None => {}
                }
            }
        }
    }
}

/// Starts the timer for collected acknowledgements, if there are any.
fn schedule_flush(term: &mut Term) {
    if term.flush_at.is_none() && term.deliveries.has_acknowledged() {
        term.flush_at = Some(tokio::time::Instant::now() + ACK_COALESCE_DELAY);
    }
}

fn flush_acknowledgements(term: &mut Term) {
    term.flush_at = None;
    for (client, owner, ranges) in term.deliveries.take_acknowledged() {
        term.batch.push(Operation::Acknowledge { client, owner, ranges }, Waiter::None);
    }
}

fn send(term: &mut Term, link: LinkId, frame: FromShard) {
    let gone = term.links.get(&link).is_some_and(|state| state.replies.send(frame).is_err());
    if gone {
        term.links.remove(&link);
        term.deliveries.drop_link(link);
    }
}

fn send_all(term: &mut Term, output: Vec<Output>) {
    for (link, frame) in output {
        send(term, link, frame);
    }
}

async fn sleep_until(when: Option<tokio::time::Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}
