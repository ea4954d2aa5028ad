//! Routing of a PUBLISH: matched, checked against the lease, sent to shards, peers and local sessions, and
//! acknowledged when every matching inbox has it.
//!
//! ```text
//! match (routes, peers' filters, local filters) -> lease valid? -> numbers -> shards, peers, local sessions
//!                                                      | no: the match is dropped and the caller keeps the PUBLISH
//! ```

use bytes::Bytes;
use covey_core::shard::{Enqueue, Once, Outcome};
use covey_core::topic::Name;
use covey_mqtt::session::Published;
use covey_types::{NodeEpoch, NodeId, ShardId};
use tokio::sync::oneshot;

use super::Node;
use super::wire::{ToShard, Transported};

/// A message ready to be routed.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Topic name.
    pub topic: Box<str>,
    /// QoS of the PUBLISH, 0 to 2.
    pub qos: u8,
    /// Retain flag of the PUBLISH.
    pub retain: bool,
    /// Client id of the publisher, for No Local; empty for a will.
    pub publisher: Box<str>,
    /// Message expiry in seconds; `None` for none.
    pub expiry: Option<u32>,
    /// Log index at which the retained group stored it; 0 for a message that is not retained.
    pub retained_index: u64,
    /// Key for exactly-once delivery; `None` for none.
    pub once: Option<Once>,
    /// An encoded MQTT 5 PUBLISH.
    pub body: Bytes,
}

/// Receipts that a routed message waits for.
#[derive(Debug, Default)]
pub struct Pending {
    /// Outcomes of shards.
    shards: Vec<oneshot::Receiver<Outcome>>,
    /// Receipts of peers: the number of their transient sessions that matched.
    peers: Vec<oneshot::Receiver<u32>>,
    /// Receivers that need no receipt: local sessions, shards and peers that get it at QoS 0.
    matched: u32,
}

/// The epoch did not hold a valid lease after matching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoLease;

impl Node {
    /// Routes a message under an epoch.
    ///
    /// # Errors
    /// Returns [`NoLease`] if the lease is not valid after matching; nothing was sent.
    pub fn route(&self, message: &Outbound, epoch: NodeEpoch) -> Result<Pending, NoLease> {
        let Ok(name) = message.topic.parse::<Name>() else { return Ok(Pending::default()) };
        let shards = self.meta.machine.read().matches(&name);
        let peers = self.peers.wanting(&name);
        // Checked after matching: if the lease lapsed before, the matched routes may be outdated.
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

    fn to_shard(&self, message: &Outbound, shard: ShardId, qos: u8, epoch: NodeEpoch, pending: &mut Pending) {
        let Some(client) = self.shards.get(shard.index()) else { return };
        // QoS 0 needs no commit.
        if qos.min(message.qos) == 0 {
            if !client.tell(message.volatile()) {
                self.metrics.dropped_unreachable();
            }
            pending.matched += 1;
            return;
        }
        pending.shards.push(client.enqueue(epoch, message.enqueue()));
        // Sessions that match at QoS 0 only are served from the applied state.
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

    /// Like `volatile`, but only for sessions that match at QoS 0; the others get the Enqueue.
    fn volatile_for_qos0(&self) -> ToShard {
        match self.volatile() {
            ToShard::Volatile { topic, publisher, retain, expiry, body, .. } => {
                ToShard::Volatile { topic, publisher, retain, below: 1, expiry, body }
            }
            other => other,
        }
    }

    /// `node`, `epoch`, `number` and `floor` are set by the shard's client.
    fn enqueue(&self) -> Enqueue {
        Enqueue {
            node: NodeId::default(),
            epoch: NodeEpoch::default(),
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
    /// Waits for all receipts and returns what the publisher is answered; `None` if the epoch ended first, so that the
    /// outcome is unknown.
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
