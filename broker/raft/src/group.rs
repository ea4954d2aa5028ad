//! One Raft group on this node: its engine, the queue of proposed commands, and its watched state.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use covey_supervise::Supervisor;
use covey_types::{GroupId, NodeId};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::{ReadPolicy, ServerState, SnapshotPolicy};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::driver::{Driver, Progress};
use super::log_store::LogStore;
use super::network::client::Factory;
use super::network::rate::Rate;
use super::raft::{Answer, Command, Raft, Written};
use super::snapshot::SnapshotStore;
use super::state_store::GroupStore;
use super::types::{Fatal, Leadership, ProposeError, ReadError, Response, StartError, StateMachine};
use covey_contract::config::Raft as Timing;

/// Most entries in one append request; their bytes are bounded by the log reader.
const MAX_ENTRIES: u64 = 1024;
/// Capacity of the queues of a group's core task.
const CORE_QUEUE: u64 = 4096;

/// A running group.
pub(super) struct Group {
    /// Id of the group.
    pub(super) id: GroupId,
    /// Handle of the engine.
    pub(super) raft: Raft,
    /// Applied rows.
    pub(super) store: Arc<GroupStore>,
    /// Snapshot files.
    pub(super) snapshots: Arc<SnapshotStore>,
    /// How far the group has applied.
    pub(super) progress: Arc<Progress>,
    /// Leader of the group, as known by this node.
    pub(super) leadership: watch::Receiver<Leadership>,
    /// Last term in which this node began to transfer its leadership. It accepts no commands in that term any more,
    /// even if the transfer fails.
    pub(super) resigned: watch::Sender<Option<u64>>,
    /// Queue of the task that proposes commands, in the order of submission.
    proposals: mpsc::UnboundedSender<Proposal>,
}

/// A command and the receiver of its result.
struct Proposal {
    command: Bytes,
    answer: oneshot::Sender<Written>,
}

/// What the groups of a node are started with.
pub(super) struct GroupParts {
    /// Options of the node.
    pub(super) context: Arc<NodeContext>,
    /// Configuration of openraft.
    pub(super) config: Arc<openraft::Config>,
    /// Limits the bytes per second of sent snapshots.
    pub(super) rate: Arc<Rate>,
    /// Tasks of the runtime.
    pub(super) tracker: TaskTracker,
    /// Watches them.
    pub(super) supervisor: Supervisor,
}

/// Options that the groups use while they run.
pub(super) struct NodeContext {
    /// Id of this node.
    pub(super) node: NodeId,
    /// Connections to the other nodes.
    pub(super) channels: Arc<dyn super::Channels>,
    /// Called if a group cannot continue.
    pub(super) fatal: Fatal,
    /// Cancelled when the runtime stops.
    pub(super) stop: CancellationToken,
    /// True from the beginning of `stop`: the end of an engine is then expected.
    pub(super) stopping: AtomicBool,
}

/// Returns openraft's configuration for the given timing. Snapshots and purging are left to the upkeep task, not to
/// openraft.
pub(super) fn config(timing: &Timing) -> Result<Arc<openraft::Config>, StartError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = openraft::Config {
        cluster_name: "covey".to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_min),
        election_timeout_max: millis(timing.election_max),
        enable_pre_vote: Some(true),
        // State is not fsynced, so a restarted leader has to win an election.
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        snapshot_policy: SnapshotPolicy::Never,
        // Nothing is purged when a snapshot is completed: the upkeep task decides.
        max_in_snapshot_log_to_keep: u64::MAX,
        install_snapshot_timeout: millis(Duration::from_mins(10)),
        max_payload_entries: MAX_ENTRIES,
        api_channel_size: Some(CORE_QUEUE),
        notification_channel_size: Some(CORE_QUEUE),
        ..openraft::Config::default()
    };
    config.validate().map(Arc::new).map_err(|error| StartError::Timing(error.to_string()))
}

