//! A node's link to one shard, whoever leads it: operations go out in order, numbered, and are sent again until answered.
//!
//! Invariant: a number given to an Enqueue is sent to every leader until its outcome is known or the epoch is over.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use covey_core::shard::{Enqueue, NodeId, Operation, Outcome};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace, warn};

use crate::say::reply;
use crate::wire::{FromShard, Held, ToShard};

/// A leader that is not reached in this time is looked for anew.
const CONNECT: Duration = Duration::from_secs(3);
/// A link on which nothing is answered for so long is opened anew: sending again is harmless, waiting is not.
const PATIENCE: Duration = Duration::from_secs(15);

/// Deliveries and losses, for the node's sessions.
pub(crate) trait Events: Send + Sync + 'static {
    fn on_shard(&self, shard: u16, event: FromShard);
}

/// Finds the shard's leader and opens a link to it.
pub(crate) trait Connector: Send + Sync + 'static {
    /// Both ends of a link; `None` when no leader is known or reached.
    fn connect(&self, shard: u16) -> BoxFuture<'_, Option<Link>>;
}

/// An open link.
#[derive(Debug)]
pub(crate) struct Link {
    pub to: mpsc::UnboundedSender<ToShard>,
    pub from: mpsc::UnboundedReceiver<FromShard>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Client {
    shard: u16,
    node: NodeId,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// 0: nothing is sent.
    epoch: u64,
    number: u64,
    enqueues: BTreeMap<u64, (Enqueue, oneshot::Sender<Outcome>)>,
    call: u64,
    calls: BTreeMap<u64, Call>,
    held: HashMap<Box<str>, Held>,
    /// Since when the oldest unanswered operation has waited without any answer coming.
    waiting: Option<Instant>,
    /// Of the leader that said it serves.
    link: Option<mpsc::UnboundedSender<ToShard>>,
    /// Set by a new epoch or a lost order: the link must be opened again.
    stale: CancellationToken,
}

#[derive(Debug)]
struct Call {
    operation: Operation,
    answer: oneshot::Sender<Outcome>,
    /// No leader is asked after this.
    until: Option<Instant>,
}

impl Client {
    pub(crate) fn new(shard: u16, node: NodeId) -> Arc<Self> {
        Arc::new(Self { shard, node, state: Mutex::default() })
    }

    /// Begins an epoch: numbers start over and nothing of the former epoch is sent again. 0 ends the present one.
    pub(crate) fn reset(&self, epoch: u64) {
        let mut state = self.state.lock();
        state.stale.cancel();
        *state = State { epoch, call: state.call, ..State::default() };
    }

    /// Numbers a message and sends it; calls are ordered. The receiver fails when the epoch ends first.
    pub(crate) fn enqueue(&self, epoch: u64, mut enqueue: Enqueue) -> oneshot::Receiver<Outcome> {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        if state.epoch != epoch {
            return receiver;
        }
        state.number += 1;
        let number = state.number;
        enqueue.node = self.node;
        enqueue.epoch = epoch;
        enqueue.number = number;
        enqueue.floor = state.enqueues.first_key_value().map_or(number, |(lowest, _)| *lowest);
        state.waiting.get_or_insert_with(Instant::now);
        state.send(|| ToShard::Enqueue(enqueue.clone()));
        state.enqueues.insert(number, (enqueue, answer));
        receiver
    }

    /// Sends an operation until it is answered; repeating it must be harmless. The receiver fails when the epoch ends first.
    pub(crate) fn call(&self, operation: Operation) -> oneshot::Receiver<Outcome> {
        self.call_until(operation, None)
    }

    /// As [`call`](Self::call), but no leader that comes after `until` gets it: by then the client may have gone elsewhere.
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

    /// Sends once, if a leader is there: QoS 0 and lazy acknowledgements; whether one was.
    pub(crate) fn tell(&self, message: ToShard) -> bool {
        let mut state = self.state.lock();
        state.send(|| message);
        state.link.is_some()
    }

