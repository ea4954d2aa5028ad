//! Routing of a PUBLISH: matched, checked against the lease, sent to shards, peers and local sessions, and
//! acknowledged when every shard and peer that matched has answered.
//!
//! ```text
//! match (routes, peers' filters, local filters) -> lease valid? -> numbers -> shards, peers, local sessions
//!                                                      | no: the match is dropped and the caller keeps the PUBLISH
//! ```

use std::sync::Arc;

use covey_codec::QoS;
use covey_core::shard::{Outcome, Publication};
use covey_core::topic::Name;
use covey_mqtt::session::Published;
use covey_types::{NodeEpoch, ShardId};
use tokio::sync::oneshot;

use crate::Observer;
use crate::lease::Lease;
use crate::session::Registry;
use crate::shard::{self, ToShard};
use crate::state::SharedMeta;
use crate::transient::Peers;

/// Value of `below` for all sessions: above every QoS.
const EVERY_QOS: u8 = 3;
/// Value of `below` for sessions that match at QoS 0 only; the others get the `Enqueue`.
const QOS_0_ONLY: u8 = 1;

/// Receipts that a routed message waits for.
#[derive(Debug, Default)]
pub(crate) struct PendingAck {
    /// Outcomes of shards.
    shards: Vec<oneshot::Receiver<Outcome>>,
    /// Receipts of peers: the number of their transient sessions that matched.
    peers: Vec<oneshot::Receiver<u32>>,
    /// Receivers that need no receipt: local sessions, shards and peers that get it at QoS 0.
    matched: u32,
}

/// The epoch did not hold a valid lease after matching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoLease;

/// Finds the receivers of a message and sends it to them.
pub(crate) struct Router {
    /// Routes of the shards.
    pub(crate) meta: Arc<SharedMeta>,
    /// Client of each shard, by shard number.
    pub(crate) shards: Vec<Arc<shard::ShardClient>>,
    /// Streams to the transient sessions of other nodes.
    pub(crate) peers: Arc<Peers>,
    /// Sessions whose connections are on this node.
    pub(crate) sessions: Arc<Registry>,
    /// Checked after matching.
    pub(crate) lease: Arc<Lease>,
    /// Counts messages that are dropped.
    pub(crate) observer: Arc<dyn Observer>,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").finish_non_exhaustive()
    }
}

impl Router {
    /// Returns the client of the shard that a client id belongs to. It never changes: `crc32c(client id) mod shards` is
    /// part of the format on disk (docs/clustering.md#groups).
    pub(crate) fn shard_client_of(&self, client: &str) -> &Arc<shard::ShardClient> {
        let index = crc32c::crc32c(client.as_bytes()) as usize % self.shards.len().max(1);
        let shard = self.shards.get(index);
        shard.unwrap_or_else(|| unreachable!("the configuration was checked: there is at least one shard"))
    }

    /// Routes a message under an epoch.
    ///
    /// # Errors
    /// Returns [`NoLease`] if the lease is not valid after matching; nothing was sent.
    pub(crate) fn route(&self, message: &Publication, epoch: NodeEpoch) -> Result<PendingAck, NoLease> {
        let Ok(name) = message.topic.parse::<Name>() else { return Ok(PendingAck::default()) };
        let shards = self.meta.state.read().matches(&name);
        let peers = self.peers.wanting(&name);
        // Checked after matching: if the lease lapsed before, the matched routes may be outdated.
        if !self.lease.is_valid(epoch) {
            return Err(NoLease);
        }
        let mut pending = PendingAck::default();
        for (shard, qos) in shards {
            self.to_shard(message, shard, qos, epoch, &mut pending);
        }
        for (peer, qos) in peers {
            let qos = qos.min(message.qos);
            if qos == QoS::AtMostOnce {
                if peer.tell(Publication { qos, ..message.clone() }) {
                    pending.matched += 1;
                } else {
                    self.observer.dropped_unreachable();
                }
            } else {
                pending.peers.push(peer.send(message.clone()));
            }
        }
        pending.matched += self.sessions.deliver(message);
        Ok(pending)
    }

    fn to_shard(&self, message: &Publication, shard: ShardId, qos: QoS, epoch: NodeEpoch, pending: &mut PendingAck) {
        let Some(client) = self.shards.get(shard.index()) else { return };
        // QoS 0 needs no commit.
        if qos.min(message.qos) == QoS::AtMostOnce {
            if !client.tell(at_qos0(message, EVERY_QOS)) {
                self.observer.dropped_unreachable();
            }
            pending.matched += 1;
            return;
        }
        pending.shards.push(client.enqueue(epoch, message.clone()));
        // Sessions that match at QoS 0 only are served from the applied state.
        client.tell(at_qos0(message, QOS_0_ONLY));
    }
}

/// Returns the frame of a message that is not logged, for the sessions whose matching subscriptions all have a QoS below
/// `below`.
fn at_qos0(message: &Publication, below: u8) -> ToShard {
    ToShard::Qos0 {
        topic: message.topic.clone(),
        publisher: message.publisher.clone(),
        retain: message.retain,
        below,
        expiry: message.expiry,
        body: message.body.clone(),
    }
}

impl PendingAck {
    /// Waits for all receipts and returns what the publisher is answered; `None` if the epoch ended first, so that the
    /// outcome is unknown.
    pub(crate) async fn outcome(self) -> Option<Published> {
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
            _ => Published::Accepted,
        })
    }
}
