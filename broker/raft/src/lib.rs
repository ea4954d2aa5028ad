//! The cluster runtime: all Raft groups of a node over one log and one state store.
//!
//! The node starts it with a [`Machine`] per group, hands it the peers' requests and submits commands; only this module
//! names openraft. Invariant: what it answers to a command is what a majority has on fsynced disks.
//!
//! ```text
//!  propose ─► queue ─► openraft ─► segment log, fsync ─► commit ─► Machine::apply ─► one batch ─► written, answer
//!                         │  ▲                                          │
//!                         ▼  │ gRPC: Raft, Append, Snapshot             └─► snapshot ─► purge of the log
//!                        peers
//! ```
//!
//! This crate owns the Raft groups, their state store and their snapshots. It does not know what the commands mean (a
//! [`Machine`] does), how a node is reached ([`Channels`]), or how the log is laid out on the disk (`covey-log`). Start
//! reading at [`Cluster`].

mod group;
mod log_store;
mod machine;
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
use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use group::{Group, Node, Shared};
use log_store::LogStore;
use network::rate::Rate;
use snapshot::Shelf;
use state_store::StateStore;

pub use network::MAX_MESSAGE;
pub use state_store::{RowIter, RowReader};
pub use types::{
    ChangeError, ChannelError, Channels, Fatal, GroupId, GroupStatus, InitializeError, Leadership, Machine, Member,
    NodeId, ProposeError, Purpose, ReadError, Response, Rows, StartError, StoreError, Tuning,
};

/// How long [`Cluster::stop`] waits for the last user of the state store.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// What the runtime is started with.
pub struct Options {
    pub node: NodeId,
    /// Directory of `state` and `snapshots`; the log has its own.
    pub dir: PathBuf,
    pub log: Log,
    pub timing: Timing,
    pub tuning: Tuning,
    pub channels: Arc<dyn Channels>,
    /// The groups of this node.
    pub machines: Vec<(GroupId, Box<dyn Machine>)>,
    pub fatal: Fatal,
    pub supervisor: Supervisor,
    /// Cancelled when the node stops: no group answers any more.
    pub shutdown: CancellationToken,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("node", &self.node).field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// A cheap handle on the runtime.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    timing: Timing,
    tuning: Tuning,
    groups: RwLock<BTreeMap<GroupId, Arc<Group>>>,
    tracker: TaskTracker,
    /// Yields `None` when the state store is closed.
    closed: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("node", &self.inner.shared.node).finish_non_exhaustive()
    }
}

