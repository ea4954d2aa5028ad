//! The words of the cluster runtime: who takes part, which groups there are, what a group drives, how it fails.
//!
//! Everything that runs on Raft speaks these types and never openraft's, so that the engine can be replaced.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;

/// Identity of a disk that takes part; a node that returns with an empty disk gets a new one.
pub type NodeId = u64;

/// One of the Raft groups of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupId(pub u16);

impl GroupId {
    /// Members, placement, routes, bans.
    pub const META: Self = Self(0);
    /// Retained messages.
    pub const RETAINED: Self = Self(1);

    /// The group of a shard.
    pub const fn shard(index: u16) -> Self {
        Self(index.saturating_add(2))
    }

    /// The shard that the group is, if it is one.
    pub const fn shard_index(self) -> Option<u16> {
        self.0.checked_sub(2)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::META => f.write_str("meta"),
            Self::RETAINED => f.write_str("retained"),
            Self(other) => write!(f, "shard/{}", other.saturating_sub(2)),
        }
    }
}

/// What a group's membership knows of a node: the ordinal, from which its address is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member {
    pub ordinal: u32,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ordinal {}", self.ordinal)
    }
}

/// What a connection to a peer carries: each has one of its own, so that none waits behind another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Votes, heartbeats, log entries.
    Raft,
    /// Forwarded commands, reads, messages, leases.
    Data,
    Snapshot,
}

/// Why no connection to a peer could be made.
pub type ChannelError = Box<dyn std::error::Error + Send + Sync>;

/// Connections to the other nodes; the pool behind it authenticates the peer before it hands one out.
pub trait Channels: Send + Sync + 'static {
    /// A connection to the node; cheap when one is there.
    fn channel(&self, node: NodeId, ordinal: u32, purpose: Purpose) -> BoxFuture<'_, Result<Channel, ChannelError>>;
}

/// A deterministic state machine that one group drives; it does no I/O of its own.
pub trait Machine: Send + 'static {
    /// Applies one committed command: same commands, same state, same rows, same answer. The rows are stored in one
    /// batch with the applied index.
    ///
    /// # Errors
    /// The command cannot be read. Fatal: a replica that skipped it would lead with a hole in its state, and the group
    /// keeps its majority without this one.
    fn apply(&mut self, index: u64, command: &Bytes, rows: &mut Rows) -> Result<Bytes, StoreError>;

    /// One or more applies are in the state store: their effects may leave now.
    fn written(&mut self);

    /// Forgets everything and rebuilds from the rows, in key order: at start and after a snapshot was installed.
    fn load(
        &mut self,
        applied: u64,
        rows: &mut dyn Iterator<Item = Result<(Bytes, Bytes), StoreError>>,
    ) -> Result<(), StoreError>;
}

/// The changes of rows that one or more applies make, the last one of a key winning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    changes: BTreeMap<Vec<u8>, Option<Bytes>>,
    bytes: usize,
}

impl Rows {
    /// No changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Inserts or replaces a row.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Bytes>) {
        let (key, value) = (key.into(), value.into());
        self.bytes = self.bytes.saturating_add(key.len()).saturating_add(value.len());
        self.changes.insert(key, Some(value));
    }

    /// Removes a row, if it is there.
    pub fn delete(&mut self, key: impl Into<Vec<u8>>) {
        let key = key.into();
        self.bytes = self.bytes.saturating_add(key.len());
        self.changes.insert(key, None);
    }

    /// The changes in key order; `None` is a removal.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&Bytes>)> {
        self.changes.iter().map(|(key, value)| (key.as_slice(), value.as_ref()))
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Bytes handed in so far, an upper bound of the batch.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the changes out.
    pub(super) fn take(&mut self) -> BTreeMap<Vec<u8>, Option<Bytes>> {
        self.bytes = 0;
        std::mem::take(&mut self.changes)
    }
}

/// The state store or a snapshot could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("failed to use the state store")]
    Store(#[from] fjall::Error),
    #[error("failed to {action} {path}")]
    File { action: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error("a checksum of {path} does not match")]
    Damaged { path: std::path::PathBuf },
    #[error("failed to decode a row or an entry: {0}")]
    Decode(Box<dyn std::error::Error + Send + Sync>),
    #[error("the snapshot needs format {found}, this build reads up to {known}")]
    Newer { found: u32, known: u32 },
}

impl StoreError {
    /// The state's journal ends in a batch that is not whole. Batches are not fsynced, so a power cut can leave one whose end
    /// reached the disk and whose middle did not. Snapshot and log have all that it had.
    pub(super) fn is_torn(&self) -> bool {
        matches!(self, Self::Store(fjall::Error::JournalRecovery(_) | fjall::Error::Unrecoverable))
    }
}

