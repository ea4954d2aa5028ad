//! Streams to other nodes: what their transient sessions want, and the messages for them, in order, numbered, kept over a
//! broken stream until the other node's epoch ends.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use covey_contract::proto::Frame;
use covey_core::shard::NodeId;
use covey_core::topic::{Filter, Name, Tree};
use futures::future::BoxFuture;
use futures::{StreamExt as _, stream::BoxStream};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::clock;
use crate::say::{reply, tell};
use crate::wire::{self, FromTransient, Numbered, ToTransient, Transported};

/// A node that is not reached, or says nothing, for this long is dialled anew.
const DIAL: Duration = Duration::from_secs(3);

/// A stream to a node.
pub(crate) struct Stream {
    pub to: mpsc::UnboundedSender<Frame>,
    pub from: BoxStream<'static, Result<Frame, Status>>,
}

/// One other node.
pub(crate) struct Outgoing {
    own: NodeId,
    node: NodeId,
    state: Mutex<State>,
    filters: RwLock<View>,
}

#[derive(Default)]
struct State {
    /// Epochs of this node and of the other: numbers belong to the pair.
    epochs: (u64, u64),
    number: u64,
    kept: BTreeMap<u64, (Transported, oneshot::Sender<u32>)>,
    link: Option<mpsc::UnboundedSender<Frame>>,
    sync: u64,
    syncs: BTreeMap<u64, oneshot::Sender<()>>,
    /// Boot time of the last frame from the other node.
    heard: Duration,
}

#[derive(Default)]
struct View {
    tree: Tree<(), u8>,
    filters: HashMap<Box<str>, u8>,
}

