//! Routing of a PUBLISH: matched, checked against the lease, sent to shards, peers and local sessions, and
//! acknowledged when every matching inbox has it.
//!
//! ```text
//! match (routes, peers' filters, local filters) -> lease valid? -> numbers -> shards, peers, local sessions
//!                                                      | no: the match is dropped and the caller keeps the PUBLISH
//! ```

use covey_codec::QoS;
use covey_core::shard::{Outcome, Publication};
use covey_core::topic::Name;
use covey_mqtt::session::Published;
use covey_types::{NodeEpoch, ShardId};
use tokio::sync::oneshot;

use super::Node;
use super::wire::ToShard;

/// Value of `below` for all sessions: above every QoS.
const ALL: u8 = 3;
/// Value of `below` for sessions that match at QoS 0 only; the others get the `Enqueue`.
const ABOVE_QOS_0: u8 = 1;

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
    pub fn route(&self, message: &Publication, epoch: NodeEpoch) -> Result<Pending, NoLease> {
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
            if qos == QoS::AtMostOnce {
                if peer.tell(Publication { qos, ..message.clone() }) {
                    pending.matched += 1;
                } else {
                    self.metrics.dropped_unreachable();
                }
            } else {
                pending.peers.push(peer.send(message.clone()));
            }
        }
        pending.matched += self.registry.deliver(message);
        Ok(pending)
    }

    fn to_shard(&self, message: &Publication, shard: ShardId, qos: QoS, epoch: NodeEpoch, pending: &mut Pending) {
        let Some(client) = self.shards.get(shard.index()) else { return };
        // QoS 0 needs no commit.
        if qos.min(message.qos) == QoS::AtMostOnce {
            if !client.tell(qos0(message, ALL)) {
                self.metrics.dropped_unreachable();
            }
            pending.matched += 1;
            return;
        }
        pending.shards.push(client.enqueue(epoch, message.clone()));
        // Sessions that match at QoS 0 only are served from the applied state.
        client.tell(qos0(message, ABOVE_QOS_0));
    }
}

/// Returns the frame of a message that is not logged, for the sessions whose matching subscriptions all have a QoS below
/// `below`.
fn qos0(message: &Publication, below: u8) -> ToShard {
    ToShard::Qos0 {
        topic: message.topic.clone(),
        publisher: message.publisher.clone(),
        retain: message.retain,
        below,
        expiry: message.expiry,
        body: message.body.clone(),
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