fn open(dir: &Path, alive: mpsc::Sender<()>) -> Result<StateStore, StoreError> {
    let snapshots = dir.join("snapshots");
    let failed = |source| StoreError::File { action: "create", path: snapshots.clone(), source };
    std::fs::create_dir_all(&snapshots).map_err(failed)?;
    let state = dir.join("state");
    match StateStore::open(&state, alive.clone()) {
        Err(error) if error.is_torn() => {
            let aside = dir.join("state.torn");
            tracing::warn!(%error, aside = %aside.display(), "the state is torn, as by a power cut: it is made anew from snapshot and log");
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

/// What was moved aside before makes room.
fn move_aside(from: &Path, to: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::rename(from, to)
}

impl Cluster {
    /// Opens state and snapshots, applies what the log has above them and starts every group.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let Options { node, dir, log, timing, tuning, channels, machines, fatal, supervisor, shutdown } = options;
        let stop = shutdown.child_token();
        let shared = Shared { node, channels, fatal, stop: stop.clone(), stopping: AtomicBool::new(false) };
        let shared = Arc::new(shared);
        let tracker = TaskTracker::new();
        let node = Node {
            options: Arc::clone(&shared),
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
            let shelf = Shelf::open(&dir.join("snapshots"), id).map_err(failed)?;
            let state = store.group(id).map_err(failed)?;
            let log = LogStore::new(log.clone(), id.0);
            groups.insert(id, Arc::new(Group::start(&node, id, machine, state, shelf, log).await?));
        }
        let upkeep = upkeep::run(groups.values().cloned().collect(), log, tuning.clone(), stop.clone());
        tracker.spawn(supervisor.lasting("log upkeep", stop, upkeep));
        let closed = tokio::sync::Mutex::new(closed);
        let inner = Inner { shared, timing, tuning, groups: RwLock::new(groups), tracker, closed };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Ends every group and waits until the state store is closed. The log stays open: it is the caller's.
    pub async fn stop(&self) {
        self.inner.shared.stopping.store(true, Ordering::Relaxed);
        self.inner.shared.stop.cancel();
        let groups = std::mem::take(&mut *self.inner.groups.write());
        for group in groups.values() {
            if let Err(error) = group.raft.shutdown().await {
                tracing::warn!(group = %group.id, %error, "a group did not end well");
            }
        }
        drop(groups);
        self.inner.tracker.close();
        self.inner.tracker.wait().await;
        let mut closed = self.inner.closed.lock().await;
        if tokio::time::timeout(CLOSE_WAIT, closed.recv()).await.is_err() {
            tracing::warn!("the state store is still in use");
        }
    }

    /// The id of this node.
    pub fn node(&self) -> NodeId {
        self.inner.shared.node
    }

    /// The groups of this node.
    pub fn groups(&self) -> Vec<GroupId> {
        self.inner.groups.read().keys().copied().collect()
    }

    fn group(&self, id: GroupId) -> Option<Arc<Group>> {
        self.inner.groups.read().get(&id).cloned()
    }

    /// Forms every group with these voters; idempotent, called on every listed node with the same members.
    pub async fn initialize(&self, members: &BTreeMap<NodeId, Member>) -> Result<(), InitializeError> {
        if !members.contains_key(&self.node()) {
            return Err(InitializeError::NotListed);
        }
        for id in self.groups() {
            self.group(id).ok_or(InitializeError::Stopped)?.initialize(members).await?;
        }
        Ok(())
    }

    /// Whether the group has members: it was formed here, or its leader reached this node.
    pub async fn is_initialized(&self, group: GroupId) -> bool {
        match self.group(group) {
            Some(group) => group.raft.is_initialized().await.unwrap_or(false),
            None => false,
        }
    }

    /// Submits a command, at this call and in the order of calls, where this node leads. The future may be dropped;
    /// the command stays.
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

    /// Confirms, by a round begun after the call, that this node leads; gives the index that a reader must have
    /// applied.
    pub async fn read_index(&self, group: GroupId) -> Result<u64, ReadError> {
        self.group(group).ok_or(ReadError::Stopped)?.read_index().await
    }

    /// Waits until this node has applied the index; false when the group stops first.
    pub async fn await_applied(&self, group: GroupId, index: u64) -> bool {
        let stop = self.inner.shared.stop.clone();
        let mut applied = self.applied(group);
        tokio::select! {
            applied = applied.wait_for(|applied| *applied >= index) => applied.is_ok(),
            () = stop.cancelled() => false,
        }
    }

    /// Who leads the group, as it changes; a group that does not run here has no leader.
    pub fn leadership(&self, group: GroupId) -> watch::Receiver<Leadership> {
        let closed = || watch::channel(Leadership::default()).1;
        self.group(group).map_or_else(closed, |group| group.leadership.clone())
    }

    /// The index that this node has applied, as it grows.
    pub fn applied(&self, group: GroupId) -> watch::Receiver<u64> {
        self.group(group).map_or_else(|| watch::channel(0).1, |group| group.progress.applied.subscribe())
    }

    /// The group as this node sees it; empty where it does not run.
    pub fn status(&self, group: GroupId) -> GroupStatus {
        self.group(group).map(|group| group.status()).unwrap_or_default()
    }

    /// Hands the leadership to a voter that has every entry; returns when it took it. Leader only.
    pub async fn transfer_leader(&self, group: GroupId, to: NodeId) -> Result<(), ChangeError> {
        let group = self.group(group).ok_or(ChangeError::Stopped)?;
        group.transfer_leader(to, self.inner.timing.election_max).await
    }

    /// Makes these the members of the group: adds learners, waits until the new voters caught up, then one joint
    /// change; nodes that are in neither go. Leader only; may be repeated until it succeeds.
    pub async fn set_voters(
        &self,
        group: GroupId,
        voters: BTreeMap<NodeId, Member>,
        learners: BTreeMap<NodeId, Member>,
    ) -> Result<(), ChangeError> {
        let group = self.group(group).ok_or(ChangeError::Stopped)?;
        group.set_voters(voters, learners, self.inner.tuning.catch_up).await
    }

    /// Reads the group's rows; `None` where it does not run. Holding it keeps the state store open.
    pub fn rows(&self, group: GroupId) -> Option<RowReader> {
        self.group(group).map(|group| RowReader::new(Arc::clone(&group.store)))
    }
}
