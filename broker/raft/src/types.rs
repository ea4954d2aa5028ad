//! Types of the Raft groups: nodes, groups, state machines and errors.
//!
//! Users of the runtime see only these types and none of openraft's, so that the engine can be replaced.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use covey_types::{GroupId, NodeId, Ordinal};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;

/// A node in the membership of a group. Its address follows from the ordinal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Ordinal of the node's pod.
    pub ordinal: Ordinal,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ordinal {}", self.ordinal)
    }
}

/// Traffic class. Each class has its own connection to a peer, to avoid head-of-line blocking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Votes, heartbeats, log entries.
    Raft,
    /// Forwarded proposals, reads, messages, leases.
    Data,
    Snapshot,
}

/// Why no connection to a peer could be made.
pub type ChannelError = Box<dyn std::error::Error + Send + Sync>;

/// Connections to the other nodes. The implementation authenticates the peer before it returns a connection.
pub trait Channels: Send + Sync + 'static {
    /// Returns a connection to the node; an open one is reused.
    ///
    /// # Errors
    /// Resolves to an error if the node is not reachable or not authenticated.
    fn channel(&self, node: NodeId, ordinal: Ordinal, purpose: Purpose)
    -> BoxFuture<'_, Result<Channel, ChannelError>>;
}

/// A deterministic state machine that a group drives. It does no I/O of its own.
pub trait StateMachine: Send + 'static {
    /// Applies one committed command and returns its answer. The same commands must give the same state, rows and
    /// answers. The rows are stored in one batch with the applied index.
    ///
    /// # Errors
    /// The command cannot be decoded. This is fatal: a replica that skips a command would have another state than the
    /// others. The group goes on without this replica.
    fn apply(&mut self, index: u64, command: &Bytes, rows: &mut Rows) -> Result<Bytes, StoreError>;

    /// Called when one or more applied commands are in the state store: their effects may be sent now.
    fn written(&mut self);

    /// Replaces the state by that of the rows, which come in key order: at start, and after a snapshot was installed.
    ///
    /// # Errors
    /// A row cannot be read or decoded.
    fn load(
        &mut self,
        applied: u64,
        rows: &mut dyn Iterator<Item = Result<(Bytes, Bytes), StoreError>>,
    ) -> Result<(), StoreError>;
}

/// Changes of rows by one or more commands; the last change of a key counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// By key; `None` deletes the row.
    changes: BTreeMap<Vec<u8>, Option<Bytes>>,
    /// Bytes of all keys and values, including overwritten ones.
    bytes: usize,
}

impl Rows {
    /// Returns an empty set of changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a row, replacing an earlier value.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Bytes>) {
        let (key, value) = (key.into(), value.into());
        self.bytes = self.bytes.saturating_add(key.len()).saturating_add(value.len());
        self.changes.insert(key, Some(value));
    }

    /// Deletes a row; does nothing if there is none.
    pub fn delete(&mut self, key: impl Into<Vec<u8>>) {
        let key = key.into();
        self.bytes = self.bytes.saturating_add(key.len());
        self.changes.insert(key, None);
    }

    /// Changes in key order; `None` deletes the row.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&Bytes>)> {
        self.changes.iter().map(|(key, value)| (key.as_slice(), value.as_ref()))
    }

    /// Returns whether there are no changes.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Returns the bytes of all changes so far, an upper bound of the batch.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Removes and returns the changes.
    pub(super) fn take(&mut self) -> BTreeMap<Vec<u8>, Option<Bytes>> {
        self.bytes = 0;
        std::mem::take(&mut self.changes)
    }
}

/// The state store or a snapshot could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state store failed.
    #[error("failed to access the state store")]
    Store(#[from] fjall::Error),
    /// A file operation failed.
    #[error("failed to {action} {path}")]
    File { action: &'static str, path: std::path::PathBuf, source: std::io::Error },
    /// A snapshot is damaged.
    #[error("a checksum of {path} does not match")]
    Damaged { path: std::path::PathBuf },
    /// Stored bytes could not be decoded.
    #[error("failed to decode a row or an entry: {0}")]
    Decode(Box<dyn std::error::Error + Send + Sync>),
    /// The snapshot was written by a newer version.
    #[error("the snapshot has format {found}, this version reads up to {known}")]
    Newer { found: u32, known: u32 },
}

impl StoreError {
    /// Returns whether the store's journal ends in a torn batch. Batches are not fsynced, so after a power cut the end
    /// of a batch may be on disk and its middle not. Snapshot and log still have all of it.
    pub(super) fn is_torn(&self) -> bool {
        matches!(self, Self::Store(fjall::Error::JournalRecovery(_) | fjall::Error::Unrecoverable))
    }
}

/// Answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Log index of the command's entry.
    pub index: u64,
    /// Answer from [`StateMachine::apply`].
    pub bytes: Bytes,
}

/// Reason why a command has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The command was not accepted. The id is that of the node that may lead, if one is known.
    #[error("this node does not lead the group (leader: {0:?})")]
    NotLeader(Option<NodeId>),
    /// The command may or may not be committed, now or later. It can be repeated if it is deduplicated.
    #[error("whether the command was committed is unknown")]
    Unknown,
    /// The node is stopping or does not run the group. The command was not accepted.
    #[error("the group does not run on this node")]
    Stopped,
}

