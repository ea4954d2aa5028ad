//! Streams that other nodes opened: they publish to the transient sessions here and follow their filters.

use std::collections::HashMap;
use std::sync::Arc;

use covey_core::shard::Publication;
use covey_types::{NodeEpoch, NodeId};
use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::debug;

use super::filters::Filters;
use super::wire::{FromTransient, ToTransient};
use crate::frame;
use covey_contract::proto::Frame;

/// Delivers a message to the sessions here and returns the number that matched.
pub(crate) type Deliver = Arc<dyn Fn(Publication) -> u32 + Send + Sync>;

/// State of the accepted streams within one epoch of this node.
pub(crate) struct Incoming {
    /// Subscriptions of the sessions here.
    filters: Arc<Filters>,
    /// Delivers a message to them.
    deliver: Deliver,
    /// Per sender, its epoch and the number of the last message received.
    received: Mutex<HashMap<NodeId, (NodeEpoch, u64)>>,
    /// Per node, the change of the filters up to which it knows them.
    known: watch::Sender<HashMap<NodeId, u64>>,
    /// Cancelled when the present epoch ends, which ends its streams.
    over: Mutex<CancellationToken>,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

impl Incoming {
    pub(crate) fn new(filters: Arc<Filters>, deliver: Deliver) -> Arc<Self> {
        Arc::new(Self {
            filters,
            deliver,
            received: Mutex::default(),
            known: watch::channel(HashMap::new()).0,
            over: Mutex::default(),
        })
    }

    /// Handles a change of this node's epoch: numbers and filters of the former one are void, and its streams end.
    pub(crate) fn reset(&self) {
        std::mem::take(&mut *self.over.lock()).cancel();
        self.received.lock().clear();
        self.known.send_modify(HashMap::clear);
    }

    /// Waits until all these nodes know the filters up to the change.
    pub(crate) async fn known_by(&self, nodes: &[NodeId], change: u64) {
        let knows = |known: &HashMap<NodeId, u64>| nodes.iter().all(|node| known.get(node) >= Some(&change));
        // Cannot fail: `self` owns the sender.
        drop(self.known.subscribe().wait_for(|known| knows(known)).await);
    }

    /// Serves one stream until it breaks or the epoch is over.
    ///
    /// # Errors
    /// Returns the status with which the stream is closed.
    pub(crate) async fn serve(
        self: Arc<Self>,
        frames: impl Stream<Item = Result<Frame, Status>> + Send + Unpin,
        out: mpsc::UnboundedSender<Result<Frame, Status>>,
    ) -> Result<(), Status> {
        let over = self.over.lock().clone();
        over.run_until_cancelled(self.serve_epoch(frames, out))
            .await
            .unwrap_or_else(|| Err(Status::cancelled("the epoch is over; open a new stream")))
    }

    async fn serve_epoch(
        &self,
        mut frames: impl Stream<Item = Result<Frame, Status>> + Send + Unpin,
        out: mpsc::UnboundedSender<Result<Frame, Status>>,
    ) -> Result<(), Status> {
        let first = frames.next().await.ok_or_else(|| Status::cancelled("the stream ended before the hello"))??;
        let ToTransient::Hello { node, epoch } = frame::decode(&first)? else {
            return Err(Status::invalid_argument("the first frame must be a hello"));
        };
        let received = {
            let mut received = self.received.lock();
            let entry = received.entry(node).or_insert((epoch, 0));
            if entry.0 < epoch {
                *entry = (epoch, 0);
            }
            entry.1
        };
        self.filters.follow(received, out.clone());
        debug!(%node, epoch = epoch.get(), "transient stream accepted");
        while let Some(frame) = frames.next().await {
            match frame::decode(&frame?)? {
                ToTransient::Hello { .. } => return Err(Status::invalid_argument("a second hello")),
                ToTransient::Message(numbered) => {
                    let Some(matched) = self.receive(node, epoch, numbered.number, numbered.message) else {
                        return Err(Status::failed_precondition("the number is not the next one"));
                    };
                    answer(&out, &FromTransient::Receipt { number: numbered.number, matched })?;
                }
                ToTransient::Qos0(message) => {
                    (self.deliver)(message);
                }
                ToTransient::Sync(id) => answer(&out, &FromTransient::Synced(id))?,
                ToTransient::Known(change) => self.known.send_modify(|known| {
                    // A late frame of an earlier stream must not lower it.
                    let known = known.entry(node).or_default();
                    *known = change.max(*known);
                }),
            }
        }
        Ok(())
    }

    /// Delivers the message if its number is the next one and returns the number of matching sessions, 1 for a
    /// repetition. Returns `None` for any other number.
    fn receive(&self, node: NodeId, epoch: NodeEpoch, number: u64, message: Publication) -> Option<u32> {
        // Locked during the delivery: two streams of one sender must not deliver out of order.
        let mut received = self.received.lock();
        let entry = received.entry(node).or_insert((epoch, 0));
        if entry.0 != epoch || number > entry.1 + 1 {
            return None;
        }
        if number <= entry.1 {
            return Some(1);
        }
        entry.1 = number;
        Some((self.deliver)(message))
    }
}

fn answer(out: &mpsc::UnboundedSender<Result<Frame, Status>>, answer: &FromTransient) -> Result<(), Status> {
    out.send(Ok(frame::encode(answer))).map_err(|_| Status::cancelled("stream closed"))
}
