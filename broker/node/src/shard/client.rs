//! A node's client of one shard: sends operations to whichever node leads it, in order, and resends until they have an
//! outcome.
//!
//! Invariant: an `Enqueue` with a number is sent to every new leader until its outcome is known or the epoch is over.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use covey_core::shard::{Enqueue, Operation, Outcome, Publication, SenderSeq};
use covey_types::{NodeEpoch, NodeId, OwnerEpoch, ShardId};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace, warn};

use super::link::Link;
use super::wire::{Acknowledgement, FromShard, HeldSession, ToShard};
use crate::channel::reply;

/// Timeout of a connection attempt to the leader, and interval of the check for a stalled link.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A link without any answer for this long, while operations wait, is reopened. Resends are deduplicated.
const LINK_STALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Receiver of deliveries and of lost sessions.
pub(crate) trait DeliverySink: Send + Sync + 'static {
    /// Handles a frame that answers neither an operation nor `Attach`. Returns deliveries to acknowledge to the leader:
    /// those that it repeats although they were acknowledged, and those that need no acknowledgement.
    fn on_shard(&self, event: FromShard) -> Option<Acknowledgement>;
}

/// Finds the shard's leader and opens a link to it.
pub(crate) trait ShardDialer: Send + Sync + 'static {
    /// Returns both ends of a link; `None` if no leader is known or reached.
    fn dial(&self, shard: ShardId) -> BoxFuture<'_, Option<Link>>;
}

/// Client of one shard; one per node and shard.
#[derive(Debug)]
pub(crate) struct ShardClient {
    /// Number of the shard.
    shard: ShardId,
    /// This node.
    node: NodeId,
    /// What is sent, or waits for an answer.
    state: Mutex<State>,
}

/// What is lost with the epoch, except `call`.
#[derive(Debug, Default)]
struct State {
    /// Epoch under which the client sends; `None` between epochs, when nothing is sent.
    epoch: Option<NodeEpoch>,
    /// Number of the last `Enqueue` of this epoch.
    number: u64,
    /// Messages without an outcome, by number.
    enqueues: BTreeMap<u64, (Enqueue, oneshot::Sender<Outcome>)>,
    /// Id of the last call; it is not reset, so a late answer of an earlier epoch matches no call.
    call: u64,
    /// Calls without an answer, by id.
    calls: BTreeMap<u64, Call>,
    /// Sessions that connections of this node hold, by client id.
    held: HashMap<Box<str>, HeldSession>,
    /// Since when operations wait without any answer from the leader; `None` if none waits, or not checked yet.
    waiting: Option<Instant>,
    /// Link to the leader that has sent `Attached`; `None` while there is none.
    link: Option<mpsc::UnboundedSender<ToShard>>,
    /// Cancelled at a new epoch: the current link is closed.
    stale: CancellationToken,
}

/// An operation that waits for its answer.
#[derive(Debug)]
struct Call {
    /// The operation, kept for resending.
    operation: Operation,
    /// Receives the outcome.
    answer: oneshot::Sender<Outcome>,
    /// Not sent to a leader that attaches after this time; `None` for no limit.
    until: Option<Instant>,
}

impl ShardClient {
    pub(crate) fn new(shard: ShardId, node: NodeId) -> Arc<Self> {
        Arc::new(Self { shard, node, state: Mutex::default() })
    }

    /// Starts an epoch: numbers begin at 1 and operations of the former epoch are dropped. `None` ends the present
    /// one.
    pub(crate) fn reset(&self, epoch: Option<NodeEpoch>) {
        let mut state = self.state.lock();
        state.stale.cancel();
        *state = State { epoch, call: state.call, ..State::default() };
    }

    /// Assigns the next number to a message and sends it. The receiver resolves to the outcome, or to an error if
    /// `epoch` is over before there is one.
    pub(crate) fn enqueue(&self, epoch: NodeEpoch, publication: Publication) -> oneshot::Receiver<Outcome> {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        if state.epoch != Some(epoch) {
            return receiver;
        }
        state.number += 1;
        let number = state.number;
        let floor = state.enqueues.first_key_value().map_or(number, |(lowest, _)| *lowest);
        let enqueue = Enqueue { sender: SenderSeq { node: self.node, epoch, number, floor }, publication };
        state.waiting.get_or_insert_with(Instant::now);
        state.send(|| ToShard::Enqueue(enqueue.clone()));
        state.enqueues.insert(number, (enqueue, answer));
        receiver
    }

    /// Sends an operation, and resends it to every new leader until it has an answer. The receiver resolves to an
    /// error if the epoch ends before.
    pub(crate) fn call(&self, operation: Operation) -> oneshot::Receiver<Outcome> {
        self.call_until(operation, None)
    }

    /// As [`call`](Self::call), but does not send to a leader that attaches after `until`: the client may have
    /// connected elsewhere by then.
    pub(crate) fn call_until(&self, operation: Operation, until: Option<Instant>) -> oneshot::Receiver<Outcome> {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        state.call += 1;
        let id = state.call;
        state.waiting.get_or_insert_with(Instant::now);
        state.send(|| ToShard::Call { id, operation: operation.clone() });
        state.calls.insert(id, Call { operation, answer, until });
        receiver
    }

    /// Sends without retry (QoS 0, coalesced acknowledgements). Returns `false` if no leader is connected and the
    /// message was dropped.
    pub(crate) fn tell(&self, message: ToShard) -> bool {
        let mut state = self.state.lock();
        state.send(|| message);
        state.link.is_some()
    }