/// Opens streams to nodes.
pub(crate) trait Dial: Send + Sync + 'static {
    fn dial(&self, node: NodeId) -> BoxFuture<'_, Option<Stream>>;
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Outgoing {
    pub(super) fn new(own: NodeId, node: NodeId) -> Arc<Self> {
        Arc::new(Self { own, node, state: Mutex::default(), filters: RwLock::default() })
    }

    /// Highest QoS that a transient session there wants the topic with.
    pub(crate) fn wants(&self, name: &Name) -> Option<u8> {
        let mut highest = None;
        self.filters.read().tree.matches(name, |(), qos| highest = highest.max(Some(*qos)));
        highest
    }

    /// Sends a message of QoS 1 or 2, now or when the stream is back; resolves to the number of sessions that matched when
    /// the other node has it, or has ended the epoch of those sessions. Never earlier: this node's own epoch may end first,
    /// and what it kept with it, while those sessions live on.
    pub(crate) fn send(&self, message: Transported) -> oneshot::Receiver<u32> {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        state.number += 1;
        let number = state.number;
        if let Some(link) = &state.link {
            let frame = wire::frame(&ToTransient::Message(Box::new(Numbered { number, message: message.clone() })));
            // A stream that has just broken: it goes out with the next one.
            tell(link, frame);
        }
        state.kept.insert(number, (message, answer));
        receiver
    }

    /// Sends a message of QoS 0, if the other node is there; whether it was.
    pub(crate) fn tell(&self, message: Transported) -> bool {
        let state = self.state.lock();
        let frame = || wire::frame(&ToTransient::Volatile(Box::new(message)));
        state.link.as_ref().is_some_and(|link| link.send(frame()).is_ok())
    }

    /// Returns when the other node's filters, as of after this call, are known here.
    pub(crate) async fn sync(&self) {
        loop {
            let (done, synced) = oneshot::channel();
            {
                let mut state = self.state.lock();
                state.sync += 1;
                let id = state.sync;
                let frame = wire::frame(&ToTransient::Sync(id));
                if state.link.as_ref().is_some_and(|link| link.send(frame).is_ok()) {
                    state.syncs.insert(id, done);
                }
            }
            if synced.await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether the other node said something within the time.
    pub(crate) fn is_heard(&self, within: Duration) -> bool {
        let state = self.state.lock();
        state.link.is_some() && clock::now() < state.heard + within
    }

    /// This node's or the other's epoch is over: nothing is owed.
    pub(super) fn forget(&self) {
        *self.filters.write() = View::default();
        self.forget_messages((0, 0));
        self.state.lock().link = None;
    }

    /// Epoch of the other node that the stream speaks of; 0 before there was one.
    pub(super) fn epoch(&self) -> u64 {
        self.state.lock().epochs.1
    }

    /// Keeps a stream while this node has an epoch.
    pub(super) async fn run(&self, epoch: u64, dial: Arc<impl Dial>, ping: Duration) {
        loop {
            let dialled = tokio::time::timeout(DIAL, dial.dial(self.node)).await;
            if let Some(stream) = dialled.ok().flatten() {
                // Why it broke is of no interest: it is dialled again.
                drop(self.serve(epoch, stream, ping).await);
                self.on_broken();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn serve(&self, epoch: u64, mut stream: Stream, ping: Duration) -> Result<(), Status> {
        let closed = |_| Status::cancelled("stream closed");
        let hello = wire::frame(&ToTransient::Hello { node: self.own, epoch });
        stream.to.send(hello).map_err(closed)?;
        let mut tick = tokio::time::interval(ping);
        self.state.lock().heard = clock::now();
        loop {
            let frame = tokio::select! {
                frame = stream.from.next() => frame.ok_or_else(|| Status::cancelled("stream ended"))??,
                _ = tick.tick() => {
                    if clock::now() > self.state.lock().heard + DIAL {
                        return Err(Status::deadline_exceeded("nothing was heard on the stream"));
                    }
                    stream.to.send(wire::frame(&ToTransient::Sync(0))).map_err(closed)?;
                    continue;
                }
            };
            self.state.lock().heard = clock::now();
            match wire::read(&frame)? {
                FromTransient::State { epoch: theirs, change, filters, received } => {
                    self.on_state((epoch, theirs), filters, received, &stream.to);
                    stream.to.send(wire::frame(&ToTransient::Known(change))).map_err(closed)?;
                }
                FromTransient::Change { change, filter, qos } => {
                    self.filters.write().change(filter, qos);
                    stream.to.send(wire::frame(&ToTransient::Known(change))).map_err(closed)?;
                }
                FromTransient::Receipt { number, matched } => self.on_receipt(number, matched),
                FromTransient::Synced(id) => {
                    let synced = self.state.lock().syncs.remove(&id);
                    if let Some(synced) = synced {
                        reply(synced, ());
                    }
                }
            }
        }
    }

    /// A stream begins: what is owed goes out again, in order.
    fn on_state(
        &self,
        epochs: (u64, u64),
        filters: Vec<(Box<str>, u8)>,
        received: u64,
        to: &mpsc::UnboundedSender<Frame>,
    ) {
        {
            let mut view = View::default();
            for (filter, qos) in filters {
                view.change(filter, Some(qos));
            }
            *self.filters.write() = view;
        }
        if self.state.lock().epochs != epochs {
            self.forget_messages(epochs);
        }
        self.on_receipt(received, 1);
        let mut state = self.state.lock();
        for (number, (message, _)) in &state.kept {
            let numbered = Numbered { number: *number, message: message.clone() };
            tell(to, wire::frame(&ToTransient::Message(Box::new(numbered))));
        }
        state.link = Some(to.clone());
    }

    fn forget_messages(&self, epochs: (u64, u64)) {
        let mut state = self.state.lock();
        state.number = 0;
        state.epochs = epochs;
        for (_, answer) in std::mem::take(&mut state.kept).into_values() {
            // Those sessions are gone: nobody is left to receive.
            reply(answer, 0);
        }
    }

    /// Everything up to the number is in the other node's memory.
    fn on_receipt(&self, number: u64, matched: u32) {
        let mut state = self.state.lock();
        let later = state.kept.split_off(&(number + 1));
        for (_, answer) in std::mem::replace(&mut state.kept, later).into_values() {
            reply(answer, matched);
        }
    }

    /// The stream broke: messages are kept for the next one.
    fn on_broken(&self) {
        let mut state = self.state.lock();
        state.link = None;
        state.syncs.clear();
    }
}

impl View {
    fn change(&mut self, filter: Box<str>, qos: Option<u8>) {
        let Ok(parsed) = filter.parse::<Filter>() else { return };
        if let Some(qos) = qos {
            self.tree.insert(&parsed, (), qos);
            self.filters.insert(filter, qos);
        } else {
            self.tree.remove(&parsed, &());
            self.filters.remove(&filter);
        }
    }
}
