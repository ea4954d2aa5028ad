//! The peer service: requests of other brokers. The caller is authenticated by its certificate and its hello.

use std::pin::Pin;
use std::sync::Arc;

use covey_contract::proto::peer_server::{Peer, PeerServer};
use covey_contract::proto::{self, Frame};
use covey_raft::{MAX_MESSAGE, RaftGroups};
use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::channel::tell;
use crate::frame;
use crate::lease;
use crate::membership::Membership;
use crate::network::Network;
use crate::node::Node;
use crate::shard::{FromShard, ToShard};
use crate::tasks::Tasks;
use crate::transient::Incoming;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Implements the gRPC service `Peer`.
#[derive(Debug, Clone)]
struct PeerService {
    /// Serves the calls of the Raft groups.
    raft: RaftGroups,
    /// Passes requests on to the lease grantor and the shard leaders of this node.
    network: Arc<Network>,
    /// Serves the streams of transient sessions.
    incoming: Arc<Incoming>,
    /// Serves `hello` and `join`.
    membership: Arc<Membership>,
    /// Starts the tasks of streams.
    tasks: Tasks,
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
            let reply = self.membership.on_hello(&hello);
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
        self.raft.serve_raft(request.into_inner()).await.map(Response::new)
    }

    async fn append(
        &self,
        request: Request<Streaming<proto::RaftRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        Ok(Response::new(self.raft.serve_append(request.into_inner().boxed())))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotChunk>>,
    ) -> Result<Response<proto::RaftReply>, Status> {
        self.raft.serve_snapshot(request.into_inner().boxed()).await.map(Response::new)
    }

    async fn propose(&self, request: Request<proto::ProposeRequest>) -> Result<Response<proto::ProposeReply>, Status> {
        Ok(Response::new(self.raft.serve_propose(request.into_inner()).await))
    }

    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexReply>, Status> {
        Ok(Response::new(self.raft.serve_read_index(request.into_inner()).await))
    }

    async fn shard(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::ShardStream>, Status> {
        let (replies, answers) = mpsc::unbounded_channel::<FromShard>();
        // Answered before the first frame is read: the caller sends frames only after the response.
        let serving = serve_shard(self.network.clone(), request.into_inner(), replies);
        self.tasks.spawn("shard link", serving);
        let answers = UnboundedReceiverStream::new(answers).map(|answer| Ok(frame::encode(&answer)));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn renew(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
        let renewal = frame::decode(request.get_ref())?;
        let grant = self.network.ask_grantor(|answer| lease::Request::Renew(renewal, answer)).await;
        let grant = grant.ok_or_else(not_leader)?;
        Ok(Response::new(frame::encode(&grant)))
    }

    async fn transient(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::TransientStream>, Status> {
        let (out, answers) = mpsc::unbounded_channel();
        let (incoming, frames) = (self.incoming.clone(), request.into_inner());
        self.tasks.spawn("transient stream", async move {
            if let Err(status) = incoming.serve(frames, out.clone()).await {
                tell(&out, Err(status));
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(answers))))
    }

    async fn await_route(
        &self,
        request: Request<proto::AwaitRouteRequest>,
    ) -> Result<Response<proto::AwaitRouteReply>, Status> {
        let index = request.into_inner().index;
        let confirmed = self.network.ask_grantor(|answer| lease::Request::AwaitRoute(index, answer)).await;
        confirmed.ok_or_else(not_leader)?;
        Ok(Response::new(proto::AwaitRouteReply::default()))
    }
}

fn not_leader() -> Status {
    Status::unavailable("not the meta leader")
}

/// Forwards frames of another node to the shard's leader here, until either side ends the link. The leader drops
/// `replies` if it does not lead.
async fn serve_shard(network: Arc<Network>, mut frames: Streaming<Frame>, replies: mpsc::UnboundedSender<FromShard>) {
    let Some(Ok(first)) = frames.next().await else { return };
    let Ok(attach) = frame::decode::<ToShard>(&first) else { return };
    let ToShard::Attach { shard, .. } = &attach else { return };
    let Some(leader) = network.link_to_leader(*shard, replies) else { return };
    let mut next = Some(attach);
    while let Some(frame) = next.take()
        && leader.send(frame)
    {
        next = frames.next().await.and_then(Result::ok).and_then(|frame| frame::decode(&frame).ok());
    }
}

/// Returns the gRPC services of the peer port.
pub fn peer_services(node: &Node, membership: Arc<Membership>) -> tonic::service::Routes {
    let service = PeerService {
        raft: node.raft.clone(),
        network: node.network.clone(),
        incoming: node.incoming.clone(),
        membership,
        tasks: node.tasks.clone(),
    };
    let service =
        PeerServer::new(service).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
    tonic::service::Routes::new(service)
}