    /// The node holds a session from now on: it is presented to every leader.
    pub(crate) fn hold(&self, held: Held) {
        let mut state = self.state.lock();
        // Two connections may have waited for the leader: whoever comes last here need not be the one that has the session.
        if state.held.get(&held.client).is_some_and(|known| known.owner > held.owner) {
            return;
        }
        state.send(|| ToShard::Open(held.clone()));
        state.held.insert(held.client.clone(), held);
    }

    /// The node no longer holds that session, unless it was taken again since.
    pub(crate) fn let_go(&self, client: &str, owner: u64) {
        let mut state = self.state.lock();
        if state.held.get(client).is_some_and(|held| held.owner == owner) {
            state.held.remove(client);
        }
    }

    /// Keeps a link until shutdown.
    pub(crate) async fn run(
        self: Arc<Self>,
        connector: Arc<impl Connector>,
        events: Arc<impl Events>,
        shutdown: CancellationToken,
    ) {
        loop {
            let pause = if self.state.lock().epoch == 0 { 20 } else { 10 };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.serve(&*connector, &*events) => {}
            }
            self.state.lock().link = None;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(pause)) => {}
            }
        }
    }

    /// One link, until it breaks.
    async fn serve(&self, connector: &impl Connector, events: &impl Events) {
        let (epoch, stale) = {
            let state = self.state.lock();
            (state.epoch, state.stale.clone())
        };
        if epoch == 0 {
            return;
        }
        let connecting = tokio::time::timeout(CONNECT, connector.connect(self.shard)).await;
        let Some(mut link) = connecting.ok().flatten() else { return };
        let sessions = self.state.lock().held.values().cloned().collect();
        let attach = ToShard::Attach { shard: self.shard, node: self.node, epoch, sessions };
        if link.to.send(attach).is_err() {
            return;
        }
        self.state.lock().waiting = None;
        let mut tick = tokio::time::interval(CONNECT);
        loop {
            let frame = tokio::select! {
                () = stale.cancelled() => return,
                frame = link.from.recv() => frame,
                _ = tick.tick() => {
                    if self.is_stuck() {
                        warn!(shard = self.shard, "no answer from the shard's leader; the link is opened anew");
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
                Some(event) => events.on_shard(self.shard, event),
                None => return,
            }
        }
    }

    /// Something waits, and no answer came for a long time. Asked at intervals: the first look starts the count.
    fn is_stuck(&self) -> bool {
        let mut state = self.state.lock();
        if state.enqueues.is_empty() && state.calls.is_empty() {
            state.waiting = None;
            return false;
        }
        state.waiting.get_or_insert_with(Instant::now).elapsed() > PATIENCE
    }

    /// The leader serves: everything without an outcome goes out again, in order, before anything new.
    fn attached(&self, epoch: u64, link: &Link) {
        let mut state = self.state.lock();
        if state.epoch != epoch {
            return;
        }
        debug!(
            shard = self.shard,
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
        // Sessions taken between Attach and now were told to nobody.
        let held: Vec<ToShard> = state.held.values().cloned().map(ToShard::Open).collect();
        calls.into_iter().chain(enqueues).chain(held).for_each(|message| state.send(|| message));
    }

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

    /// False when the order was lost and the link must begin again.
    fn enqueued(&self, number: u64, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Gap { expected } => {
                debug!(shard = self.shard, number, expected, "enqueues out of order; sending again");
                return false;
            }
            // This epoch is over, as the node will learn from meta: no outcome is known.
            Outcome::Stale => trace!(shard = self.shard, number, "enqueue of an ended epoch"),
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
    fn send(&mut self, message: impl FnOnce() -> ToShard) {
        if self.link.as_ref().is_some_and(|link| link.send(message()).is_err()) {
            self.link = None;
        }
    }
}
