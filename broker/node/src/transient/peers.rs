//! All other members, as the targets of this node's publishes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use covey_codec::QoS;
use covey_core::topic::Name;
use covey_types::{NodeEpoch, NodeId};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use super::outgoing::{Outgoing, PeerDialer};
use crate::state::SharedMeta;
use crate::tasks::Tasks;

/// One [`Outgoing`] per other member.
#[derive(Debug)]
pub(crate) struct Peers {
    /// This node.
    own: NodeId,
    /// Members, and the end of their epochs.
    meta: Arc<SharedMeta>,
    /// Other members, each with the token that stops its task.
    others: RwLock<BTreeMap<NodeId, (Arc<Outgoing>, CancellationToken)>>,
}

impl Peers {
    pub(crate) fn new(own: NodeId, meta: Arc<SharedMeta>) -> Arc<Self> {
        Arc::new(Self { own, meta, others: RwLock::default() })
    }

    /// Keeps a stream to every member; returns when `over` is cancelled, which ends the epoch.
    pub(crate) async fn run(
        &self,
        epoch: NodeEpoch,
        dial: Arc<impl PeerDialer>,
        ping: Duration,
        tasks: Tasks,
        over: CancellationToken,
    ) {
        let mut changes = self.meta.changes();
        loop {
            self.follow_members(epoch, &dial, ping, &tasks, &over);
            tokio::select! {
                () = over.cancelled() => break,
                _ = changes.changed() => {}
            }
        }
        for (_, (peer, stop)) in std::mem::take(&mut *self.others.write()) {
            stop.cancel();
            peer.forget();
        }
    }

    /// Starts streams to new members, ends those to removed ones, and drops what is kept for epochs that are over.
    fn follow_members(
        &self,
        epoch: NodeEpoch,
        dial: &Arc<impl PeerDialer>,
        ping: Duration,
        tasks: &Tasks,
        over: &CancellationToken,
    ) {
        let state = self.meta.state.read();
        let mut peers = self.others.write();
        for (node, member) in state.members().filter(|(node, _)| *node != self.own) {
            if member.removed {
                if let Some((peer, stop)) = peers.remove(&node) {
                    stop.cancel();
                    peer.forget();
                }
                continue;
            }
            let (peer, _) = peers.entry(node).or_insert_with(|| {
                let (peer, stop) = (Outgoing::new(self.own, node), over.child_token());
                let (runner, dial, stopped) = (peer.clone(), dial.clone(), stop.clone());
                let run = async move { runner.run(epoch, dial, ping).await };
                tasks.spawn_lasting_until("peer", stopped, run);
                (peer, stop)
            });
            if peer.epoch().is_some() && member.ended >= peer.epoch() {
                peer.forget();
            }
        }
    }

    /// Returns the nodes with transient sessions that match the topic, each with the highest QoS.
    pub(crate) fn wanting(&self, name: &Name) -> Vec<(Arc<Outgoing>, QoS)> {
        let peers = self.others.read();
        peers.values().filter_map(|(peer, _)| peer.wants(name).map(|qos| (peer.clone(), qos))).collect()
    }

    /// Returns the nodes that have sent a frame within the time.
    pub(crate) fn heard(&self, within: Duration) -> Vec<NodeId> {
        let peers = self.others.read();
        peers.iter().filter(|(_, (peer, _))| peer.is_heard(within)).map(|(node, _)| *node).collect()
    }

    /// Waits until the node's filters are known here, as of a point after this call began.
    pub(crate) async fn sync(&self, node: NodeId) {
        loop {
            let peer = self.others.read().get(&node).map(|(peer, _)| peer.clone());
            if let Some(peer) = peer {
                tokio::select! {
                    () = peer.sync() => return,
                    // The epoch may end in the meantime, and another stream replace this one.
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                }
            } else {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}
