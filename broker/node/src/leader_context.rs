//! The node, as the leaders of its shards use it.

use std::sync::Arc;
use std::time::Duration;

use covey_core::meta::{Answer, Command};
use covey_core::shard::{Publication, Will};
use covey_raft::RaftGroups;
use covey_types::GroupId;
use futures::future::BoxFuture;
use tracing::warn;

use crate::Observer;
use crate::network::Network;
use crate::publish::{RetainedMessages, WillPublisher};
use crate::shard::LeaderContext;

/// Pause before another attempt at something that must succeed.
const RETRY_DELAY: Duration = Duration::from_millis(20);
/// Timeout of a proposal in meta: the leader may have lost its majority, so the next one is asked.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Implements [`LeaderContext`].
pub(crate) struct NodeLeaderContext {
    /// The Raft groups.
    pub(crate) raft: RaftGroups,
    /// Reaches the meta leader.
    pub(crate) network: Arc<Network>,
    /// Reads retained messages.
    pub(crate) retained: Arc<RetainedMessages>,
    /// Publishes wills.
    pub(crate) wills: Arc<WillPublisher>,
    /// Counts messages that full inboxes did not take.
    pub(crate) observer: Arc<dyn Observer>,
    /// Length of a lease.
    pub(crate) lease: Duration,
}

impl LeaderContext for NodeLeaderContext {
    fn propose_meta(&self, command: Command) -> BoxFuture<'static, Option<u64>> {
        let (raft, command) = (self.raft.clone(), command.encode());
        Box::pin(async move {
            loop {
                let proposed = raft.propose_at_leader(GroupId::META, command.clone());
                if let Ok(Ok(response)) = tokio::time::timeout(PROPOSE_TIMEOUT, proposed).await {
                    raft.await_applied(GroupId::META, response.index).await;
                    let done = Answer::decode(&response.bytes) == Some(Answer::Done);
                    return done.then_some(response.index);
                }
                tokio::time::sleep(RETRY_DELAY).await;
            }
        })
    }

    fn await_route(&self, index: u64) -> BoxFuture<'static, ()> {
        let (network, lease) = (self.network.clone(), self.lease);
        Box::pin(async move {
            while !network.await_route(index, lease).await {
                tokio::time::sleep(RETRY_DELAY).await;
            }
        })
    }

    fn meta_applied(&self) -> u64 {
        *self.raft.applied(GroupId::META).borrow()
    }

    fn retained(&self, filter: Box<str>) -> BoxFuture<'static, Vec<Publication>> {
        let retained = self.retained.clone();
        Box::pin(async move { retained.matching(&filter).await })
    }

    fn publish_will(&self, key: Box<str>, will: Will) -> BoxFuture<'static, ()> {
        let wills = self.wills.clone();
        Box::pin(async move { wills.publish(key, will).await })
    }

    fn on_missed(&self, count: u64) {
        warn!(count, "full queues did not take messages");
        self.observer.missed(count);
    }
}
