//! The leader of a shard: takes operations from all nodes, commits them in batches, answers, delivers, publishes
//! routes and wills, and runs timers. One task per shard; its state is rebuilt in every term.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use covey_core::shard::{Effect, Operation, Outcome, Publication, Subscribed, Will};
use covey_raft::{Cluster, Leadership, RowReader};
use covey_types::{GroupId, NodeEpoch, NodeId, OwnerEpoch, ShardId};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::batch::{Batch, Completed, Waiter};
use super::context::{Inbound, LeaderContext, LinkId};
use super::delivery::{Deliveries, Output};
use super::routes::{Routes, Step, Waiting};
use crate::state::{SharedMeta, SharedShard};
use crate::wire::{FromShard, HeldSession, ToShard};

/// Longest time that acknowledgements are collected before they are committed.
const ACK_COALESCE_DELAY: Duration = Duration::from_millis(20);
/// If an entry has no result within this time, the leader drops its state and closes all links, so that nodes resend.
/// Resends are deduplicated.
const ENTRY_STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Most retained messages in one operation.
const RETAINED_MESSAGES: usize = 64;
/// Most bytes of retained messages in one operation, unless a single message is larger.
const RETAINED_BYTES: usize = 1 << 20;
/// Pause before the leader begins again if it still leads: when Raft rejected an entry on an overloaded machine, all
/// nodes resend, which adds to the load.
const REENTRY_DELAY: Duration = Duration::from_millis(100);

/// The task of one shard's leader. It reads `replica` and `meta`, commits through `cluster`, reads bodies from `rows`,
/// and receives the frames of nodes from `inbound` and the effects of applied entries from `effects`.
pub(crate) struct Leader {
    pub shard: ShardId,
    pub cluster: Cluster,
    pub rows: RowReader,
    pub replica: Arc<SharedShard>,
    pub meta: Arc<SharedMeta>,
    pub context: Arc<dyn LeaderContext>,
    pub inbound: mpsc::UnboundedReceiver<Inbound>,
    pub effects: mpsc::UnboundedReceiver<Vec<Effect>>,
    pub shutdown: CancellationToken,
    /// Highest number of a route change that this process has used.
    pub order: u64,
}

/// Retained messages read for a subscription: client id, owner epoch, filter, messages.
type Found = (Box<str>, OwnerEpoch, Box<str>, Vec<Publication>);