/// Reason why there is no read index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Another node may lead; its id, if one is known.
    #[error("this node does not lead the group (leader: {0:?})")]
    NotLeader(Option<NodeId>),
    /// No majority confirmed the leadership in time, or the leader was not reachable.
    #[error("no majority confirmed the leader in time")]
    NoQuorum,
    /// The node is stopping or does not run the group.
    #[error("the group does not run on this node")]
    Stopped,
}

/// Reason why members or leader of a group were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Another node may lead; its id, if one is known.
    #[error("this node does not lead the group (leader: {0:?})")]
    NotLeader(Option<NodeId>),
    /// Another change is in progress.
    #[error("another membership change is in progress")]
    InProgress,
    /// The node is not a voter or lacks too many entries: after a transfer the group would have no leader.
    #[error("node {0} lacks entries of the group")]
    Behind(NodeId),
    /// The node still lacked too many entries at the end of the given time.
    #[error("node {0} did not catch up in time")]
    Timeout(NodeId),
    /// The node did not become leader in time.
    #[error("node {0} did not become leader in time")]
    NotTaken(NodeId),
    /// openraft refused the change.
    #[error("the membership change was refused: {0}")]
    Refused(String),
    /// The node is stopping or does not run the group.
    #[error("the group does not run on this node")]
    Stopped,
}

/// Reason why a cluster was not formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitializeError {
    /// The members do not include this node.
    #[error("this node is not among the members")]
    NotListed,
    /// openraft refused to form the group.
    #[error("group {group} refused to be formed: {reason}")]
    Refused { group: GroupId, reason: String },
    /// The node is stopping or does not run the group.
    #[error("the group does not run on this node")]
    Stopped,
}

/// Reason why the runtime did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state store could not be opened.
    #[error("failed to open the state store in {path}")]
    Open { path: std::path::PathBuf, source: StoreError },
    /// State or log of a group could not be read, or openraft did not start.
    #[error("failed to start group {group}: {reason}")]
    Group { group: GroupId, reason: String },
    /// Heartbeat interval and election timeouts do not fit together.
    #[error("the Raft timing is not valid: {0}")]
    Timing(String),
}

/// Leader of a group, as known by this node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Raft term of the node's vote. It identifies a leader only together with `leader`.
    pub term: u64,
    /// Leader of the term, if known.
    pub leader: Option<NodeId>,
    /// This node leads, has applied everything that earlier leaders committed, and accepts commands.
    pub ours: bool,
}

/// State of a group on this node. Log indexes are 0 where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupStatus {
    /// Current Raft term.
    pub term: u64,
    /// Leader of the term, if known.
    pub leader: Option<NodeId>,
    /// Highest log index known to be committed.
    pub commit: u64,
    /// Log index up to which this node has applied the log.
    pub applied: u64,
    /// Log index of the last entry of this node's log.
    pub last: u64,
    /// Log index that the newest snapshot covers.
    pub snapshot: u64,
    /// Log index up to which the log was purged.
    pub purged: u64,
    /// Voters, by the newest membership in this node's log.
    pub voters: BTreeMap<NodeId, Member>,
    /// Learners, by the newest membership in this node's log.
    pub learners: BTreeMap<NodeId, Member>,
    /// A joint membership change is in progress.
    pub joint: bool,
    /// On the leader, for each other replica: number of entries that it has not acknowledged; `None` if it has never
    /// answered.
    pub lag: BTreeMap<NodeId, Option<u64>>,
}

impl GroupStatus {
    /// Returns whether the node is a voter or a learner, by this node's log.
    pub fn has_member(&self, node: NodeId) -> bool {
        self.voters.contains_key(&node) || self.learners.contains_key(&node)
    }
}

/// Thresholds and rates. The defaults are for production; tests use smaller ones.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// A snapshot is due after this many applied entries ...
    pub snapshot_entries: u64,
    /// ... or after this many bytes of commands, or as many as the last snapshot has if that is more.
    pub snapshot_bytes: u64,
    /// Entries below the snapshot that stay in the log, for replicas that are slightly behind.
    pub keep_entries: u64,
    /// Bytes of segments that a group may hold back from purging; beyond that it makes a snapshot at once.
    pub max_log_behind: u64,
    /// Interval at which the thresholds are checked.
    pub check_every: Duration,
    /// Most bytes per second of all snapshots that this node sends; `None` for no limit.
    pub snapshot_rate: Option<u64>,
    /// Time that [`set_voters`](super::RaftGroups::set_voters) waits for a new voter to catch up.
    pub catch_up: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            snapshot_entries: 500_000,
            snapshot_bytes: 128 << 20,
            keep_entries: 2_000,
            max_log_behind: 256 << 20,
            check_every: Duration::from_secs(1),
            snapshot_rate: Some(64 << 20),
            catch_up: Duration::from_mins(10),
        }
    }
}

/// Called with a group and a reason when the group cannot continue. The process must end.
pub type Fatal = Arc<dyn Fn(GroupId, &str) + Send + Sync>;
