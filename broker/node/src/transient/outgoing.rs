//! Stream to another node: the filters of its transient sessions, and messages for them. Messages are numbered, in
//! order, and kept over a broken stream until the other node's epoch ends.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use covey_codec::QoS;
use covey_contract::proto::Frame;
use covey_core::shard::Publication;
use covey_core::topic::{Filter, Name, Tree};
use covey_types::{NodeEpoch, NodeId};
use futures::future::BoxFuture;
use futures::{StreamExt as _, stream::BoxStream};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::wire::{FromTransient, Numbered, ToTransient};
use crate::channel::{reply, tell};
use crate::clock;
use crate::frame;

/// Timeout of a connection attempt.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// A stream without a frame for this long is reopened.
const STREAM_STALL_TIMEOUT: Duration = Duration::from_secs(3);

/// Both ends of a stream to a node.
pub(crate) struct Stream {
    /// To the other node.
    pub to: mpsc::UnboundedSender<Frame>,
    /// From the other node.
    pub from: BoxStream<'static, Result<Frame, Status>>,
}

/// Publishing to one other node.
pub(crate) struct Outgoing {
    /// This node.
    own: NodeId,
    /// The other node.
    node: NodeId,
    /// Numbers, unacknowledged messages and the current stream.
    state: Mutex<State>,
    /// Filters of the other node's transient sessions.
    filters: RwLock<View>,
}

/// Epochs of the two ends of a stream; `None` before the first stream, and for a node that has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Epochs {
    /// Epoch of this node.
    ours: Option<NodeEpoch>,
    /// Epoch of the other node.
    theirs: Option<NodeEpoch>,
}

/// Messages and stream of one pair of epochs.
#[derive(Default)]
struct State {
    /// Numbers belong to this pair of epochs.
    epochs: Epochs,
    /// Number of the last message.
    number: u64,
    /// Messages without a receipt, by number, each with the receiver of its match count.
    kept: BTreeMap<u64, (Publication, oneshot::Sender<u32>)>,
    /// Current stream; `None` until the other node has sent its state.
    link: Option<mpsc::UnboundedSender<Frame>>,
    /// Id of the last `Sync`.
    sync: u64,
    /// Waiting `sync` calls, by id.
    syncs: BTreeMap<u64, oneshot::Sender<()>>,
    /// Boot-time clock at the last frame from the other node.
    heard: Duration,
}

/// Filters of the other node.
#[derive(Default)]
struct View {
    /// For matching.
    tree: Tree<(), QoS>,
    /// By text, with the highest QoS.
    filters: HashMap<Box<str>, QoS>,
}

