//! Driver of a group's [`StateMachine`](super::StateMachine): applies entries, makes snapshots and installs them.
//!
//! Called by openraft's state machine worker, one call at a time; snapshots are written in the background from a view.
//! Invariants: rows, applied id and membership change in one batch; effects and answers are sent after that batch; an
//! installed snapshot is durable before `install_snapshot` returns; there is a snapshot whenever the log was purged.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use covey_types::GroupId;
use futures::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::log_store::LogStore;
use super::raft::{LeaderId, LogId, SnapshotMeta, StoredMembership, Types, command_len};
use super::snapshot::{SnapshotFile, SnapshotStore};
use super::state_store::{GroupStore, Mark, View};
use super::types::{Fatal, Rows, StateMachine, StoreError};

type Snapshot = openraft::type_config::alias::SnapshotOf<Types, Arc<SnapshotFile>>;

/// Bytes of rows from which a batch is written even if more entries wait.
const BATCH_BYTES: usize = 4 << 20;
/// Most entries in a batch.
const BATCH_ENTRIES: usize = 1024;

/// Watched state of a group's applying.
pub(super) struct Progress {
    /// Applied log index; 0 before the first entry.
    pub(super) applied: watch::Sender<u64>,
    /// Leader that proposed the last applied entry.
    pub(super) leader: watch::Sender<Option<LeaderId>>,
    /// Bytes of commands applied since the last snapshot was started.
    pub(super) unsaved: AtomicU64,
}

impl Progress {
    fn publish(&self, applied: Option<LogId>) {
        let Some(applied) = applied else { return };
        self.applied.send_replace(applied.index);
        self.leader.send_if_modified(|leader| leader.replace(applied.leader_id) != Some(applied.leader_id));
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        Self::other(error)
    }
}

/// Calls `fatal` if the state machine panics. Otherwise only the worker that runs it would end.
struct PanicGuard<'a> {
    fatal: &'a Fatal,
    group: GroupId,
}

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.fatal)(self.group, "the state machine panicked");
        }
    }
}

/// State that changes with every entry.
struct Applier {
    /// The state machine of the group.
    machine: Box<dyn StateMachine>,
    /// Changes that are not stored yet.
    rows: Rows,
    /// Applied id and membership, as of those changes.
    mark: Mark,
}

/// State machine of one group, shared with its snapshot builders.
struct GroupMachine {
    /// Id of the group.
    group: GroupId,
    /// Applied rows.
    store: Arc<GroupStore>,
    /// Snapshot files.
    snapshots: Arc<SnapshotStore>,
    /// The group's log.
    log: LogStore,
    /// Watched state.
    progress: Arc<Progress>,
    /// Called if the group cannot continue.
    fatal: Fatal,
    /// Never contended: openraft makes one call at a time.
    applier: Mutex<Applier>,
}

/// Drives the state machine of one group on behalf of openraft.
#[derive(Clone)]
pub(super) struct Driver {
    shared: Arc<GroupMachine>,
}

/// Answers to send when their batch is stored.
type Waiting = Vec<(ApplyResponder<Types>, Bytes)>;

impl Driver {
    /// Loads the machine from the stored rows.
    pub(super) fn open(
        group: GroupId,
        machine: Box<dyn StateMachine>,
        store: Arc<GroupStore>,
        snapshots: Arc<SnapshotStore>,
        log: LogStore,
        fatal: Fatal,
    ) -> Result<(Self, Arc<Progress>), StoreError> {
        let mark = store.mark()?;
        let covered = snapshots.current().and_then(|file| file.index()).unwrap_or(0);
        let progress = Arc::new(Progress {
            applied: watch::Sender::new(0),
            leader: watch::Sender::new(None),
            // Includes what was applied before the restart; otherwise restarts would postpone the snapshot again and
            // again.
            unsaved: AtomicU64::new(log.bytes_between(covered, mark.applied.map_or(0, |id| id.index))),
        });
        let mut applier = Applier { machine, rows: Rows::new(), mark };
        load(&mut applier, &store)?;
        progress.publish(applier.mark.applied);
        let applier = Mutex::new(applier);
        let shared = GroupMachine { group, store, snapshots, log, progress: Arc::clone(&progress), fatal, applier };
        Ok((Self { shared: Arc::new(shared) }, progress))
    }
}

fn load(applier: &mut Applier, store: &GroupStore) -> Result<(), StoreError> {
    let applied = applier.mark.applied.map_or(0, |id| id.index);
    applier.machine.load(applied, &mut store.view().rows())
}

impl GroupMachine {
    /// Stores the pending changes, then releases effects and answers.
    fn write(&self, applier: &mut Applier, waiting: &mut Waiting) -> Result<(), StoreError> {
        self.store.commit(applier.rows.take(), &applier.mark)?;
        applier.machine.written();
        self.progress.publish(applier.mark.applied);
        for (responder, answer) in waiting.drain(..) {
            responder.send(answer);
        }
        Ok(())
    }

