//! Answers the Raft requests of other nodes. The node's gRPC service calls it after the peer was authenticated.

use std::sync::Arc;

use bytes::Bytes;
use covey_contract::proto;
use futures::future::ready;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::raft::{TransferLeaderRequest, VoteRequest};
use openraft::type_config::alias::SnapshotOf;
use serde::Serialize;
use tokio::sync::mpsc;
use tonic::Status;

use super::super::raft::{Append, DecodeError, Raft, SnapshotMeta, Types, Vote, decode, decode_append, encode};
use super::super::snapshot::{Frame, SnapshotFile, SnapshotStore, Writer};
use super::super::types::StoreError;
use super::{KIND_APPEND, KIND_PRE_VOTE, KIND_TRANSFER, KIND_VOTE};

/// Frames of a snapshot that wait to be written.
const SNAPSHOT_QUEUE: usize = 4;

fn malformed(error: &DecodeError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(error: &impl ToString) -> Status {
    Status::unavailable(error.to_string())
}

fn reply<T: Serialize>(value: &T) -> Result<proto::RaftReply, Status> {
    let payload = encode(value).map_err(|error| Status::internal(error.to_string()))?;
    Ok(proto::RaftReply { payload, error: String::new() })
}

/// Handles a single call: a vote, a pre-vote, a heartbeat or a leadership transfer.
pub(in super::super) async fn call(raft: &Raft, request: proto::RaftRequest) -> Result<proto::RaftReply, Status> {
    match request.kind {
        KIND_APPEND => {
            let request = decode_append(&request.payload).map_err(|error| malformed(&error))?;
            reply(&raft.append_entries(request).await.map_err(|error| stopped(&error))?)
        }
        KIND_VOTE => {
            let request: VoteRequest<Types> = decode(&request.payload).map_err(|error| malformed(&error))?;
            reply(&raft.vote(request).await.map_err(|error| stopped(&error))?)
        }
        KIND_PRE_VOTE => {
            let request: VoteRequest<Types> = decode(&request.payload).map_err(|error| malformed(&error))?;
            reply(&raft.pre_vote(request).await.map_err(|error| stopped(&error))?)
        }
        KIND_TRANSFER => {
            let request: TransferLeaderRequest<Types> = decode(&request.payload).map_err(|error| malformed(&error))?;
            reply(&raft.handle_transfer_leader(request).await.map_err(|error| stopped(&error))?)
        }
        other => Err(Status::unimplemented(format!("unknown request kind {other}"))),
    }
}

/// Appends the entries of one group, in the order of the stream; ends at the first error.
pub(in super::super) fn append<S>(
    raft: &Raft,
    first: &proto::RaftRequest,
    rest: S,
) -> Result<BoxStream<'static, Result<proto::RaftReply, Status>>, Status>
where
    S: Stream<Item = Result<proto::RaftRequest, Status>> + Send + Unpin + 'static,
{
    let (group, to) = (first.group, first.to);
    let first = decode_append(&first.payload).map_err(|error| malformed(&error))?;
    let rest = rest.map(move |request| decode_next(request, group, to)).take_while(|request| ready(request.is_some()));
    let rest = rest.filter_map(ready);
    let input = futures::stream::iter([first]).chain(rest);
    let output = raft.stream_append(input.boxed());
    Ok(output.map(|result| result.map_err(|fatal| stopped(&fatal)).and_then(|result| reply(&result))).boxed())
}

fn decode_next(request: Result<proto::RaftRequest, Status>, group: u32, to: u64) -> Option<Append> {
    let request =
        request.ok().filter(|request| (request.group, request.to, request.kind) == (group, to, KIND_APPEND))?;
    decode_append(&request.payload)
        .inspect_err(|error| tracing::warn!(%error, "closing the stream of malformed log entries"))
        .ok()
}

/// Receives a snapshot and installs it.
pub(in super::super) async fn snapshot<S>(
    raft: &Raft,
    snapshots: &Arc<SnapshotStore>,
    header: Bytes,
    mut chunks: S,
) -> Result<proto::RaftReply, Status>
where
    S: Stream<Item = Result<proto::SnapshotChunk, Status>> + Send + Unpin + 'static,
{
    let (vote, meta): (Vote, SnapshotMeta) = decode(&header).map_err(|error| malformed(&error))?;
    let (sender, receiver) = mpsc::channel::<Bytes>(SNAPSHOT_QUEUE);
    let writer = snapshots.writer().map_err(|error| Status::internal(error.to_string()))?;
    let writing = tokio::task::spawn_blocking(move || write_frames(writer, receiver));
    while let Some(chunk) = chunks.next().await {
        // A broken stream leaves a file without its end, which `finish` refuses.
        let Ok(chunk) = chunk else { break };
        if sender.send(chunk.data).await.is_err() {
            break;
        }
    }
    drop(sender);
    let written = writing.await.map_err(|error| Status::internal(error.to_string()))?;
    let file = written.map_err(|error| Status::data_loss(error.to_string()))?;
    if file.meta != meta {
        return Err(Status::invalid_argument("the head of the snapshot differs from the request"));
    }
    let snapshot: SnapshotOf<Types, Arc<SnapshotFile>> = SnapshotOf::<Types, _> { meta, snapshot: file };
    reply(&raft.install_full_snapshot(vote, snapshot).await.map_err(|error| stopped(&error))?)
}

fn write_frames(mut writer: Writer, mut frames: mpsc::Receiver<Bytes>) -> Result<Arc<SnapshotFile>, StoreError> {
    while let Some(raw) = frames.blocking_recv() {
        match Frame::parse(raw) {
            Some(frame) => writer.frame(&frame)?,
            None => return Err(writer.damaged()),
        }
    }
    writer.finish()
}