/// Opens streams to nodes.
pub(crate) trait PeerDialer: Send + Sync + 'static {
    /// Returns a stream to the node; `None` if it is not reached.
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

    /// Returns the highest QoS at which a transient session there subscribes to the topic; `None` if none matches.
    pub(crate) fn wants(&self, name: &Name) -> Option<QoS> {
        let mut highest = None;
        self.filters.read().tree.matches(name, |(), qos| highest = highest.max(Some(*qos)));
        highest
    }

    /// Sends a QoS 1 or 2 message, now or on the next stream. The receiver resolves to the number of matching sessions
    /// when the other node has the message, or to 0 when the epoch of those sessions has ended. It does not resolve
    /// earlier: if this node's epoch ends first, the kept message is lost while those sessions live on, so it must not
    /// be acknowledged.
    pub(crate) fn send(&self, message: Publication) -> oneshot::Receiver<u32> {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        state.number += 1;
        let number = state.number;
        if let Some(link) = &state.link {
            let frame = frame::encode(&ToTransient::Message(Box::new(Numbered { number, message: message.clone() })));
            // If the stream has just broken, the message is sent on the next one.
            tell(link, frame);
        }
        state.kept.insert(number, (message, answer));
        receiver
    }

    /// Sends a QoS 0 message. Returns `false` if there is no stream and the message was dropped.
    pub(crate) fn tell(&self, message: Publication) -> bool {
        let state = self.state.lock();
        let frame = || frame::encode(&ToTransient::Qos0(message));
        state.link.as_ref().is_some_and(|link| link.send(frame()).is_ok())
    }

    /// Waits until the other node's filters are known here, as of a point after this call began.
    pub(crate) async fn sync(&self) {
        loop {
            let (done, synced) = oneshot::channel();
            {
                let mut state = self.state.lock();
                state.sync += 1;
                let id = state.sync;
                let frame = frame::encode(&ToTransient::Sync(id));
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

    /// Returns whether the other node has sent a frame within the time.
    pub(crate) fn is_heard(&self, within: Duration) -> bool {
        let state = self.state.lock();
        state.link.is_some() && clock::now() < state.heard + within
    }

    /// Drops filters and messages: this node's epoch or the other one's is over.
    pub(super) fn forget(&self) {
        *self.filters.write() = View::default();
        self.forget_messages(Epochs::default());
        self.state.lock().link = None;
    }

    /// Returns the other node's epoch to which the stream belongs; `None` before the first stream.
    pub(super) fn epoch(&self) -> Option<NodeEpoch> {
        self.state.lock().epochs.theirs
    }

    /// Keeps a stream open; cancelled when this node's epoch ends.
    pub(super) async fn run(&self, epoch: NodeEpoch, dial: Arc<impl PeerDialer>, ping: Duration) {
        loop {
            let dialled = tokio::time::timeout(DIAL_TIMEOUT, dial.dial(self.node)).await;
            if let Some(stream) = dialled.ok().flatten() {
                // Whatever broke it, it is reopened.
                drop(self.serve(epoch, stream, ping).await);
                self.on_broken();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn serve(&self, epoch: NodeEpoch, mut stream: Stream, ping: Duration) -> Result<(), Status> {
        let closed = |_| Status::cancelled("stream closed");
        let hello = frame::encode(&ToTransient::Hello { node: self.own, epoch });
        stream.to.send(hello).map_err(closed)?;
        let mut tick = tokio::time::interval(ping);
        self.state.lock().heard = clock::now();
        loop {
            let frame = tokio::select! {
                frame = stream.from.next() => frame.ok_or_else(|| Status::cancelled("the stream ended"))??,
                _ = tick.tick() => {
                    if clock::now() > self.state.lock().heard + STREAM_STALL_TIMEOUT {
                        return Err(Status::deadline_exceeded("no frame received in time"));
                    }
                    stream.to.send(frame::encode(&ToTransient::Sync(0))).map_err(closed)?;
                    continue;
                }
            };
            self.state.lock().heard = clock::now();
            match frame::decode(&frame)? {
                FromTransient::State { epoch: theirs, change, filters, received } => {
                    self.on_state(Epochs { ours: Some(epoch), theirs }, filters, received, &stream.to);
                    stream.to.send(frame::encode(&ToTransient::Known(change))).map_err(closed)?;
                }
                FromTransient::Change { change, filter, qos } => {
                    self.filters.write().change(filter, qos);
                    stream.to.send(frame::encode(&ToTransient::Known(change))).map_err(closed)?;
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

    /// Handles the first frame of a stream: takes over the filters and resends messages without a receipt, in order.
    fn on_state(
        &self,
        epochs: Epochs,
        filters: Vec<(Box<str>, QoS)>,
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
            tell(to, frame::encode(&ToTransient::Message(Box::new(numbered))));
        }
        state.link = Some(to.clone());
    }

    fn forget_messages(&self, epochs: Epochs) {
        let mut state = self.state.lock();
        state.number = 0;
        state.epochs = epochs;
        for (_, answer) in std::mem::take(&mut state.kept).into_values() {
            // The sessions are gone, so no receiver is left.
            reply(answer, 0);
        }
    }

    /// Resolves all messages up to the number: the other node has them.
    fn on_receipt(&self, number: u64, matched: u32) {
        let mut state = self.state.lock();
        let later = state.kept.split_off(&(number + 1));
        for (_, answer) in std::mem::replace(&mut state.kept, later).into_values() {
            reply(answer, matched);
        }
    }

    /// Handles the end of a stream; messages are kept for the next one.
    fn on_broken(&self) {
        let mut state = self.state.lock();
        state.link = None;
        state.syncs.clear();
    }
}

impl View {
    fn change(&mut self, filter: Box<str>, qos: Option<QoS>) {
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
