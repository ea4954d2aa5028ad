//! Requests between nodes: handlers of the peer gRPC service, and calls to the leader of a group.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use covey_contract::proto;
use covey_contract::proto::peer_client::PeerClient;
use covey_types::{GroupId, NodeId};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tonic::Status;
use tonic::transport::Channel;

use super::RaftGroups;
use super::group::Group;
use super::network::{forward, peer_client, server};
use super::types::{ProposeError, Purpose, ReadError, Response};

fn group_id(group: u32) -> GroupId {
    GroupId::new(u16::try_from(group).unwrap_or(u16::MAX))
}

impl RaftGroups {
    /// Returns the group of a request. A request for another node id is refused: if this node answered for the lost
    /// disk of its ordinal, it would vote twice.
    fn served(&self, to: u64, group: u32) -> Result<Arc<Group>, Status> {
        let to = NodeId::new(to);
        if to != self.node() {
            return Err(Status::failed_precondition(format!("this is node {}, not {to}", self.node())));
        }
        self.group(group_id(group)).ok_or_else(|| Status::not_found("the group does not run on this node"))
    }

    /// Handles gRPC `Raft`: votes, heartbeats and leadership transfers. The caller has authenticated the peer as a
    /// member.
    ///
    /// # Errors
    /// Returns a status for another node id, an unknown group or kind, and if the engine has stopped.
    pub fn serve_raft(&self, request: proto::RaftRequest) -> BoxFuture<'_, Result<proto::RaftReply, Status>> {
        Box::pin(async move {
            let group = self.served(request.to, request.group)?;
            server::call(&group.raft, request).await
        })
    }

    /// Handles gRPC `Append`: log entries of one group, answered in order. The stream of replies ends with a status
    /// for another node id, an unknown group or a malformed first request, and if the engine has stopped.
    pub fn serve_append(
        &self,
        mut requests: BoxStream<'static, Result<proto::RaftRequest, Status>>,
    ) -> BoxStream<'static, Result<proto::RaftReply, Status>> {
        let this = self.clone();
        // The first request may come long after the stream was opened; the response headers must not wait for it.
        let replies = futures::stream::once(async move {
            let Some(first) = requests.next().await else { return futures::stream::empty().boxed() };
            let opened = first.and_then(|first| {
                let group = this.served(first.to, first.group)?;
                server::append(&group.raft, &first, requests)
            });
            opened.unwrap_or_else(|status| futures::stream::iter([Err(status)]).boxed())
        });
        replies.flatten().boxed()
    }

    /// Handles gRPC `Snapshot`; answers when the snapshot is installed.
    ///
    /// # Errors
    /// Returns a status for another node id, an unknown group, a damaged or incomplete snapshot, and if the engine has
    /// stopped.
    pub fn serve_snapshot(
        &self,
        mut chunks: BoxStream<'static, Result<proto::SnapshotChunk, Status>>,
    ) -> BoxFuture<'_, Result<proto::RaftReply, Status>> {
        Box::pin(async move {
            let first = chunks.next().await.ok_or_else(|| Status::invalid_argument("the stream has no chunk"))??;
            let group = self.served(first.to, first.group)?;
            server::snapshot(&group.raft, &group.snapshots, first.header, chunks).await
        })
    }

    /// Handles gRPC `Propose`: a command that another node forwards to the leader.
    pub fn serve_propose(&self, request: proto::ProposeRequest) -> BoxFuture<'_, proto::ProposeReply> {
        Box::pin(async move { forward::propose_reply(self.propose(group_id(request.group), request.command).await) })
    }

    /// Handles gRPC `ReadIndex`: a read index for another node.
    pub fn serve_read_index(&self, request: proto::ReadIndexRequest) -> BoxFuture<'_, proto::ReadIndexReply> {
        Box::pin(async move { forward::read_index_reply(&self.read_index(group_id(request.group)).await) })
    }

    async fn leader_client(&self, group: &Group, leader: NodeId) -> Option<PeerClient<Channel>> {
        let status = group.status();
        let member = status.voters.get(&leader).or_else(|| status.learners.get(&leader))?;
        let channel = self.inner.shared.channels.channel(leader, member.ordinal, Purpose::Data).await;
        let channel =
            channel.inspect_err(|error| tracing::debug!(%leader, %error, "failed to connect to the leader")).ok()?;
        Some(peer_client(channel))
    }

    /// Proposes a command here or at the leader, following its hints; each node is asked once. There is no timeout:
    /// the caller sets one, and must treat a command without an answer as [`ProposeError::Unknown`].
    ///
    /// # Errors
    /// Returns [`ProposeError`] if no leader is known or reached, or the fate of the command is unknown.
    pub fn propose_at_leader(&self, id: GroupId, command: Bytes) -> BoxFuture<'_, Result<Response, ProposeError>> {
        Box::pin(async move {
            let group = self.group(id).ok_or(ProposeError::Stopped)?;
            let mut asked = BTreeSet::new();
            let mut next = group.leadership.borrow().leader;
            while let Some(leader) = next.filter(|leader| asked.insert(*leader)) {
                let result = if leader == self.node() {
                    group.propose(command.clone()).await
                } else {
                    let Some(mut peer) = self.leader_client(&group, leader).await else { break };
                    let request = proto::ProposeRequest { group: u32::from(id.get()), command: command.clone() };
                    forward::read_propose(peer.propose(request).await.map(tonic::Response::into_inner))
                };
                match result {
                    Err(ProposeError::NotLeader(hint)) => next = hint,
                    other => return other,
                }
            }
            Err(ProposeError::NotLeader(next))
        })
    }

    /// Returns a read index, from here or from the leader, following its hints; each node is asked once.
    ///
    /// # Errors
    /// Returns [`ReadError`] if no leader is known, reached or confirmed by a majority.
    pub fn read_index_at_leader(&self, id: GroupId) -> BoxFuture<'_, Result<u64, ReadError>> {
        Box::pin(async move {
            let group = self.group(id).ok_or(ReadError::Stopped)?;
            let mut asked = BTreeSet::new();
            let mut next = group.leadership.borrow().leader;
            while let Some(leader) = next.filter(|leader| asked.insert(*leader)) {
                let result = if leader == self.node() {
                    group.read_index().await
                } else {
                    let Some(mut peer) = self.leader_client(&group, leader).await else { break };
                    let request = proto::ReadIndexRequest { group: u32::from(id.get()) };
                    forward::read_read_index(peer.read_index(request).await.map(tonic::Response::into_inner))
                };
                match result {
                    Err(ReadError::NotLeader(hint)) => next = hint,
                    other => return other,
                }
            }
            Err(ReadError::NotLeader(next))
        })
    }
}
