//! State and connections that all sessions of a node share.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use covey_contract::config::Config;
use covey_types::{NodeEpoch, NodeId};

use super::registry::Registry;
use crate::Observer;
use crate::lease::{EpochOver, Lease};
use crate::publish::{RetainedMessages, Router};
use crate::shard::ShardClient;
use crate::tasks::Tasks;
use crate::transient::{Filters, Incoming};

/// Parts of the node that sessions use.
pub(crate) struct SessionContext {
    /// This node.
    pub(crate) node: NodeId,
    /// The broker's configuration.
    pub(crate) config: Arc<Config>,
    /// This node's epoch and lease.
    pub(crate) lease: Arc<Lease>,
    /// Sends publishes to their receivers.
    pub(crate) router: Arc<Router>,
    /// Stores retained messages, and reads them for new subscriptions.
    pub(crate) retained: Arc<RetainedMessages>,
    /// All sessions of this node.
    pub(crate) registry: Arc<Registry>,
    /// Subscriptions of the transient sessions.
    pub(crate) filters: Arc<Filters>,
    /// Knows which nodes have the newest filters.
    pub(crate) incoming: Arc<Incoming>,
    /// Counts dropped messages.
    pub(crate) observer: Arc<dyn Observer>,
    /// Number of the next connection.
    pub(crate) connections: AtomicU64,
    /// Starts the tasks of sessions.
    pub(crate) tasks: Tasks,
}

impl std::fmt::Debug for SessionContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionContext").field("node", &self.node).finish_non_exhaustive()
    }
}

impl SessionContext {
    /// Returns the client of the shard that a client id belongs to.
    pub(super) fn shard_client_of(&self, client: &str) -> &Arc<ShardClient> {
        self.router.shard_client_of(client)
    }

    /// Waits until the change of this node's transient filters is known on every node that may hold a lease.
    pub(super) async fn known_everywhere(&self, epoch: NodeEpoch, change: u64) -> Result<(), EpochOver> {
        let mut leased = self.lease.leased_from_now(epoch).await?;
        leased.retain(|node| *node != self.node);
        let patience = self.config.fence.lease / 6;
        loop {
            tokio::select! {
                () = self.incoming.known_by(&leased, change) => return Ok(()),
                // A node that does not answer may have lost its lease in the meantime.
                () = tokio::time::sleep(patience) => {
                    leased = self.lease.leased_from_now(epoch).await?;
                    leased.retain(|node| *node != self.node);
                }
            }
        }
    }
}
