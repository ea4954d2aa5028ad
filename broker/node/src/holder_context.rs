//! The node, as its lease holder uses it: renewals, and what begins and ends with an epoch.

use std::sync::Arc;
use std::time::Duration;

use covey_mqtt::session::Close;
use covey_types::{NodeEpoch, NodeId};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::lease::{Grant, HolderContext, Renewal};
use crate::network::Network;
use crate::publish::{RetainedMessages, Router};
use crate::tasks::Tasks;
use crate::transient::{Filters, Incoming};

/// Implements [`HolderContext`].
pub(crate) struct NodeHolderContext {
    /// Reaches the meta leader and the other nodes.
    pub(crate) network: Arc<Network>,
    /// Shards, streams to other nodes, and sessions, whose numbers begin again with each epoch.
    pub(crate) router: Arc<Router>,
    /// Numbers of the retained messages, which begin again with each epoch.
    pub(crate) retained: Arc<RetainedMessages>,
    /// Subscriptions of the transient sessions on this node.
    pub(crate) filters: Arc<Filters>,
    /// Streams on which other nodes publish to the transient sessions here.
    pub(crate) incoming: Arc<Incoming>,
    /// Starts the streams to other nodes.
    pub(crate) tasks: Tasks,
    /// Length of a lease.
    pub(crate) lease: Duration,
    /// Cancelled when the present epoch ends.
    pub(crate) epoch_over: Mutex<CancellationToken>,
}

impl HolderContext for NodeHolderContext {
    fn renew(&self, renewal: Renewal) -> BoxFuture<'static, Option<Grant>> {
        let (network, timeout) = (self.network.clone(), self.lease);
        Box::pin(async move { tokio::time::timeout(timeout, network.renew(renewal)).await.ok().flatten() })
    }

    fn reaches(&self) -> Vec<NodeId> {
        self.router.peers.heard(self.lease / 2)
    }

    fn fetch_filters(&self, node: NodeId) -> BoxFuture<'static, ()> {
        let peers = self.router.peers.clone();
        Box::pin(async move { peers.sync(node).await })
    }

    fn on_epoch(&self, epoch: NodeEpoch) {
        self.filters.reset(epoch);
        self.incoming.reset();
        self.retained.reset(Some(epoch));
        self.router.shards.iter().for_each(|shard| shard.reset(Some(epoch)));
        let over = self.tasks.shutdown().child_token();
        *self.epoch_over.lock() = over.clone();
        let (peers, network, ping) = (self.router.peers.clone(), self.network.clone(), self.lease / 6);
        let tasks = self.tasks.clone();
        // `run` ends with the epoch.
        self.tasks.spawn_ending("peers", async move { peers.run(epoch, network, ping, tasks, over).await });
    }

    fn on_epoch_end(&self, _epoch: NodeEpoch) {
        std::mem::replace(&mut *self.epoch_over.lock(), CancellationToken::new()).cancel();
        self.router.sessions.close_all(Close::Fenced);
        self.router.shards.iter().for_each(|shard| shard.reset(None));
        self.retained.reset(None);
    }
}