    /// Registers a session that a connection of this node holds; every leader is told.
    pub(crate) fn hold(&self, held: HeldSession) {
        let mut state = self.state.lock();
        // Calls may come in another order than the claims were committed: the newest owner stays.
        if state.held.get(&held.client).is_some_and(|known| known.owner > held.owner) {
            return;
        }
        state.send(|| ToShard::Open(held.clone()));
        state.held.insert(held.client.clone(), held);
    }

    /// Unregisters a session, unless a newer owner was registered since.
    pub(crate) fn let_go(&self, client: &str, owner: OwnerEpoch) {
        let mut state = self.state.lock();
        if state.held.get(client).is_some_and(|held| held.owner == owner) {
            state.held.remove(client);
        }
    }

    /// Keeps a link to the leader until shutdown.
    pub(crate) async fn run(
        self: Arc<Self>,
        dialer: Arc<impl ShardDialer>,
        sink: Arc<impl DeliverySink>,
        shutdown: CancellationToken,
    ) {
        loop {
            let pause = if self.state.lock().epoch.is_none() { 20 } else { 10 };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.serve(&*dialer, &*sink) => {}
            }
            self.state.lock().link = None;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(pause)) => {}
            }
        }
    }

    /// Opens one link and serves it until it breaks or the epoch changes.
    async fn serve(&self, dialer: &impl ShardDialer, sink: &impl DeliverySink) {
        let (epoch, stale) = {
            let state = self.state.lock();
            (state.epoch, state.stale.clone())
        };
        let Some(epoch) = epoch else { return };
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, dialer.dial(self.shard)).await;
        let Some(mut link) = connecting.ok().flatten() else { return };
        let sessions = self.state.lock().held.values().cloned().collect();
        let attach = ToShard::Attach { shard: self.shard, node: self.node, epoch, sessions };
        if link.to.send(attach).is_err() {
            return;
        }
        self.state.lock().waiting = None;
        let mut tick = tokio::time::interval(CONNECT_TIMEOUT);
        loop {
            let frame = tokio::select! {
                () = stale.cancelled() => return,
                frame = link.from.recv() => frame,
                _ = tick.tick() => {
                    if self.is_stuck() {
                        warn!(shard = self.shard.get(), "no answer from the shard's leader; reopening the link");
                        return;
                    }
                    continue;
                }
            };
            match frame {
                Some(FromShard::Attached) => self.attached(epoch, &link),
                Some(FromShard::Answer { id, outcome }) => self.answer(id, outcome),
                Some(FromShard::Enqueued { number, outcome }) => {
                    if !self.enqueued(number, outcome) {
                        return;
                    }
                }
                Some(event) => {
                    if let Some(acknowledgement) = sink.on_shard(event) {
                        self.tell(acknowledgement.into());
                    }
                }
                None => return,
            }
        }
    }

    /// Returns whether operations have waited without any answer for longer than [`LINK_STALL_TIMEOUT`]. Polled; the first call
    /// with waiting operations starts the timer.
    fn is_stuck(&self) -> bool {
        let mut state = self.state.lock();
        if state.enqueues.is_empty() && state.calls.is_empty() {
            state.waiting = None;
            return false;
        }
        state.waiting.get_or_insert_with(Instant::now).elapsed() > LINK_STALL_TIMEOUT
    }

    /// Handles `Attached`: resends everything without an outcome, in order, before anything new.
    fn attached(&self, epoch: NodeEpoch, link: &Link) {
        let mut state = self.state.lock();
        if state.epoch != Some(epoch) {
            return;
        }
        debug!(
            shard = self.shard.get(),
            enqueues = state.enqueues.len(),
            calls = state.calls.len(),
            "attached to the shard's leader"
        );
        state.link = Some(link.to.clone());
        let now = Instant::now();
        state.calls.retain(|_, call| call.until.is_none_or(|until| now < until));
        let calls: Vec<ToShard> =
            state.calls.iter().map(|(id, call)| ToShard::Call { id: *id, operation: call.operation.clone() }).collect();
        let enqueues: Vec<ToShard> =
            state.enqueues.values().map(|(enqueue, _)| ToShard::Enqueue(enqueue.clone())).collect();
        // Sessions that were registered after `Attach` was sent.
        let held: Vec<ToShard> = state.held.values().cloned().map(ToShard::Open).collect();
        calls.into_iter().chain(enqueues).chain(held).for_each(|message| state.send(|| message));
    }

    /// Resolves a call and restarts the stall timer.
    fn answer(&self, id: u64, outcome: Outcome) {
        let answered = {
            let mut state = self.state.lock();
            state.waiting = None;
            state.calls.remove(&id)
        };
        if let Some(call) = answered {
            reply(call.answer, outcome);
        }
    }

    /// Resolves an `Enqueue`. Returns `false` on a gap: the link must be reopened to resend in order.
    fn enqueued(&self, number: u64, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Gap { expected } => {
                debug!(
                    shard = self.shard.get(),
                    number, expected, "enqueues out of order; reopening the link to resend"
                );
                return false;
            }
            // The epoch is over, which the node learns from meta. Whether the message was enqueued before is unknown.
            Outcome::Stale => trace!(shard = self.shard.get(), number, "enqueue of an ended epoch"),
            outcome => {
                let answered = {
                    let mut state = self.state.lock();
                    state.waiting = None;
                    state.enqueues.remove(&number)
                };
                if let Some((_, answer)) = answered {
                    reply(answer, outcome);
                }
            }
        }
        true
    }
}

impl State {
    /// Sends on the link, if there is one; forgets a closed one.
    fn send(&mut self, message: impl FnOnce() -> ToShard) {
        if self.link.as_ref().is_some_and(|link| link.send(message()).is_err()) {
            self.link = None;
        }
    }
}