    fn apply(&self, entries: Vec<EntryResponder<Types>>) -> Result<(), StoreError> {
        let _guard = PanicGuard { fatal: &self.fatal, group: self.group };
        let mut applier = self.applier.lock();
        let applier = &mut *applier;
        let mut waiting = Waiting::new();
        for (entry, responder) in entries {
            let bytes = u64::try_from(command_len(&entry)).unwrap_or(u64::MAX);
            self.progress.unsaved.fetch_add(bytes, Ordering::Relaxed);
            let answer = match entry.payload {
                EntryPayload::Blank => Bytes::new(),
                EntryPayload::Normal(command) => {
                    applier.machine.apply(entry.log_id.index, &command.0, &mut applier.rows)?
                }
                EntryPayload::Membership(membership) => {
                    applier.mark.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Bytes::new()
                }
            };
            applier.mark.applied = Some(entry.log_id);
            waiting.extend(responder.map(|responder| (responder, answer)));
            if applier.rows.bytes() >= BATCH_BYTES {
                self.write(applier, &mut waiting)?;
            }
        }
        self.write(applier, &mut waiting)
    }

    fn install(&self, snapshot: &Arc<SnapshotFile>) -> Result<(), StoreError> {
        let _guard = PanicGuard { fatal: &self.fatal, group: self.group };
        // The file is renamed first: after a crash in between, the restart installs it again.
        let snapshot = self.snapshots.publish(snapshot)?;
        let mut applier = self.applier.lock();
        let mark = Mark { applied: snapshot.meta.last_log_id, membership: snapshot.meta.last_membership.clone() };
        self.store.install(&mut snapshot.rows()?, &mark)?;
        applier.rows.take();
        applier.mark = mark;
        load(&mut applier, &self.store)?;
        self.progress.unsaved.store(0, Ordering::Relaxed);
        self.progress.publish(applier.mark.applied);
        Ok(())
    }

    fn builder(&self) -> Builder {
        self.progress.unsaved.store(0, Ordering::Relaxed);
        Builder {
            view: Some(self.store.view()),
            store: Arc::clone(&self.store),
            snapshots: Arc::clone(&self.snapshots),
        }
    }

    /// Returns the newest snapshot. Makes one if there is none, or if it does not cover the purged part of the log.
    fn current(&self) -> Result<Option<Arc<SnapshotFile>>, StoreError> {
        let purged = self.log.purged().map_err(|error| StoreError::Decode(error.into()))?;
        let current = self.snapshots.current();
        let covers = current.as_ref().and_then(|file| file.meta.last_log_id) >= purged;
        if covers {
            return Ok(current);
        }
        tracing::warn!(group = %self.group, "no snapshot covers the purged log; making one");
        let mut builder = self.builder();
        builder.build().map(Some)
    }
}

/// Runs file I/O on the blocking pool.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, io::Error> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(io::Error::other)??)
}

impl RaftStateMachine<Types> for Driver {
    type SnapshotData = Arc<SnapshotFile>;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applier = self.shared.applier.lock();
        Ok((applier.mark.applied, applier.mark.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(BATCH_ENTRIES);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.into_iter().collect::<Result<Vec<_>, _>>()?;
            let shared = Arc::clone(&self.shared);
            // A write to the store waits while another group's snapshot fsyncs it.
            blocking(move || shared.apply(chunk)).await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.shared.builder()
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, snapshot: Arc<SnapshotFile>) -> Result<(), io::Error> {
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.install(&snapshot)).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let shared = Arc::clone(&self.shared);
        let file = blocking(move || shared.current()).await?;
        Ok(file.map(|file| Snapshot { meta: file.meta.clone(), snapshot: file }))
    }
}

/// Writes a snapshot from a view while the group continues.
pub(super) struct Builder {
    view: Option<View>,
    store: Arc<GroupStore>,
    snapshots: Arc<SnapshotStore>,
}

impl Builder {
    fn build(&mut self) -> Result<Arc<SnapshotFile>, StoreError> {
        let view = self.view.take().unwrap_or_else(|| self.store.view());
        // The covered part of the log may be purged, so the state itself must be durable up to there, too.
        self.store.persist()?;
        let mark = view.mark()?;
        let meta = SnapshotMeta { last_log_id: mark.applied, last_membership: mark.membership };
        let file = self.snapshots.write(meta, view.rows())?;
        self.snapshots.publish(&file)
    }
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Arc<SnapshotFile>;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let mut taken =
            Self { view: self.view.take(), store: Arc::clone(&self.store), snapshots: Arc::clone(&self.snapshots) };
        let file = blocking(move || taken.build()).await?;
        Ok(Snapshot { meta: file.meta.clone(), snapshot: file })
    }
}
