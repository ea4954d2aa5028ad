//! Streams that other nodes dialled: they publish to the transient sessions here and follow this node's filters.

use std::collections::HashMap;
use std::sync::Arc;

use covey_core::shard::NodeId;
use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::debug;

use super::local::Filters;
use crate::wire::{self, FromTransient, ToTransient, Transported};
use covey_contract::proto::Frame;

/// Delivers a message to the sessions here; how many matched.
pub(crate) type Deliver = Arc<dyn Fn(Transported) -> u32 + Send + Sync>;

/// See the module.
pub(crate) struct Incoming {
    filters: Arc<Filters>,
    deliver: Deliver,
    /// Last number of each sender's epoch, kept while this node's epoch lasts.
    received: Mutex<HashMap<NodeId, (u64, u64)>>,
    /// Change of the filters that each node knows.
    known: watch::Sender<HashMap<NodeId, u64>>,
    /// Ends the streams of the present epoch.
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

    /// This node's epoch changed: numbers and filters of the former one mean nothing, its streams end.
    pub(crate) fn reset(&self) {
        std::mem::take(&mut *self.over.lock()).cancel();
        self.received.lock().clear();
        self.known.send_modify(HashMap::clear);
    }

    /// Returns when all these nodes know the filters up to the change.
    pub(crate) async fn known_by(&self, nodes: &[NodeId], change: u64) {
        let knows = |known: &HashMap<NodeId, u64>| nodes.iter().all(|node| known.get(node) >= Some(&change));
        // The sender lives as long as self.
        drop(self.known.subscribe().wait_for(|known| knows(known)).await);
    }

    /// Serves one stream until it breaks or the epoch is over.
    pub(crate) async fn serve(
        self: Arc<Self>,
        frames: impl Stream<Item = Result<Frame, Status>> + Send + Unpin,
        out: mpsc::UnboundedSender<Result<Frame, Status>>,
    ) -> Result<(), Status> {
        let over = self.over.lock().clone();
        over.run_until_cancelled(self.serve_epoch(frames, out))
            .await
            .unwrap_or_else(|| Err(Status::cancelled("the epoch is over")))
    }

    async fn serve_epoch(
        &self,
        mut frames: impl Stream<Item = Result<Frame, Status>> + Send + Unpin,
        out: mpsc::UnboundedSender<Result<Frame, Status>>,
    ) -> Result<(), Status> {
        let first = frames.next().await.ok_or_else(|| Status::cancelled("no hello"))??;
        let ToTransient::Hello { node, epoch } = wire::read(&first)? else {
            return Err(Status::invalid_argument("a stream begins with a hello"));
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
        debug!(node = format!("{node:016x}"), epoch, "a node publishes to transient sessions here");
        while let Some(frame) = frames.next().await {
            match wire::read(&frame?)? {
                ToTransient::Hello { .. } => return Err(Status::invalid_argument("a second hello")),
                ToTransient::Message(numbered) => {
                    let Some(matched) = self.receive(node, epoch, numbered.number, numbered.message) else {
                        return Err(Status::failed_precondition("not the next number"));
                    };
                    answer(&out, &FromTransient::Receipt { number: numbered.number, matched })?;
                }
                ToTransient::Volatile(message) => {
                    (self.deliver)(*message);
                }
                ToTransient::Sync(id) => answer(&out, &FromTransient::Synced(id))?,
                ToTransient::Known(change) => self.known.send_modify(|known| {
                    // A late frame of a former stream takes nothing back.
                    let known = known.entry(node).or_default();
                    *known = change.max(*known);
                }),
            }
        }
        Ok(())
    }

    /// `None` for a number that is neither the next nor a repeat.
    fn receive(&self, node: NodeId, epoch: u64, number: u64, message: Transported) -> Option<u32> {
        // Held over the delivery: two streams of one sender must not deliver out of order.
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
    out.send(Ok(wire::frame(answer))).map_err(|_| Status::cancelled("stream closed"))
}
