//! A PUBLISH on its way: matched against routes, judged by the lease, numbered, sent, and acknowledged when every inbox
//! that it matched has it.
//!
//! ```text
//!  match (routes, peers' filters, local filters) -> lease valid? -> numbers -> shards, peers, local sessions
//!                                                       | no: the match is discarded, the PUBLISH kept
//! ```

use bytes::Bytes;
use covey_core::meta::ShardId;
use covey_core::shard::{Enqueue, Once, Outcome};
use covey_core::topic::Name;
use covey_mqtt::session::Published;
use tokio::sync::oneshot;

use super::Node;
use super::wire::{ToShard, Transported};

/// A message that is ready to be routed.
#[derive(Debug, Clone)]
pub struct Outbound {
    pub topic: Box<str>,
    pub qos: u8,
    pub retain: bool,
    /// Client id, for No Local.
    pub publisher: Box<str>,
    pub expiry: Option<u32>,
    /// Index in the retained group, 0 for a message that is not retained.
    pub retained_index: u64,
    pub once: Option<Once>,
    pub body: Bytes,
}

/// What a routed message waits for.
#[derive(Debug, Default)]
pub struct Pending {
    shards: Vec<oneshot::Receiver<Outcome>>,
    peers: Vec<oneshot::Receiver<u32>>,
    /// Sessions that have it already or want it at QoS 0.
    matched: u32,
}

/// The lease was not valid after matching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoLease;

impl Node {
    /// Routes a message under an epoch. Nothing is sent when the lease is not valid after matching.
    pub fn route(&self, message: &Outbound, epoch: u64) -> Result<Pending, NoLease> {
        let Ok(name) = message.topic.parse::<Name>() else { return Ok(Pending::default()) };
        let shards = self.meta.machine.read().matches(&name);
        let peers = self.peers.wanting(&name);
        // Read after matching: a match by a node whose lease lapsed since may be of a world that is gone.
        if !self.lease.is_valid(epoch) {
            return Err(NoLease);
        }
        let mut pending = Pending::default();
        for (shard, qos) in shards {
            self.to_shard(message, shard, qos, epoch, &mut pending);
        }
        for (peer, qos) in peers {
            let qos = qos.min(message.qos);
            if qos == 0 {
                if peer.tell(message.transported(0)) {
                    pending.matched += 1;
                } else {
                    self.metrics.dropped_unreachable();
                }
            } else {
                pending.peers.push(peer.send(message.transported(message.qos)));
            }
        }
        pending.matched += self.registry.deliver(&message.transported(message.qos));
        Ok(pending)
    }

    fn to_shard(&self, message: &Outbound, shard: ShardId, qos: u8, epoch: u64, pending: &mut Pending) {
        let Some(client) = self.shards.get(usize::from(shard)) else { return };
        // A shard whose highest QoS is 0, or a QoS 0 message, needs no commit.
        if qos.min(message.qos) == 0 {
            if !client.tell(message.volatile()) {
                self.metrics.dropped_unreachable();
            }
            pending.matched += 1;
            return;
        }
        pending.shards.push(client.enqueue(epoch, message.enqueue()));
        // Subscriptions at QoS 0 in that shard are served from applied state.
        client.tell(message.volatile_for_qos0());
    }
}

impl Outbound {
    fn transported(&self, qos: u8) -> Transported {
        Transported {
            topic: self.topic.clone(),
            publisher: self.publisher.clone(),
            qos,
            retain: self.retain,
            retained_index: self.retained_index,
            once: self.once.clone(),
            expiry: self.expiry,
            body: self.body.clone(),
        }
    }

    fn volatile(&self) -> ToShard {
        ToShard::Volatile {
            topic: self.topic.clone(),
            publisher: self.publisher.clone(),
            retain: self.retain,
            below: 3,
            expiry: self.expiry,
            body: self.body.clone(),
        }
    }

    /// For subscriptions at QoS 0 only: the others get the Enqueue.
    fn volatile_for_qos0(&self) -> ToShard {
        match self.volatile() {
            ToShard::Volatile { topic, publisher, retain, expiry, body, .. } => {
                ToShard::Volatile { topic, publisher, retain, below: 1, expiry, body }
            }
            other => other,
        }
    }

    /// Numbers are given by the shard's client.
    fn enqueue(&self) -> Enqueue {
        Enqueue {
            node: 0,
            epoch: 0,
            number: 0,
            floor: 0,
            topic: self.topic.clone(),
            qos: self.qos,
            retain: self.retain,
            publisher: self.publisher.clone(),
            expiry: self.expiry,
            retained_index: self.retained_index,
            once: self.once.clone(),
            body: self.body.clone(),
        }
    }
}

impl Pending {
    /// Resolves when the message may be acknowledged; `None` when the epoch ended first and nobody knows.
    pub async fn outcome(self) -> Option<Published> {
        let (mut matched, mut accepted) = (self.matched, self.matched);
        for shard in self.shards {
            if let Outcome::Enqueued { matched: here, accepted: taken } = shard.await.ok()? {
                matched += here;
                accepted += taken;
            }
        }
        for peer in self.peers {
            let here = peer.await.ok()?;
            matched += here;
            accepted += here;
        }
        Some(match (matched, accepted) {
            (0, _) => Published::NoMatchingSubscribers,
            (_, 0) => Published::QuotaExceeded,
            _ => Published::Delivered,
        })
    }
}
