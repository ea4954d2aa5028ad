//! One Raft group on this node: its engine, the queue of commands in order of submission, and what may be watched.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use covey_supervise::Supervisor;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::{ReadPolicy, ServerState, SnapshotPolicy};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::log_store::LogStore;
use super::machine::{Progress, StateMachine};
use super::network::client::Factory;
use super::network::rate::Rate;
use super::raft::{Answer, Command, Raft, Written};
use super::snapshot::Shelf;
use super::state_store::GroupStore;
use super::types::{Fatal, GroupId, Leadership, Machine, ProposeError, ReadError, Response, StartError};
use covey_contract::config::Raft as Timing;

/// Entries in one request to append, at most; their bytes are bounded by the log reader.
const MAX_ENTRIES: u64 = 1024;
/// Messages that may wait for a group's core.
const CORE_QUEUE: u64 = 4096;

/// Everything of one group that the runtime holds.
pub(super) struct Group {
    pub(super) id: GroupId,
    pub(super) raft: Raft,
    pub(super) store: Arc<GroupStore>,
    pub(super) shelf: Arc<Shelf>,
    pub(super) progress: Arc<Progress>,
    pub(super) leadership: watch::Receiver<Leadership>,
    /// The last term in which this node began to hand its leadership over: it takes no commands any more in that term,
    /// also where the handover fails.
    pub(super) resigned: watch::Sender<Option<u64>>,
    proposals: mpsc::UnboundedSender<Proposal>,
}

struct Proposal {
    command: Bytes,
    answer: oneshot::Sender<Written>,
}

/// What the groups of a node share.
pub(super) struct Node {
    pub(super) options: Arc<Shared>,
    pub(super) config: Arc<openraft::Config>,
    pub(super) rate: Arc<Rate>,
    pub(super) tracker: TaskTracker,
    pub(super) supervisor: Supervisor,
}

/// The parts of [`Options`](super::Options) that live on.
pub(super) struct Shared {
    pub(super) node: u64,
    pub(super) channels: Arc<dyn super::Channels>,
    pub(super) fatal: Fatal,
    pub(super) stop: CancellationToken,
    pub(super) stopping: AtomicBool,
}

/// openraft's configuration for the given timing; every default that raft.md warns of is set.
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
        // Nothing is purged when a snapshot is done: the upkeep decides.
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
        node: &Node,
        id: GroupId,
        machine: Box<dyn Machine>,
        store: GroupStore,
        shelf: Shelf,
        log: LogStore,
    ) -> Result<Self, StartError> {
        let failed = |reason: String| StartError::Group { group: id, reason };
        let (store, shelf) = (Arc::new(store), Arc::new(shelf));
        let fatal = Arc::clone(&node.options.fatal);
        let opened = StateMachine::open(id, machine, Arc::clone(&store), Arc::clone(&shelf), log.clone(), fatal);
        let (machine, progress) = opened.map_err(|error| failed(chain(&error)))?;
        let factory = Factory {
            node: node.options.node,
            group: id,
            channels: Arc::clone(&node.options.channels),
            shelf: Arc::clone(&shelf),
            rate: Arc::clone(&node.rate),
        };
        let raft = Raft::new(node.options.node, Arc::clone(&node.config), factory, log, machine);
        let raft = raft.await.map_err(|error| failed(error.to_string()))?;
        let (proposals, queue) = mpsc::unbounded_channel();
        let resigned = watch::Sender::new(None);
        let (leadership_sender, leadership) = watch::channel(Leadership::default());
        // Both may end before the others are stopped: with their engine.
        let (supervisor, never) = (&node.supervisor, CancellationToken::new());
        let propose = propose_in_order(raft.clone(), queue);
        node.tracker.spawn(supervisor.clone().ending("proposals", never.clone(), propose));
        let watch = watch_leadership(
            id,
            raft.clone(),
            Arc::clone(&progress),
            resigned.subscribe(),
            leadership_sender,
            Arc::clone(&node.options),
        );
        node.tracker.spawn(supervisor.clone().ending("leadership", never, watch));
        Ok(Self { id, raft, store, shelf, progress, leadership, resigned, proposals })
    }

    /// Submits a command now; the future gives its fate.
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
                // The entry left this node's log, or the engine stopped: it may have reached a majority before.
                Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
            }
        }
    }

    /// Confirms the leadership by a new round.
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

/// An error with its sources, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

async fn propose_in_order(raft: Raft, mut queue: mpsc::UnboundedReceiver<Proposal>) {
    while let Some(Proposal { command, answer }) = queue.recv().await {
        if raft.write(Command(command)).responder(Answer(answer)).await.is_err() {
            // What is queued was never submitted, but its callers cannot tell it from what was.
            return;
        }
    }
}

/// Publishes who leads, and ends the process when the engine ends by itself.
async fn watch_leadership(
    group: GroupId,
    raft: Raft,
    progress: Arc<Progress>,
    mut resigned: watch::Receiver<Option<u64>>,
    sender: watch::Sender<Leadership>,
    shared: Arc<Shared>,
) {
    let mut server = raft.server_metrics();
    let mut applied_leader = progress.leader.subscribe();
    loop {
        let current = {
            let server = server.borrow_watched();
            let leader_id = server.vote.leader_id;
            // An applied entry of this very leader: it took its place, and its state machine has all before it.
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
        let reason = state.err().map_or_else(|| "the engine ended".to_owned(), |error| chain(&error));
        tracing::error!(%group, reason, "a group cannot go on");
        (shared.fatal)(group, &reason);
    }
}
