//! Connections to other nodes: to shard leaders, to the meta leader and to nodes with transient sessions.

use covey_contract::proto::{AwaitRouteRequest, Frame, peer_client::PeerClient};
use covey_raft::{MAX_MESSAGE, Purpose};
use covey_types::{GroupId, NodeId, ShardId};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;

use super::Node;
use super::channel::tell;
use super::lease::Request;
use super::membership::{SHARD_VOTERS, placement};
use super::services::Handle;
use super::shard::{Inbound, Link, LinkId, ShardDialer};
use super::transient::{PeerDialer, Stream};
use super::wire::{self, Grant, Renewal};

impl Node {
    /// Returns a client of the node's peer service, over the connection for data; `None` if the node is not a member
    /// or not reachable.
    pub(super) async fn peer(&self, node: NodeId) -> Option<PeerClient<Channel>> {
        let ordinal = self.meta.machine.read().member(node)?.ordinal;
        let channel = self.channels.channel(node, ordinal, Purpose::Data).await.ok()?;
        Some(PeerClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
    }

    /// Asks the meta leader, on this node or another one, for a lease. Returns `None` if there is no answer.
    pub(super) async fn renew_once(&self, renewal: Renewal) -> Option<Grant> {
        let leader = self.cluster.leadership(GroupId::META).borrow().leader?;
        if leader == self.id {
            let (answer, receiver) = oneshot::channel();
            self.grantor.send(Request::Renew(renewal, answer)).await.ok()?;
            return receiver.await.ok();
        }
        let answer = self.peer(leader).await?.renew(wire::frame(&renewal)).await.ok()?;
        wire::read(answer.get_ref()).ok()
    }

    /// Asks the meta leader once to wait until every leased node has applied meta up to the index. Returns `false`
    /// without a confirmation within a lease.
    pub(super) async fn await_route_once(&self, index: u64) -> bool {
        let Some(leader) = self.cluster.leadership(GroupId::META).borrow().leader else { return false };
        // A leader that lost its majority does not answer.
        let patience = self.config.fence.lease;
        let asked = async {
            if leader == self.id {
                let (answer, receiver) = oneshot::channel();
                self.grantor.send(Request::AwaitRoute(index, answer)).await.ok()?;
                return receiver.await.ok();
            }
            self.peer(leader).await?.await_route(AwaitRouteRequest { index }).await.ok().map(|_| ())
        };
        tokio::time::timeout(patience, asked).await.ok().flatten().is_some()
    }

    /// Returns the node that leads the shard, as far as this node can tell. Without a replica it asks the shard's
    /// voters in turn; a node that does not lead closes the link at once.
    fn shard_leader(&self, shard: ShardId) -> Option<NodeId> {
        let group = GroupId::shard(shard);
        let status = self.cluster.status(group);
        if status.has_member(self.id) {
            return self.cluster.leadership(group).borrow().leader;
        }
        let (voters, _) = placement(group, &self.members_by_ordinal());
        let turn = usize::try_from(self.next_link()).unwrap_or_default();
        voters.keys().copied().filter(|voter| *voter != self.id).cycle().nth(turn % SHARD_VOTERS)
    }

    fn local_link(&self, shard: ShardId) -> Option<Link> {
        let leader = self.leaders.get(shard.index())?.clone();
        let link = self.next_link();
        let (replies, from_leader) = mpsc::unbounded_channel();
        leader.send(Inbound::Opened { link, replies }).ok()?;
        let (to, mut to_leader) = mpsc::unbounded_channel();
        self.spawn("local link", async move {
            let end = LinkEnd { link, leader };
            while let Some(frame) = to_leader.recv().await {
                if end.leader.send(Inbound::Frame { link, frame }).is_err() {
                    return;
                }
            }
        });
        Some(Link { to, from: from_leader })
    }

    async fn remote_link(&self, leader: NodeId) -> Option<Link> {
        let mut peer = self.peer(leader).await?;
        let (to, frames) = mpsc::unbounded_channel();
        let frames = UnboundedReceiverStream::new(frames).map(|frame| wire::frame(&frame));
        let mut answers = peer.shard(frames).await.ok()?.into_inner();
        let (from_leader, from) = mpsc::unbounded_channel();
        self.spawn("remote link", async move {
            while let Some(Ok(frame)) = answers.next().await {
                let Ok(event) = wire::read(&frame) else { return };
                if from_leader.send(event).is_err() {
                    return;
                }
            }
        });
        Some(Link { to, from })
    }
}

/// End of a node's link at a shard's leader. The leader is told that the link is closed when this is dropped.
pub(super) struct LinkEnd {
    pub(super) link: LinkId,
    pub(super) leader: mpsc::UnboundedSender<Inbound>,
}

impl Drop for LinkEnd {
    fn drop(&mut self) {
        tell(&self.leader, Inbound::Closed { link: self.link });
    }
}

impl ShardDialer for Handle {
    fn dial(&self, shard: ShardId) -> BoxFuture<'_, Option<Link>> {
        Box::pin(async move {
            let leader = self.0.shard_leader(shard)?;
            if leader == self.0.id { self.0.local_link(shard) } else { self.0.remote_link(leader).await }
        })
    }
}

impl PeerDialer for Handle {
    fn dial(&self, node: NodeId) -> BoxFuture<'_, Option<Stream>> {
        Box::pin(async move {
            let mut peer = self.0.peer(node).await?;
            let (to, frames) = mpsc::unbounded_channel::<Frame>();
            let from = peer.transient(UnboundedReceiverStream::new(frames)).await.ok()?.into_inner();
            Some(Stream { to, from: from.boxed() })
        })
    }
}
