//! Callbacks that leaders, the lease and the streams make into the node.

use std::sync::Arc;
use std::time::Duration;

use covey_core::meta::{Answer, Command};
use covey_core::retained;
use covey_core::shard::{Once, Publication, Will};
use covey_core::topic::Filter;
use covey_mqtt::session::{Close, Delivery, Subscription};
use covey_types::{GroupId, NodeEpoch, NodeId, ShardId};
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Node;
use super::lease::LeaseTransport;
use super::message;
use super::shard::{DeliverySink, LeaderContext};
use super::transient::Tasks;
use super::wire::{FromShard, Grant, Renewal, ToShard};

/// Pause between two attempts at something that must succeed.
const RETRY_DELAY: Duration = Duration::from_millis(20);
/// Timeout of a proposal in meta: the leader may have lost its majority, so the next one is asked.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The node, as the tasks that it starts use it.
#[derive(Debug, Clone)]
pub(super) struct Handle(pub Arc<Node>);

impl LeaderContext for Handle {
    fn propose_meta(&self, command: Command) -> BoxFuture<'static, Option<u64>> {
        let (cluster, command) = (self.0.cluster.clone(), command.encode());
        Box::pin(async move {
            loop {
                let proposed = cluster.propose_at_leader(GroupId::META, command.clone());
                if let Ok(Ok(response)) = tokio::time::timeout(PROPOSE_TIMEOUT, proposed).await {
                    cluster.await_applied(GroupId::META, response.index).await;
                    let done = Answer::decode(&response.bytes) == Some(Answer::Done);
                    return done.then_some(response.index);
                }
                tokio::time::sleep(RETRY_DELAY).await;
            }
        })
    }

    fn await_route(&self, index: u64) -> BoxFuture<'static, ()> {
        let node = self.0.clone();
        Box::pin(async move {
            while !node.await_route_once(index).await {
                tokio::time::sleep(RETRY_DELAY).await;
            }
        })
    }

    fn meta_applied(&self) -> u64 {
        *self.0.cluster.applied(GroupId::META).borrow()
    }

    fn retained(&self, filter: Box<str>) -> BoxFuture<'static, Vec<Publication>> {
        let node = self.0.clone();
        Box::pin(async move { node.retained_for(&filter).await })
    }

    fn publish_will(&self, key: Box<str>, will: Will) -> BoxFuture<'static, ()> {
        let node = self.0.clone();
        Box::pin(async move { node.publish_will(key, will).await })
    }

    fn on_missed(&self, count: u64) {
        warn!(count, "full queues did not take messages");
        self.0.metrics.missed(count);
    }
}

