//! Requests and streams to other nodes: to the leaders of shards, to the meta leader and to nodes with transient
//! sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use covey_contract::proto::{AwaitRouteRequest, Frame, peer_client::PeerClient};
use covey_raft::{Channels, MAX_MESSAGE, Purpose, RaftGroups};
use covey_types::{GroupId, NodeId, ShardId};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;

use crate::frame;
use crate::lease::{Grant, Renewal, Request};
use crate::membership::{SHARD_VOTERS, voters_of};
use crate::shard::{FromShard, Inbound, LeaderEnd, Link, LinkId, ShardDialer};
use crate::state::SharedMeta;
use crate::tasks::Tasks;
use crate::transient::{PeerDialer, Stream};

/// Reaches the services of other nodes, and the same services of this one.
pub(crate) struct Network {
    /// This node.
    node: NodeId,
    /// The Raft groups: their leaders and members.
    raft: RaftGroups,
    /// Ordinals of the members.
    meta: Arc<SharedMeta>,
    /// Connections to other nodes.
    channels: Arc<dyn Channels>,
    /// Inputs of the leader tasks of this node, by shard number.
    leaders: Vec<mpsc::UnboundedSender<Inbound>>,
    /// Input of the lease grantor, which answers while this node leads meta.
    grantor: mpsc::Sender<Request>,
    /// Number of the next link.
    links: AtomicU64,
    /// Starts the tasks of links.
    tasks: Tasks,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Network {
    pub(crate) fn new(
        node: NodeId,
        raft: RaftGroups,
        meta: Arc<SharedMeta>,
        channels: Arc<dyn Channels>,
        leaders: Vec<mpsc::UnboundedSender<Inbound>>,
        grantor: mpsc::Sender<Request>,
        tasks: Tasks,
    ) -> Arc<Self> {
        Arc::new(Self { node, raft, meta, channels, leaders, grantor, links: AtomicU64::new(1), tasks })
    }

    /// Returns a client of the node's peer service, over the connection for data; `None` if the node is not a member
    /// or not reachable.
    async fn peer(&self, node: NodeId) -> Option<PeerClient<Channel>> {
        let ordinal = self.meta.state.read().member(node)?.ordinal;
        let channel = self.channels.channel(node, ordinal, Purpose::Data).await.ok()?;
        Some(PeerClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
    }

    /// Asks the lease grantor of this node; `None` if this node does not lead meta or has no majority.
    pub(crate) async fn ask_grantor<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (answer, receiver) = oneshot::channel();
        self.grantor.send(request(answer)).await.ok()?;
        receiver.await.ok()
    }

    /// Asks the meta leader, on this node or another one, for a lease. Returns `None` if there is no answer.
    pub(crate) async fn renew(&self, renewal: Renewal) -> Option<Grant> {
        let leader = self.raft.leadership(GroupId::META).borrow().leader?;
        if leader == self.node {
            return self.ask_grantor(|answer| Request::Renew(renewal, answer)).await;
        }
        let answer = self.peer(leader).await?.renew(frame::encode(&renewal)).await.ok()?;
        frame::decode(answer.get_ref()).ok()
    }

    /// Asks the meta leader once to wait until every leased node has applied meta up to the index. Returns `false`
    /// without a confirmation within `timeout`.
    pub(crate) async fn await_route(&self, index: u64, timeout: Duration) -> bool {
        let Some(leader) = self.raft.leadership(GroupId::META).borrow().leader else { return false };
        let asked = async {
            if leader == self.node {
                return self.ask_grantor(|answer| Request::AwaitRoute(index, answer)).await;
            }
            self.peer(leader).await?.await_route(AwaitRouteRequest { index }).await.ok().map(|_| ())
        };
        // A leader that lost its majority does not answer.
        tokio::time::timeout(timeout, asked).await.ok().flatten().is_some()
    }

    /// Returns the node that leads the shard, as far as this node can tell. Without a replica it asks the shard's
    /// voters in turn; a node that does not lead closes the link at once.
    fn shard_leader(&self, shard: ShardId) -> Option<NodeId> {
        let group = GroupId::shard(shard);
        let status = self.raft.status(group);
        if status.has_member(self.node) {
            return self.raft.leadership(group).borrow().leader;
        }
        let (voters, _) = voters_of(group, &self.meta.roster());
        let turn = usize::try_from(self.next_link()).unwrap_or_default();
        voters.keys().copied().filter(|voter| *voter != self.node).cycle().nth(turn % SHARD_VOTERS)
    }

    fn next_link(&self) -> LinkId {
        self.links.fetch_add(1, Ordering::Relaxed)
    }

    /// Opens a link to the leader of the shard on this node. The leader drops `replies` if it does not lead. Returns
    /// `None` if there is no such shard.
    pub(crate) fn link_to_leader(
        &self,
        shard: ShardId,
        replies: mpsc::UnboundedSender<FromShard>,
    ) -> Option<LeaderEnd> {
        let leader = self.leaders.get(shard.index())?.clone();
        LeaderEnd::open(self.next_link(), leader, replies)
    }

    fn local_link(&self, shard: ShardId) -> Option<Link> {
        let (replies, from) = mpsc::unbounded_channel();
        let end = self.link_to_leader(shard, replies)?;
        let (to, mut frames) = mpsc::unbounded_channel();
        self.tasks.spawn("local link", async move {
            while let Some(frame) = frames.recv().await {
                if !end.send(frame) {
                    return;
                }
            }
        });
        Some(Link { to, from })
    }

    async fn remote_link(&self, leader: NodeId) -> Option<Link> {
        let mut peer = self.peer(leader).await?;
        let (to, frames) = mpsc::unbounded_channel();
        let frames = UnboundedReceiverStream::new(frames).map(|frame| frame::encode(&frame));
        let mut answers = peer.shard(frames).await.ok()?.into_inner();
        let (replies, from) = mpsc::unbounded_channel();
        self.tasks.spawn("remote link", async move {
            while let Some(Ok(answer)) = answers.next().await {
                let Ok(reply) = frame::decode::<FromShard>(&answer) else { return };
                if replies.send(reply).is_err() {
                    return;
                }
            }
        });
        Some(Link { to, from })
    }
}

impl ShardDialer for Network {
    fn dial(&self, shard: ShardId) -> BoxFuture<'_, Option<Link>> {
        Box::pin(async move {
            let leader = self.shard_leader(shard)?;
            if leader == self.node { self.local_link(shard) } else { self.remote_link(leader).await }
        })
    }
}

impl PeerDialer for Network {
    fn dial(&self, node: NodeId) -> BoxFuture<'_, Option<Stream>> {
        Box::pin(async move {
            let mut peer = self.peer(node).await?;
            let (to, frames) = mpsc::unbounded_channel::<Frame>();
            let from = peer.transient(UnboundedReceiverStream::new(frames)).await.ok()?.into_inner();
            Some(Stream { to, from: from.boxed() })
        })
    }
}