impl Group {
    /// Opens the group's state and starts its engine.
    pub(super) async fn start(
        parts: &GroupParts,
        id: GroupId,
        machine: Box<dyn StateMachine>,
        store: GroupStore,
        snapshots: SnapshotStore,
        log: LogStore,
    ) -> Result<Self, StartError> {
        let failed = |reason: String| StartError::Group { group: id, reason };
        let (store, snapshots) = (Arc::new(store), Arc::new(snapshots));
        let fatal = Arc::clone(&parts.context.fatal);
        let opened = Driver::open(id, machine, Arc::clone(&store), Arc::clone(&snapshots), log.clone(), fatal);
        let (driver, progress) = opened.map_err(|error| failed(chain(&error)))?;
        let factory = Factory {
            node: parts.context.node,
            group: id,
            channels: Arc::clone(&parts.context.channels),
            snapshots: Arc::clone(&snapshots),
            rate: Arc::clone(&parts.rate),
        };
        let raft = Raft::new(parts.context.node, Arc::clone(&parts.config), factory, log, driver);
        let raft = raft.await.map_err(|error| failed(error.to_string()))?;
        let (proposals, queue) = mpsc::unbounded_channel();
        let resigned = watch::Sender::new(None);
        let (leadership_sender, leadership) = watch::channel(Leadership::default());
        // Both may end before the node stops, together with their engine.
        let (supervisor, never) = (&parts.supervisor, CancellationToken::new());
        let propose = propose_in_order(raft.clone(), queue);
        parts.tracker.spawn(supervisor.clone().ending("proposals", never.clone(), propose));
        let watch = watch_leadership(
            id,
            raft.clone(),
            Arc::clone(&progress),
            resigned.subscribe(),
            leadership_sender,
            Arc::clone(&parts.context),
        );
        parts.tracker.spawn(supervisor.clone().ending("leadership", never, watch));
        Ok(Self { id, raft, store, snapshots, progress, leadership, resigned, proposals })
    }

    /// Queues a command at once; the future resolves to its result.
    pub(super) fn propose(
        &self,
        command: Bytes,
    ) -> impl Future<Output = Result<Response, ProposeError>> + Send + 'static + use<> {
        let (answer, receiver) = oneshot::channel();
        let taken = self.proposals.send(Proposal { command, answer }).is_ok();
        async move {
            if !taken {
                return Err(ProposeError::Stopped);
            }
            match receiver.await {
                Ok(Ok(written)) => Ok(Response { index: written.log_id.index, bytes: written.data }),
                Ok(Err(ClientWriteError::ForwardToLeader(forward))) => Err(ProposeError::NotLeader(forward.leader_id)),
                // The entry was removed from this node's log, or the engine stopped: a majority may have stored it
                // before.
                Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
            }
        }
    }

    /// Returns the read index after a new round of confirmations.
    pub(super) async fn read_index(&self) -> Result<u64, ReadError> {
        match self.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _applied)) => Ok(read.index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(ReadError::NotLeader(forward.leader_id))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ReadError::NoQuorum),
            Err(RaftError::Fatal(_)) => Err(ReadError::Stopped),
        }
    }
}

/// Formats an error with its sources in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Proposes commands one after the other.
async fn propose_in_order(raft: Raft, mut queue: mpsc::UnboundedReceiver<Proposal>) {
    while let Some(Proposal { command, answer }) = queue.recv().await {
        if raft.write(Command(command)).responder(Answer(answer)).await.is_err() {
            // Queued commands were never submitted, but for their callers their fate is unknown.
            return;
        }
    }
}

/// Publishes the leader, and calls `fatal` if the engine ends by itself.
async fn watch_leadership(
    group: GroupId,
    raft: Raft,
    progress: Arc<Progress>,
    mut resigned: watch::Receiver<Option<u64>>,
    sender: watch::Sender<Leadership>,
    shared: Arc<NodeContext>,
) {
    let mut server = raft.server_metrics();
    let mut applied_leader = progress.leader.subscribe();
    loop {
        let current = {
            let server = server.borrow_watched();
            let leader_id = server.vote.leader_id;
            // An applied entry of this leader in this term: its state machine has everything before it.
            let ready = server.state == ServerState::Leader && *applied_leader.borrow_and_update() == Some(leader_id);
            Leadership {
                term: leader_id.term,
                leader: server.current_leader,
                ours: ready && *resigned.borrow_and_update() != Some(leader_id.term),
            }
        };
        sender.send_if_modified(|last| std::mem::replace(last, current) != current);
        let alive = tokio::select! {
            changed = server.changed() => changed.is_ok(),
            changed = applied_leader.changed() => changed.is_ok(),
            changed = resigned.changed() => changed.is_ok(),
            () = shared.stop.cancelled() => false,
        };
        if !alive {
            break;
        }
    }
    sender.send_modify(|last| *last = Leadership { term: last.term, leader: None, ours: false });
    if !shared.stopping.load(Ordering::Relaxed) && !shared.stop.is_cancelled() {
        let state = raft.metrics().borrow_watched().running_state.clone();
        let reason = state.err().map_or_else(|| "the Raft engine ended".to_owned(), |error| chain(&error));
        tracing::error!(%group, reason, "a group cannot continue; the process ends");
        (shared.fatal)(group, &reason);
    }
}