/// What a command was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Log index of the command.
    pub index: u64,
    /// What [`Machine::apply`] returned.
    pub bytes: Bytes,
}

/// Why a command has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The command was not taken; the node that may lead is named where one is known.
    #[error("this node does not lead the group (leader: {0:?})")]
    NotLeader(Option<NodeId>),
    /// Nobody can say whether the command was or will be committed: retry with deduplication.
    #[error("whether the command was committed is unknown")]
    Unknown,
    /// This node stops, or does not run the group. The command was not taken.
    #[error("the group does not run on this node")]
    Stopped,
}

/// Why a read index could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Another node may lead.
    #[error("this node does not lead the group (leader: {0:?})")]
    NotLeader(Option<NodeId>),
    /// No majority confirmed the leadership in time, or the leader was not reached.
    #[error("no majority confirmed the leader in time")]
    NoQuorum,
    /// This node stops, or does not run the group.
    #[error("the group does not run on this node")]
    Stopped,
}

/// Why a group's members or leader could not be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("this node does not lead the group (leader: {0:?})")]
    NotLeader(Option<NodeId>),
    /// Another change runs.
    #[error("another membership change runs")]
    InProgress,
    /// The node is not a voter with all entries: a transfer would leave the group without a leader.
    #[error("node {0} has not all entries of the group")]
    Behind(NodeId),
    /// The node lacks entries after the time that was given.
    #[error("node {0} did not catch up in time")]
    Timeout(NodeId),
    /// The handover did not land in time.
    #[error("node {0} did not take the leadership in time")]
    NotTaken(NodeId),
    #[error("the membership change was refused: {0}")]
    Refused(String),
    #[error("the group does not run on this node")]
    Stopped,
}

/// Why a cluster could not be formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitializeError {
    #[error("this node is not among the members")]
    NotListed,
    #[error("group {group} refused to be formed: {reason}")]
    Refused { group: GroupId, reason: String },
    #[error("the group does not run on this node")]
    Stopped,
}

/// Why the runtime could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("failed to open the state store in {path}")]
    Open { path: std::path::PathBuf, source: StoreError },
    #[error("failed to start group {group}: {reason}")]
    Group { group: GroupId, reason: String },
    #[error("the Raft timing is not usable: {0}")]
    Timing(String),
}

/// Who leads a group, as this node knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Raft term. Unique per leader only together with `leader`.
    pub term: u64,
    pub leader: Option<NodeId>,
    /// This node leads, has applied everything that earlier leaders committed, and takes commands.
    pub ours: bool,
}

/// A group as this node sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupStatus {
    pub term: u64,
    pub leader: Option<NodeId>,
    /// Index up to which a majority has the log.
    pub commit: u64,
    pub applied: u64,
    /// Index of the last entry of this node's log.
    pub last: u64,
    /// Index that the newest snapshot covers; 0 without one.
    pub snapshot: u64,
    /// Index up to which the log was removed; 0 when whole.
    pub purged: u64,
    pub voters: BTreeMap<NodeId, Member>,
    pub learners: BTreeMap<NodeId, Member>,
    /// A joint change is under way.
    pub joint: bool,
    /// On the leader: entries that each other replica has not acknowledged; `None` where it never answered.
    pub lag: BTreeMap<NodeId, Option<u64>>,
}

impl GroupStatus {
    /// Whether this node's log lists the node as a voter or a learner of the group.
    pub fn has_member(&self, node: NodeId) -> bool {
        self.voters.contains_key(&node) || self.learners.contains_key(&node)
    }
}

/// Sizes and rates; the defaults are for production, tests make them tiny.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// A snapshot is made after this many applied entries ...
    pub snapshot_entries: u64,
    /// ... or this many bytes of log, or the size of the last snapshot where that is more.
    pub snapshot_bytes: u64,
    /// Entries kept below the snapshot for replicas that are a little behind.
    pub keep_entries: u64,
    /// A group that holds log further behind than this makes a snapshot.
    pub max_log_behind: u64,
    /// How often the thresholds are looked at.
    pub check_every: Duration,
    /// Bytes per second of all outgoing snapshots of this node; `None` without limit.
    pub snapshot_rate: Option<u64>,
    /// How long [`set_voters`](super::Cluster::set_voters) waits for a learner.
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

/// Told once that a group can go on no more; the process must end.
pub type Fatal = Arc<dyn Fn(GroupId, &str) + Send + Sync>;