impl Node {
    /// Returns the retained messages that match the filter, as of a point after the call (linearizable read).
    pub(super) async fn retained_for(&self, filter: &str) -> Vec<Publication> {
        let Ok(filter) = filter.parse::<Filter>() else { return Vec::new() };
        loop {
            if let Ok(index) = self.cluster.read_index_at_leader(GroupId::RETAINED).await {
                self.cluster.await_applied(GroupId::RETAINED, index).await;
                break;
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
        let machine = self.retained.machine.read();
        machine
            .matches(&filter, machine.time())
            .into_iter()
            .map(|(name, message)| as_publication(name.as_str(), message))
            .collect()
    }

    /// Publishes a will under this node's epoch, and again under later epochs until it succeeds. Receivers deduplicate
    /// by `key`.
    async fn publish_will(&self, key: Box<str>, will: Will) {
        loop {
            if let Some(epoch) = self.lease.epoch()
                && self.lease.held(epoch).await.is_ok()
                && self.try_will(&key, &will, epoch).await
            {
                return;
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Publishes the will once. Returns `false` if the lease was lost or the outcome is unknown.
    async fn try_will(&self, key: &str, will: &Will, epoch: NodeEpoch) -> bool {
        let Some(message) = message::decode(&will.body, will.qos, will.retain, None) else { return true };
        let mut index = None;
        if will.retain {
            let write = retained::Write {
                node: self.id,
                epoch,
                number: 0,
                topic: will.topic.clone(),
                qos: will.qos,
                expiry: None,
                empty: message.payload.is_empty(),
                body: will.body.clone(),
            };
            match self.writer.store(write).await {
                Ok((stored, _)) => index = Some(stored),
                Err(_) => return false,
            }
        }
        let publication = Publication {
            topic: will.topic.clone(),
            qos: will.qos,
            retain: will.retain,
            publisher: None,
            expiry: None,
            retained_index: index,
            once: Some(Once { key: key.into(), number: 1, floor: 0 }),
            body: will.body.clone(),
        };
        match self.route(&publication, epoch) {
            Ok(pending) => pending.outcome().await.is_some(),
            Err(_) => false,
        }
    }
}

/// Returns a retained message as a publication of no client.
fn as_publication(topic: &str, message: retained::Message) -> Publication {
    Publication {
        topic: topic.into(),
        qos: message.qos,
        retain: true,
        publisher: None,
        expiry: message.expiry,
        retained_index: Some(message.index),
        once: None,
        body: message.body,
    }
}

/// Returns the delivery of a retained message to a transient subscription; `None` if it cannot be decoded.
pub(super) fn retained_delivery(found: &Publication, wanted: &Subscription) -> Option<Delivery> {
    let qos = found.qos.min(wanted.qos);
    let message = message::decode(&found.body, qos, true, found.expiry)?;
    let subscription_identifiers = wanted.identifier.into_iter().collect();
    Some(Delivery { packet_id: None, dup: false, message, subscription_identifiers })
}

impl DeliverySink for Handle {
    fn on_shard(&self, shard: ShardId, event: FromShard) {
        if let Some((client, owner, sequences)) = self.0.registry.on_shard(event)
            && let Some(shard) = self.0.shards.get(shard.index())
        {
            shard.tell(ToShard::Acknowledge { client, owner, sequences });
        }
    }
}

impl LeaseTransport for Handle {
    fn renew(&self, renewal: Renewal) -> BoxFuture<'static, Option<Grant>> {
        let (node, patience) = (self.0.clone(), self.0.config.fence.lease);
        Box::pin(async move { tokio::time::timeout(patience, node.renew_once(renewal)).await.ok().flatten() })
    }

    fn reaches(&self) -> Vec<NodeId> {
        self.0.peers.heard(self.0.config.fence.lease / 2)
    }

    fn fetch_filters(&self, other: NodeId) -> BoxFuture<'static, ()> {
        let node = self.0.clone();
        Box::pin(async move { node.peers.sync(other).await })
    }

    fn on_epoch(&self, epoch: NodeEpoch) {
        let node = &self.0;
        node.filters.reset(epoch);
        node.incoming.reset();
        node.writer.reset(Some(epoch));
        node.shards.iter().for_each(|shard| shard.reset(Some(epoch)));
        let over = node.shutdown.child_token();
        *node.epoch_over.lock() = over.clone();
        let (peers, dial, ping) = (node.peers.clone(), Arc::new(self.clone()), node.config.fence.lease / 6);
        let (supervisor, shutdown) = (node.supervisor.clone(), node.shutdown.clone());
        let tasks = Tasks { tasks: node.tasks.clone(), supervisor: supervisor.clone() };
        // `run` ends with the epoch.
        let run = async move { peers.run(epoch, dial, ping, tasks, over).await };
        node.tasks.spawn(supervisor.ending("peers", shutdown, run));
    }

    fn on_epoch_end(&self, _epoch: NodeEpoch) {
        let node = &self.0;
        std::mem::replace(&mut *node.epoch_over.lock(), CancellationToken::new()).cancel();
        node.registry.close_all(Close::Fenced);
        node.shards.iter().for_each(|shard| shard.reset(None));
        node.writer.reset(None);
    }
}
