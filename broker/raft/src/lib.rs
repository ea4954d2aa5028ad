//! All Raft groups of a node over one log and one state store.
//!
//! The node starts it with a [`StateMachine`] per group, passes the requests of peers to it and proposes commands. Only
//! this crate uses openraft. Invariant: a command is answered after a majority has its entry on fsynced disks.
//!
//! ```text
//!  propose ─► queue ─► openraft ─► segment log, fsync ─► commit ─► StateMachine::apply ─► one batch ─► written, answer
//!                         │  ▲                                          │
//!                         ▼  │ gRPC: Raft, Append, Snapshot             └─► snapshot ─► purge of the log
//!                        peers
//! ```
//!
//! This crate owns the Raft groups, their state store and their snapshots. It does not know what the commands mean (a
//! [`StateMachine`] does), how a node is reached ([`Channels`]), or how the log is laid out on the disk (`covey-log`). Start
//! reading at [`RaftGroups`].

mod driver;
#[cfg(test)]
mod format;
mod group;
mod log_store;
mod membership;
mod network;
mod raft;
mod serve;
mod snapshot;
mod state_store;
mod status;
mod types;
mod upkeep;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use covey_contract::config::Raft as Timing;
use covey_log::segment::Log;
use covey_supervise::Supervisor;
use covey_types::{GroupId, NodeId};
use futures::future::BoxFuture;
use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use group::{Group, GroupParts, NodeContext};
use log_store::LogStore;
use network::rate::Rate;
use snapshot::SnapshotStore;
use state_store::StateStore;

pub use network::MAX_MESSAGE;
pub use state_store::{RowIter, RowReader};
pub use types::{
    ChangeError, ChannelError, Channels, Fatal, GroupStatus, InitializeError, Leadership, Member, ProposeError,
    Purpose, ReadError, Response, Rows, StartError, StateMachine, StoreError, Tuning,
};

/// Time that [`RaftGroups::stop`] waits for the last user of the state store.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// Options of the runtime.
pub struct Options {
    /// Id of this node.
    pub node: NodeId,
    /// Directory of `state` and `snapshots`; the log has its own.
    pub dir: PathBuf,
    /// The node's log, which is shared by all groups.
    pub log: Log,
    /// Heartbeat interval and election timeouts.
    pub timing: Timing,
    /// Thresholds of snapshots and of the log.
    pub tuning: Tuning,
    /// Connections to the other nodes.
    pub channels: Arc<dyn Channels>,
    /// The groups of this node, each with its state machine.
    pub machines: Vec<(GroupId, Box<dyn StateMachine>)>,
    /// Called if a group cannot continue.
    pub fatal: Fatal,
    /// Watches the tasks of the runtime.
    pub supervisor: Supervisor,
    /// Cancelled when the node stops; the groups then stop answering.
    pub shutdown: CancellationToken,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("node", &self.node).field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// A handle to the runtime, cheap to clone.
#[derive(Clone)]
pub struct RaftGroups {
    inner: Arc<Inner>,
}

/// State of the runtime.
struct Inner {
    /// What the groups use, too.
    shared: Arc<NodeContext>,
    /// Heartbeat interval and election timeouts.
    timing: Timing,
    /// Thresholds of snapshots and of the log.
    tuning: Tuning,
    /// Running groups; empty after `stop`.
    groups: RwLock<BTreeMap<GroupId, Arc<Group>>>,
    /// Tasks of the runtime.
    tracker: TaskTracker,
    /// Returns `None` when the last handle of the state store is dropped.
    closed: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

impl fmt::Debug for RaftGroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftGroups").field("node", &self.inner.shared.node).finish_non_exhaustive()
    }
}

/// Opens the state store. A torn one is moved aside and replaced by an empty one, which is restored from snapshot and
/// log.
fn open(dir: &Path, alive: mpsc::Sender<()>) -> Result<StateStore, StoreError> {
    let snapshots = dir.join("snapshots");
    let failed = |source| StoreError::File { action: "create", path: snapshots.clone(), source };
    std::fs::create_dir_all(&snapshots).map_err(failed)?;
    let state = dir.join("state");
    match StateStore::open(&state, alive.clone()) {
        Err(error) if error.is_torn() => {
            let aside = dir.join("state.torn");
            tracing::warn!(%error, aside = %aside.display(), "state store torn, as after a power cut; restoring it");
            move_aside(&state, &aside).map_err(|source| StoreError::File {
                action: "move aside",
                path: state.clone(),
                source,
            })?;
            StateStore::open(&state, alive)
        }
        opened => opened,
    }
}