/// State of one term (`number`). `batch` holds operations on their way into the log, `deliveries` what holders
/// receive, `routes` the filters in meta. `retained_reads` are reads of retained messages in progress, `wills` publishes of
/// the wills `wills_begun`.
struct Term {
    number: u64,
    group: GroupId,
    rows: RowReader,
    links: HashMap<LinkId, LinkState>,
    batch: Batch,
    deliveries: Deliveries,
    routes: Routes,
    retained_reads: FuturesUnordered<BoxFuture<'static, Found>>,
    wills: FuturesUnordered<BoxFuture<'static, u64>>,
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
        let mut leadership = self.cluster.leadership(GroupId::shard(self.shard));
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
                Some(read) = current.retained_reads.next() => { on_retained(current, read); false }
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
            self.drain(current);
            current.batch.propose(&self.cluster, current.group);
        }
    }

    /// Handles queued input, up to 1024 items, so that the batch grows with the load.
    fn drain(&mut self, term: &mut Term) {
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
            batch: Batch::new(self.replica.machine.lock().time()),
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

    fn on_frame(&self, term: &mut Term, link: LinkId, frame: ToShard) {
        match frame {
            ToShard::Attach { node, epoch, sessions, .. } => {
                if let Some(state) = term.links.get_mut(&link) {
                    state.node = Some((node, epoch));
                }
                send(term, link, FromShard::Attached);
                for held in sessions {
                    self.open(term, link, held);
                }
            }
            ToShard::Open(held) => self.open(term, link, held),
            ToShard::Call { id, operation } => {
                let waiter = match &operation {
                    Operation::Subscribe { client, owner, subscriptions } => Waiter::Subscribe {
                        link,
                        id,
                        client: client.clone(),
                        owner: *owner,
                        filters: subscriptions.iter().map(|wanted| wanted.filter.clone()).collect(),
                    },
                    Operation::End(_) | Operation::Claim(_) => {
                        // Acknowledgements of the former connection are committed before the session changes hands.
                        flush_acknowledgements(term);
                        Waiter::Call { link, id }
                    }
                    _ => Waiter::Call { link, id },
                };
                term.batch.push(operation, waiter);
            }
            ToShard::Enqueue(enqueue) => {
                let waiter = Waiter::Enqueue { link, number: enqueue.sender.number };
                term.batch.push(Operation::Enqueue(enqueue), waiter);
            }
            ToShard::Qos0 { topic, publisher, retain, below, expiry, body } => {
                let machine = self.replica.machine.lock();
                let mut output = Vec::new();
                machine.qos0_matches(&topic, publisher.as_deref(), below, |id, kept, identifiers| {
                    let Some((link, owner)) = term.deliveries.link_of(id) else { return };
                    let Some(session) = machine.session(id) else { return };
                    output.push((
                        link,
                        FromShard::Qos0 {
                            client: session.profile.client.clone(),
                            owner,
                            retain: retain && kept,
                            identifiers: identifiers.to_vec(),
                            expiry,
                            body: body.clone(),
                        },
                    ));
                });
                drop(machine);
                send_all(term, output);
            }
            ToShard::Acknowledge { client, owner, sequences } => {
                let output = {
                    let machine = self.replica.machine.lock();
                    term.deliveries.acknowledge(client, owner, sequences, &machine, &term.rows)
                };
                schedule_flush(term);
                send_all(term, output);
            }
        }
    }

    fn open(&self, term: &mut Term, link: LinkId, held: HeldSession) {
        let (output, awaiting) = {
            let machine = self.replica.machine.lock();
            let awaiting: Vec<Box<str>> = machine.awaiting(&held.client, held.owner);
            let (client, owner) = (held.client.clone(), held.owner);
            let waits: Vec<_> = awaiting.into_iter().map(|filter| (client.clone(), owner, filter)).collect();
            (term.deliveries.open(link, held, &machine, &term.rows), waits)
        };
        // Retained messages that an earlier leader or connection did not deliver.
        if !awaiting.is_empty() {
            let filters = awaiting.iter().map(|(_, _, filter)| filter.clone()).collect();
            term.routes.wait(Waiting { filters, answer: None, retained: awaiting });
            self.advance(term);
        }
        schedule_flush(term);
        send_all(term, output);
    }

    /// Answers the operations of an entry. Returns `false` if the entry was not committed.
    fn on_completed(&self, term: &mut Term, completed: Completed) -> bool {
        let Some(outcomes) = completed else { return false };
        for (waiter, outcome) in outcomes {
            match waiter {
                Waiter::None => {}
                Waiter::Call { link, id } => send(term, link, FromShard::Answer { id, outcome }),
                Waiter::Enqueue { link, number } => send(term, link, FromShard::Enqueued { number, outcome }),
                Waiter::Subscribe { link, id, client, owner, filters } => {
                    let retained = match &outcome {
                        Outcome::Subscribed(granted) => filters
                            .iter()
                            .zip(granted)
                            .filter(|(_, granted)| matches!(granted, Subscribed::Granted { awaits_retained: true, .. }))
                            .map(|(filter, _)| (client.clone(), owner, filter.clone()))
                            .collect(),
                        _ => Vec::new(),
                    };
                    term.routes.wait(Waiting { filters, answer: Some((link, id, outcome)), retained });
                }
                Waiter::Will(will) => {
                    term.wills_begun.remove(&will);
                }
            }
        }
        self.advance(term);
        true
    }

    /// Publishes changed routes and releases what waited for confirmed ones.
    fn advance(&self, term: &mut Term) {
        let ready = {
            let machine = self.replica.machine.lock();
            term.routes.publish(&machine);
            term.routes.ready(&machine)
        };
        for waiting in ready {
            if let Some((link, id, outcome)) = waiting.answer {
                send(term, link, FromShard::Answer { id, outcome });
            }
            for (client, owner, filter) in waiting.retained {
                let found = self.context.retained(filter.clone());
                term.retained_reads.push(Box::pin(async move { (client, owner, filter, found.await) }));
            }
        }
    }

    /// Handles a step of the routes. Returns `false` if meta knows a later leader.
    fn on_step(&self, term: &mut Term, step: Step) -> bool {
        if matches!(step, Step::Refused) {
            return false;
        }
        let fenced = matches!(step, Step::Fenced);
        {
            let machine = self.replica.machine.lock();
            term.routes.on_step(step, &machine, &self.meta);
        }
        if fenced {
            let early: Vec<(LinkId, Vec<ToShard>)> =
                term.links.iter_mut().map(|(link, state)| (*link, std::mem::take(&mut state.early))).collect();
            for (link, frames) in early {
                for frame in frames {
                    self.on_frame(term, link, frame);
                }
            }
            self.watch_nodes(term);
            self.watch_timers(term);
        }
        self.advance(term);
        true
    }

    fn on_effects(&self, term: &mut Term, effects: Vec<Effect>) {
        let (mut output, mut has_will) = (Vec::new(), false);
        {
            let machine = self.replica.machine.lock();
            for effect in effects {
                match effect {
                    Effect::Ready(id) => output.extend(term.deliveries.pump(id, &machine, &term.rows)),
                    Effect::Route(filter) => term.routes.touch(filter),
                    Effect::Lost { client, owner, holder } => {
                        term.deliveries.close(&client, owner);
                        let links =
                            term.links.iter().filter(|(_, state)| state.node == Some((holder.node, holder.epoch)));
                        output
                            .extend(links.map(|(link, _)| (*link, FromShard::Lost { client: client.clone(), owner })));
                    }
                    Effect::Will(_) => has_will = true,
                    Effect::Missed(count) => self.context.on_missed(count),
                }
            }
        }
        schedule_flush(term);
        if has_will {
            self.publish_wills(term);
        }
        self.advance(term);
        send_all(term, output);
    }

    fn publish_wills(&self, term: &mut Term) {
        if !term.routes.is_serving() {
            return;
        }
        let due: Vec<(u64, Will)> = {
            let machine = self.replica.machine.lock();
            let is_new = |number: &u64| !term.wills_begun.contains(number);
            machine.wills().filter(|(number, _)| is_new(number)).map(|(n, will)| (n, will.clone())).collect()
        };
        for (number, will) in due {
            term.wills_begun.insert(number);
            let key = format!("w:{}:{number}", self.shard).into_boxed_str();
            let published = self.context.publish_will(key, will);
            term.wills.push(Box::pin(async move {
                published.await;
                number
            }));
        }
    }

    /// Proposes the end of expired sessions and the wills that are due; again each second until applied, which is
    /// idempotent.
    fn watch_timers(&self, term: &mut Term) {
        let now = term.batch.time();
        let machine = self.replica.machine.lock();
        for (_, session) in machine.sessions() {
            let profile = &session.profile;
            let (client, owner) = (profile.client.clone(), profile.owner);
            if session.is_expired(now) {
                term.batch.push(Operation::Expire { client, owner }, Waiter::None);
            } else if session.is_will_due(now) {
                term.batch.push(Operation::WillDue { client, owner }, Waiter::None);
            }
        }
        drop(machine);
        self.publish_wills(term);
    }

    fn is_stuck(&self, term: &Term) -> bool {
        let stuck = term.batch.oldest().is_some_and(|waited| waited > ENTRY_STALL_TIMEOUT);
        if stuck {
            warn!(
                shard = self.shard.get(),
                term = term.number,
                "no result for an entry within {ENTRY_STALL_TIMEOUT:?}; closing the links so that nodes resend"
            );
        }
        stuck
    }

    /// Proposes the end of epochs that meta has ended and this shard does not know to be over.
    fn watch_nodes(&self, term: &mut Term) {
        let meta = self.meta.machine.read();
        let machine = self.replica.machine.lock();
        for (node, member) in meta.members() {
            let known = machine.ended_epoch(node);
            if let Some(epoch) = member.ended.filter(|ended| Some(*ended) > known) {
                term.batch.push(Operation::NodeDown { node, epoch }, Waiter::None);
            }
        }
    }
}

fn on_retained(term: &mut Term, (client, owner, filter, messages): Found) {
    let (mut chunks, mut bytes): (Vec<Vec<Publication>>, usize) = (vec![], 0);
    for message in messages {
        bytes += message.body.len();
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < RETAINED_MESSAGES && bytes <= RETAINED_BYTES => chunk.push(message),
            _ => {
                bytes = message.body.len();
                chunks.push(vec![message]);
            }
        }
    }
    let last = chunks.pop().unwrap_or_default();
    let operation = |messages, last| {
        let (client, filter) = (client.clone(), filter.clone());
        Operation::DeliverRetained { client, owner, filter, messages, last }
    };
    for chunk in chunks {
        term.batch.push(operation(chunk, false), Waiter::None);
    }
    term.batch.push(operation(last, true), Waiter::None);
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
