//! The peer service: requests of other brokers. The caller is authenticated by its certificate and its hello.

use std::pin::Pin;
use std::sync::Arc;

use covey_contract::proto::{self, Frame, peer_server::Peer};
use futures::{Stream, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Node;
use super::channel::tell;
use super::lease;
use super::membership::Membership;
use super::network::LinkEnd;
use super::shard::Inbound;
use super::wire::{self, FromShard, ToShard};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Implements the gRPC service `Peer`.
#[derive(Debug, Clone)]
pub(super) struct PeerService {
    /// Serves the streams and the calls of the groups and leases.
    pub node: Arc<Node>,
    /// Serves `hello` and `join`.
    pub membership: Arc<Membership>,
}

#[tonic::async_trait]
impl Peer for PeerService {
    type AppendStream = Answers<proto::RaftReply>;
    type ShardStream = Answers<Frame>;
    type TransientStream = Answers<Frame>;

    async fn hello(&self, request: Request<proto::HelloRequest>) -> Result<Response<proto::HelloReply>, Status> {
        Ok(Response::new({
            let caller = covey_peer::Caller::of(&request)?;
            let hello = request.into_inner();
            let reply = self.membership.identity.on_hello(&hello);
            if reply.refused.is_empty() {
                caller.accept(hello);
            }
            reply
        }))
    }

    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::JoinReply>, Status> {
        Ok(Response::new(self.membership.on_join(&request.into_inner()).await))
    }

    async fn raft(&self, request: Request<proto::RaftRequest>) -> Result<Response<proto::RaftReply>, Status> {
        self.node.cluster.serve_raft(request.into_inner()).await.map(Response::new)
    }

    async fn append(
        &self,
        request: Request<Streaming<proto::RaftRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        Ok(Response::new(self.node.cluster.serve_append(request.into_inner())))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotChunk>>,
    ) -> Result<Response<proto::RaftReply>, Status> {
        self.node.cluster.serve_snapshot(request.into_inner()).await.map(Response::new)
    }

    async fn propose(&self, request: Request<proto::ProposeRequest>) -> Result<Response<proto::ProposeReply>, Status> {
        Ok(Response::new(self.node.cluster.serve_propose(request.into_inner()).await))
    }

    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexReply>, Status> {
        Ok(Response::new(self.node.cluster.serve_read_index(request.into_inner()).await))
    }

    async fn shard(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::ShardStream>, Status> {
        let (replies, answers) = mpsc::unbounded_channel::<FromShard>();
        // Answered before the first frame is read: the caller sends frames only after the response.
        self.node.spawn("shard link", serve_shard(self.node.clone(), request.into_inner(), replies));
        let answers = UnboundedReceiverStream::new(answers).map(|answer| Ok(wire::frame(&answer)));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn renew(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
        let renewal = wire::read(request.get_ref())?;
        let (answer, receiver) = oneshot::channel();
        let unavailable = || Status::unavailable("not the meta leader");
        self.node.grantor.send(lease::Request::Renew(renewal, answer)).await.map_err(|_| unavailable())?;
        let grant = receiver.await.map_err(|_| unavailable())?;
        Ok(Response::new(wire::frame(&grant)))
    }

    async fn transient(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::TransientStream>, Status> {
        let (out, answers) = mpsc::unbounded_channel();
        let (incoming, frames, over) = (self.node.incoming.clone(), request.into_inner(), self.node.shutdown.clone());
        self.node.spawn("transient stream", async move {
            tokio::select! {
                () = over.cancelled() => {}
                served = incoming.serve(frames, out.clone()) => if let Err(status) = served {
                    tell(&out, Err(status));
                },
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(answers))))
    }

    async fn await_route(
        &self,
        request: Request<proto::AwaitRouteRequest>,
    ) -> Result<Response<proto::AwaitRouteReply>, Status> {
        let (answer, receiver) = oneshot::channel();
        let unavailable = || Status::unavailable("not the meta leader");
        let index = request.into_inner().index;
        self.node.grantor.send(lease::Request::AwaitRoute(index, answer)).await.map_err(|_| unavailable())?;
        receiver.await.map_err(|_| unavailable())?;
        Ok(Response::new(proto::AwaitRouteReply::default()))
    }
}

/// Forwards frames of another node to the shard's leader here, until either side ends the link. The leader drops
/// `replies` if it does not lead.
async fn serve_shard(node: Arc<Node>, mut frames: Streaming<Frame>, replies: mpsc::UnboundedSender<FromShard>) {
    let Some(Ok(first)) = frames.next().await else { return };
    let Ok(attach) = wire::read::<ToShard>(&first) else { return };
    let ToShard::Attach { shard, .. } = &attach else { return };
    let Some(leader) = node.leaders.get(shard.index()).cloned() else { return };
    let link = node.next_link();
    let end = LinkEnd { link, leader };
    let mut sent = end.leader.send(Inbound::Opened { link, replies });
    let mut next = Some(attach);
    while let (Ok(()), Some(frame)) = (&sent, next.take()) {
        sent = end.leader.send(Inbound::Frame { link, frame });
        next = frames.next().await.and_then(Result::ok).and_then(|frame| wire::read(&frame).ok());
    }
}
