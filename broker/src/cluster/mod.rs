//! The cluster runtime: all Raft groups of a node over one log and one state store.
//!
//! ```text
//!  propose -> proposer -> openraft -> segment log (fsync) -> apply: Machine -> rows in one batch -> written, answer
//!                           |  ^
//!                           v  |  tonic: Raft, Append, Snapshot
//!                          peers
//! ```

mod types;

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::RangeBounds;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use covey_contract::config::Raft as Timing;
use covey_contract::proto;
use futures::Stream;
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;

pub use types::{
    ChangeError, ChannelError, Channels, Fatal, GroupId, GroupStatus, InitializeError, Leadership, Machine, Member,
    NodeId, ProposeError, Purpose, ReadError, Response, Rows, StartError, StoreError, Tuning,
};

/// Largest gRPC message between nodes, in bytes: a 16 MiB message and its framing.
pub const MAX_MESSAGE: usize = 20 << 20;

/// What the runtime is started with.
pub struct Options {
    pub node: NodeId,
    pub member: Member,
    /// Directory for state and snapshots; the log has its own.
    pub dir: PathBuf,
    pub timing: Timing,
    pub tuning: Tuning,
    pub channels: Arc<dyn Channels>,
    pub machines: Vec<(GroupId, Box<dyn Machine>)>,
    pub fatal: Fatal,
    pub shutdown: CancellationToken,
}

/// A cheap handle on the runtime.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
}

/// Reads the rows of a group as they were applied last.
#[derive(Clone)]
pub struct RowReader {
    _group: GroupId,
}

/// Rows in key order, of one moment.
pub struct RowIter;

impl Iterator for RowIter {
    type Item = Result<(Bytes, Bytes), StoreError>;
    fn next(&mut self) -> Option<Self::Item> {
        None
    }
}

impl RowReader {
    pub fn get(&self, _key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(None)
    }
    /// Rows whose key begins with the prefix, in key order.
    pub fn prefix(&self, _prefix: &[u8]) -> RowIter {
        RowIter
    }
    /// Rows of a range of keys, in key order.
    pub fn range(&self, _range: impl RangeBounds<Vec<u8>>) -> RowIter {
        RowIter
    }
}

impl Cluster {
    /// Opens state and snapshots, replays the log and starts every group.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        Ok(Self { inner: Arc::new(Inner { node: options.node }) })
    }

    /// Ends every group and waits until all files are closed.
    pub async fn stop(&self) {}

    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// Forms every group; idempotent, called on every listed node with the same members.
    pub async fn initialize(&self, _members: &BTreeMap<NodeId, Member>) -> Result<(), InitializeError> {
        Err(InitializeError::Stopped)
    }

    /// Whether every group of this node belongs to a cluster.
    pub async fn is_initialized(&self) -> bool {
        false
    }

    /// Submits a command, at this call and in the order of calls, on the node that leads; pipelined.
    pub fn propose(
        &self,
        _group: GroupId,
        _command: Bytes,
    ) -> impl Future<Output = Result<Response, ProposeError>> + Send + 'static + use<> {
        std::future::ready(Err(ProposeError::Stopped))
    }

    /// Submits a command here or at the leader, following its hints; one try.
    pub async fn propose_at_leader(&self, _group: GroupId, _command: Bytes) -> Result<Response, ProposeError> {
        Err(ProposeError::Stopped)
    }

    /// Confirms, by a round begun after the call, that this node leads; gives the index that a reader must have applied.
    pub async fn read_index(&self, _group: GroupId) -> Result<u64, ReadError> {
        Err(ReadError::Stopped)
    }

    /// The read index, from here or from the leader.
    pub async fn read_index_at_leader(&self, _group: GroupId) -> Result<u64, ReadError> {
        Err(ReadError::Stopped)
    }

    /// Waits until this node has applied the index; false when the group stops first.
    pub async fn await_applied(&self, _group: GroupId, _index: u64) -> bool {
        false
    }

    pub fn leadership(&self, _group: GroupId) -> watch::Receiver<Leadership> {
        watch::channel(Leadership::default()).1
    }

    pub fn applied(&self, _group: GroupId) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    pub fn status(&self, _group: GroupId) -> GroupStatus {
        GroupStatus::default()
    }

    /// Hands the leadership to a voter that has every entry; returns when it took it.
    pub async fn transfer_leader(&self, _group: GroupId, _to: NodeId) -> Result<(), ChangeError> {
        Err(ChangeError::Stopped)
    }

    /// Makes these the members of the group: adds learners, waits until they caught up, then one joint change. Leader only.
    pub async fn set_voters(
        &self,
        _group: GroupId,
        _voters: BTreeMap<NodeId, Member>,
        _learners: BTreeMap<NodeId, Member>,
    ) -> Result<(), ChangeError> {
        Err(ChangeError::Stopped)
    }

    pub fn rows(&self, group: GroupId) -> RowReader {
        RowReader { _group: group }
    }

    /// gRPC `Raft`.
    pub async fn serve_raft(&self, _request: proto::RaftRequest) -> Result<proto::RaftReply, Status> {
        Err(Status::unavailable("stopped"))
    }

    /// gRPC `Append`.
    pub fn serve_append(
        &self,
        _requests: impl Stream<Item = Result<proto::RaftRequest, Status>> + Send + Unpin + 'static,
    ) -> BoxStream<'static, Result<proto::RaftReply, Status>> {
        Box::pin(futures::stream::empty())
    }

    /// gRPC `Snapshot`.
    pub async fn serve_snapshot(
        &self,
        _chunks: impl Stream<Item = Result<proto::SnapshotChunk, Status>> + Send + Unpin + 'static,
    ) -> Result<proto::RaftReply, Status> {
        Err(Status::unavailable("stopped"))
    }

    /// gRPC `Propose`.
    pub async fn serve_propose(&self, _request: proto::ProposeRequest) -> proto::ProposeReply {
        proto::ProposeReply::default()
    }

    /// gRPC `ReadIndex`.
    pub async fn serve_read_index(&self, _request: proto::ReadIndexRequest) -> proto::ReadIndexReply {
        proto::ReadIndexReply::default()
    }
}
