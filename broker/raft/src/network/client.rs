//! Sends the Raft requests of one group to one peer. openraft creates an instance per peer and purpose.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use covey_contract::proto;
use covey_contract::proto::peer_client::PeerClient;
use covey_types::{GroupId, NodeId};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::super::raft::{Append, Types, Vote, decode, encode, encode_append};
use super::super::snapshot::{SnapshotFile, SnapshotStore};
use super::super::types::{Channels, Member, Purpose, StoreError};
use super::pipeline::{Appended, Closing, Outgoing, Window, incoming};
use super::rate::Rate;
use super::{KIND_APPEND, KIND_PRE_VOTE, KIND_TRANSFER, KIND_VOTE, peer_client};

/// Pause after a peer was not reachable.
const BACKOFF: Duration = Duration::from_millis(50);
/// A stream of entries is closed if its oldest request is unanswered for this long.
const APPEND_LIMIT: Duration = Duration::from_secs(5);
/// A snapshot transfer is aborted if the receiver takes no frame for this long, or does not answer for this long after
/// the last one.
const SNAPSHOT_LIMIT: Duration = Duration::from_mins(5);
/// Frames of a snapshot that are read in advance.
const SNAPSHOT_AHEAD: usize = 4;

/// Creates the clients of one group.
#[derive(Clone)]
pub(in super::super) struct Factory {
    /// This node.
    pub(in super::super) node: NodeId,
    /// Id of the group.
    pub(in super::super) group: GroupId,
    /// Connections to the other nodes.
    pub(in super::super) channels: Arc<dyn Channels>,
    /// Snapshot files of the group.
    pub(in super::super) snapshots: Arc<SnapshotStore>,
    /// Limits the bytes per second of sent snapshots.
    pub(in super::super) rate: Arc<Rate>,
}

impl Factory {
    fn client(&self, target: NodeId, member: Member, beats: bool) -> Client {
        Client { factory: self.clone(), target, member, beats }
    }
}

impl RaftNetworkFactory<Types> for Factory {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> Client {
        self.client(target, *node, false)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Member) -> Client {
        self.client(target, *node, true)
    }
}

/// Client of one peer.
pub(in super::super) struct Client {
    /// What all clients of the group share.
    factory: Factory,
    /// The peer.
    target: NodeId,
    /// Ordinal of the peer.
    member: Member,
    /// True for heartbeats only: single calls are cheaper than a stream.
    beats: bool,
}

type RpcError = RPCError<Types>;

fn unreachable(error: &impl ToString) -> RpcError {
    Unreachable::from_string(error.to_string()).into()
}

fn network(error: &impl ToString) -> RpcError {
    NetworkError::from_string(error.to_string()).into()
}

/// Converts a status to openraft's error. Codes that mean that the peer is not available lead to a pause.
pub(super) fn failed(status: &Status) -> RpcError {
    match status.code() {
        Code::Unavailable
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::Unauthenticated
        | Code::PermissionDenied => unreachable(status),
        _ => network(status),
    }
}

impl Client {
    async fn peer(&self, purpose: Purpose) -> Result<PeerClient<Channel>, RpcError> {
        let channel = self.factory.channels.channel(self.target, self.member.ordinal, purpose).await;
        channel.map(peer_client).map_err(|error| unreachable(&error))
    }

    fn timed_out(&self, action: RPCTypes, timeout: Duration) -> Timeout<Types> {
        Timeout { action, id: self.factory.node, target: self.target, timeout }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        action: RPCTypes,
        kind: u32,
        payload: Bytes,
        limit: Duration,
    ) -> Result<T, RpcError> {
        let group = u32::from(self.factory.group.get());
        let (from, to) = (self.factory.node.get(), self.target.get());
        let request = proto::RaftRequest { group, from, kind, payload, to };
        let exchange = async {
            let reply = self.peer(Purpose::Raft).await?.raft(request).await.map_err(|status| failed(&status))?;
            read_reply(&reply.into_inner())
        };
        match timeout(limit, exchange).await {
            Ok(result) => result,
            Err(_) => Err(self.timed_out(action, limit).into()),
        }
    }