/// Renames `from` to `to`; an older `to` is removed.
fn move_aside(from: &Path, to: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::rename(from, to)
}

impl RaftGroups {
    /// Opens state and snapshots, applies the log above them and starts every group.
    ///
    /// # Errors
    /// Returns [`StartError`] if the timing is invalid, the state store cannot be opened, or a group cannot be
    /// started.
    pub fn start(options: Options) -> BoxFuture<'static, Result<Self, StartError>> {
        Box::pin(async move {
            let Options { node, dir, log, timing, tuning, channels, machines, fatal, supervisor, shutdown } = options;
            let stop = shutdown.child_token();
            let shared = NodeContext { node, channels, fatal, stop: stop.clone(), stopping: AtomicBool::new(false) };
            let shared = Arc::new(shared);
            let tracker = TaskTracker::new();
            let parts = GroupParts {
                context: Arc::clone(&shared),
                config: group::config(&timing)?,
                rate: Arc::new(Rate::new(tuning.snapshot_rate)),
                tracker: tracker.clone(),
                supervisor: supervisor.clone(),
            };
            let (alive, closed) = mpsc::channel(1);
            let failed = |source| StartError::Open { path: dir.clone(), source };
            let store = open(&dir, alive).map_err(failed)?;
            let mut groups = BTreeMap::new();
            for (id, machine) in machines {
                let snapshots = SnapshotStore::open(&dir.join("snapshots"), id).map_err(failed)?;
                let state = store.group(id).map_err(failed)?;
                let log = LogStore::new(log.clone(), id.get());
                groups.insert(id, Arc::new(Group::start(&parts, id, machine, state, snapshots, log).await?));
            }
            let upkeep = upkeep::run(groups.values().cloned().collect(), log, tuning.clone(), stop.clone());
            tracker.spawn(supervisor.lasting("log upkeep", stop, upkeep));
            let closed = tokio::sync::Mutex::new(closed);
            let inner = Inner { shared, timing, tuning, groups: RwLock::new(groups), tracker, closed };
            Ok(Self { inner: Arc::new(inner) })
        })
    }

    /// Stops every group and waits until the state store is closed, at most 10 seconds. The log stays open; the
    /// caller closes it.
    pub fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.inner.shared.stopping.store(true, Ordering::Relaxed);
            self.inner.shared.stop.cancel();
            let groups = std::mem::take(&mut *self.inner.groups.write());
            for group in groups.values() {
                if let Err(error) = group.raft.shutdown().await {
                    tracing::warn!(group = %group.id, %error, "failed to stop a group");
                }
            }
            drop(groups);
            self.inner.tracker.close();
            self.inner.tracker.wait().await;
            let mut closed = self.inner.closed.lock().await;
            if tokio::time::timeout(CLOSE_WAIT, closed.recv()).await.is_err() {
                tracing::warn!("the state store is still in use; stopping without closing it");
            }
        })
    }

    /// Returns the id of this node.
    pub fn node(&self) -> NodeId {
        self.inner.shared.node
    }

    /// Returns the groups that run on this node.
    pub fn groups(&self) -> Vec<GroupId> {
        self.inner.groups.read().keys().copied().collect()
    }

    fn group(&self, id: GroupId) -> Option<Arc<Group>> {
        self.inner.groups.read().get(&id).cloned()
    }

    /// Forms every group with these voters. Called on every listed node with the same members; a group that has
    /// members is left as it is.
    ///
    /// # Errors
    /// Returns [`InitializeError`] if this node is not listed, or a group does not run or refuses.
    pub fn initialize<'a>(
        &'a self,
        members: &'a BTreeMap<NodeId, Member>,
    ) -> BoxFuture<'a, Result<(), InitializeError>> {
        Box::pin(async move {
            if !members.contains_key(&self.node()) {
                return Err(InitializeError::NotListed);
            }
            for id in self.groups() {
                self.group(id).ok_or(InitializeError::Stopped)?.initialize(members).await?;
            }
            Ok(())
        })
    }

    /// Returns whether the group has members: it was formed here, or its leader has sent entries to this node.
    pub fn is_initialized(&self, group: GroupId) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            match self.group(group) {
                Some(group) => group.raft.is_initialized().await.unwrap_or(false),
                None => false,
            }
        })
    }

    /// Proposes a command to the group on this node. Commands are submitted at the time of the call, in the order of
    /// calls; dropping the future does not withdraw the command.
    ///
    /// # Errors
    /// Resolves to [`ProposeError`] if this node does not lead, or the fate of the command is unknown.
    pub fn propose(
        &self,
        group: GroupId,
        command: Bytes,
    ) -> impl Future<Output = Result<Response, ProposeError>> + Send + 'static + use<> {
        let proposal = self.group(group).map(|group| group.propose(command));
        async move {
            match proposal {
                Some(proposal) => proposal.await,
                None => Err(ProposeError::Stopped),
            }
        }
    }

    /// Returns the index that a linearizable read must have applied, after a majority has confirmed that this node
    /// leads (ReadIndex, Raft dissertation, section 6.4). The confirmation is by messages sent after this call.
    ///
    /// # Errors
    /// Returns [`ReadError`] if this node does not lead or no majority confirmed it.
    pub fn read_index(&self, group: GroupId) -> BoxFuture<'_, Result<u64, ReadError>> {
        Box::pin(async move { self.group(group).ok_or(ReadError::Stopped)?.read_index().await })
    }

    /// Waits until this node has applied the index. Returns `false` if the group stops first.
    pub async fn await_applied(&self, group: GroupId, index: u64) -> bool {
        let stop = self.inner.shared.stop.clone();
        let mut applied = self.applied(group);
        tokio::select! {
            applied = applied.wait_for(|applied| *applied >= index) => applied.is_ok(),
            () = stop.cancelled() => false,
        }
    }

    /// Watches the leader of the group. A group that does not run here has none.
    pub fn leadership(&self, group: GroupId) -> watch::Receiver<Leadership> {
        let closed = || watch::channel(Leadership::default()).1;
        self.group(group).map_or_else(closed, |group| group.leadership.clone())
    }

    /// Watches the index that this node has applied.
    pub fn applied(&self, group: GroupId) -> watch::Receiver<u64> {
        self.group(group).map_or_else(|| watch::channel(0).1, |group| group.progress.applied.subscribe())
    }

    /// Returns the state of the group on this node; the default if it does not run here.
    pub fn status(&self, group: GroupId) -> GroupStatus {
        self.group(group).map(|group| group.status()).unwrap_or_default()
    }

    /// Transfers the leadership to a voter that has every entry, and returns when it leads. Only on the leader.
    ///
    /// # Errors
    /// Returns [`ChangeError`] if this node does not lead, or the voter lacks entries or did not take over in time.
    pub fn transfer_leader(&self, group: GroupId, to: NodeId) -> BoxFuture<'_, Result<(), ChangeError>> {
        Box::pin(async move {
            let group = self.group(group).ok_or(ChangeError::Stopped)?;
            group.transfer_leader(to, self.inner.timing.election_max).await
        })
    }

    /// Changes the members of the group: adds learners, waits until the new voters have caught up, changes the voters
    /// in one joint change, and removes all other nodes. Only on the leader; may be repeated until it succeeds.
    ///
    /// # Errors
    /// Returns [`ChangeError`] if this node does not lead, another change runs, or a new voter did not catch up in
    /// time.
    pub fn set_voters(
        &self,
        group: GroupId,
        voters: BTreeMap<NodeId, Member>,
        learners: BTreeMap<NodeId, Member>,
    ) -> BoxFuture<'_, Result<(), ChangeError>> {
        Box::pin(async move {
            let group = self.group(group).ok_or(ChangeError::Stopped)?;
            group.set_voters(voters, learners, self.inner.tuning.catch_up).await
        })
    }

    /// Returns a reader of the group's rows; `None` if the group does not run here. The state store stays open while a
    /// reader exists.
    pub fn rows(&self, group: GroupId) -> Option<RowReader> {
        self.group(group).map(|group| RowReader::new(Arc::clone(&group.store)))
    }
}