    async fn open_append(&self, requests: Outgoing, window: Closing) -> Result<BoxStream<'static, Appended>, RpcError> {
        let overdue = self.timed_out(RPCTypes::AppendEntries, APPEND_LIMIT);
        let mut peer = self.peer(Purpose::Raft).await?;
        let replies = match timeout(APPEND_LIMIT, peer.append(requests)).await {
            Ok(Ok(replies)) => replies.into_inner(),
            Ok(Err(status)) => return Err(failed(&status)),
            Err(_) => return Err(overdue.into()),
        };
        Ok(incoming(replies, window, overdue))
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: SnapshotOf<Types, Arc<SnapshotFile>>,
    ) -> Result<SnapshotResponse<Types>, RpcError> {
        let _sending = self.factory.snapshots.sending();
        let header = encode(&(vote, snapshot.meta)).map_err(|error| network(&error))?;
        let mut peer = self.peer(Purpose::Snapshot).await?;
        let (sender, receiver) = mpsc::channel(SNAPSHOT_AHEAD);
        let file = snapshot.snapshot;
        let reading = tokio::task::spawn_blocking({
            let file = Arc::clone(&file);
            let group = u32::from(self.factory.group.get());
            let (from, to) = (self.factory.node.get(), self.target.get());
            let first = proto::SnapshotChunk { group, from, header, data: Bytes::new(), to };
            move || read_frames(&file, first, &sender)
        });
        let progress = Arc::new(Mutex::new(Instant::now()));
        let state = (receiver, Arc::clone(&self.factory.rate), Arc::clone(&progress));
        let chunks = futures::stream::unfold(state, |(mut receiver, rate, progress)| async move {
            let chunk: proto::SnapshotChunk = receiver.recv().await?;
            rate.take(chunk.data.len()).await;
            *progress.lock() = Instant::now();
            Some((chunk, (receiver, rate, progress)))
        });
        let mut call = std::pin::pin!(peer.snapshot(chunks));
        let answer = loop {
            match timeout(SNAPSHOT_LIMIT / 4, &mut call).await {
                Ok(answer) => break answer,
                Err(_) if progress.lock().elapsed() >= SNAPSHOT_LIMIT => {
                    return Err(self.timed_out(RPCTypes::InstallSnapshot, SNAPSHOT_LIMIT).into());
                }
                Err(_) => (),
            }
        };
        match reading.await {
            Ok(Ok(())) => (),
            Ok(Err(error)) => {
                // The next attempt makes a new file.
                tracing::error!(group = %self.factory.group, %error, "failed to read the snapshot; discarding it");
                self.factory.snapshots.discard(&file);
                return Err(network(&error));
            }
            Err(error) => return Err(network(&error)),
        }
        read_reply(&answer.map_err(|status| failed(&status))?.into_inner())
    }
}

/// Sends the frames of a file. Ends without an error if the receiver is gone.
fn read_frames(
    file: &SnapshotFile,
    first: proto::SnapshotChunk,
    sender: &mpsc::Sender<proto::SnapshotChunk>,
) -> Result<(), StoreError> {
    let (group, from, to) = (first.group, first.from, first.to);
    if sender.blocking_send(first).is_err() {
        return Ok(());
    }
    let mut frames = file.frames()?;
    while let Some(frame) = frames.next_frame()? {
        let chunk = proto::SnapshotChunk { group, from, header: Bytes::new(), data: frame.raw(), to };
        if sender.blocking_send(chunk).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Decodes a reply, or returns the error that it contains.
pub(super) fn read_reply<T: DeserializeOwned>(reply: &proto::RaftReply) -> Result<T, RpcError> {
    if reply.error.is_empty() {
        decode(&reply.payload).map_err(|error| network(&error))
    } else {
        Err(network(&reply.error))
    }
}

fn body<T: Serialize>(value: &T) -> Result<Bytes, RpcError> {
    encode(value).map_err(|error| network(&error))
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = Arc<SnapshotFile>;

    async fn append_entries(
        &mut self,
        request: Append,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RpcError> {
        let payload = encode_append(&request).map_err(|error| network(&error))?;
        self.call(RPCTypes::AppendEntries, KIND_APPEND, payload, option.hard_ttl()).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Appended>, RpcError>>
    where
        S: futures::Stream<Item = Append> + openraft::OptionalSend + Unpin + 'static,
    {
        if self.beats {
            return stream_append_sequential(self, input, option);
        }
        let window = Window::new(input);
        let empty = proto::RaftRequest {
            group: u32::from(self.factory.group.get()),
            from: self.factory.node.get(),
            kind: KIND_APPEND,
            payload: Bytes::new(),
            to: self.target.get(),
        };
        let requests = Outgoing::new(Arc::clone(&window), empty);
        let window = Closing::new(window);
        Box::pin(async move {
            let replies: BoxStream<'s, Appended> = match self.open_append(requests, window).await {
                Ok(replies) => replies,
                Err(error) => {
                    // openraft pauses only where it takes the first request from its input, which did not happen.
                    sleep(BACKOFF).await;
                    return Err(error);
                }
            };
            Ok(replies)
        })
    }

    async fn vote(&mut self, request: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, RpcError> {
        self.call(RPCTypes::Vote, KIND_VOTE, body(&request)?, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RpcError> {
        self.call(RPCTypes::Vote, KIND_PRE_VOTE, body(&request)?, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, Arc<SnapshotFile>>,
        cancel: impl Future<Output = ReplicationClosed> + openraft::OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            result = self.send_snapshot(vote, snapshot) => Ok(result?),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RpcError> {
        self.call(RPCTypes::TransferLeader, KIND_TRANSFER, body(&request)?, option.hard_ttl()).await
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(BACKOFF)))
    }
}
