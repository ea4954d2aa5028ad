//! One fsynced, checksummed segment log per node, shared by all of its Raft groups.
//!
//! Owned by the cluster runtime: each group's Raft storage submits records and reads its own entries back. Entries
//! are opaque bytes here. One writer thread takes all that was queued while the last fsync ran, writes it as **one
//! frame**, syncs once and runs the callbacks; an idle log runs no timer.
//!
//! ```text
//!  submit ──► memory of the group (readable at once) ──► queue ──► writer: frame, fdatasync, callbacks
//!                                                                   │ full: new segment, begun with a checkpoint
//!  log-1.seg  log-2.seg  …  log-n.seg  ◄───────────────────────────┘ oldest unlinked once purged by every group
//! ```
//!
//! Invariants:
//! - A callback gets `Ok` only after the fsync that covers its records. After the first failed write or fsync nothing
//!   is ever acknowledged again (the page cache may lie after EIO), and [`Options::on_fatal`] ends the process.
//! - A frame is one fsync's worth, so at most one frame can be torn, and nothing valid can follow it. A bad frame with
//!   a valid one behind it was synced once and is damage: opening is refused and changes nothing on the disk.
//! - Damage to the very last frame looks the same as a torn write and is cut. An acknowledged record lost that way is
//!   found by the peers, who know how far this node's log had acknowledged.
//! - Each segment begins with a checkpoint of every group's vote, committed and purge mark, so only live entries hold
//!   a segment, and segments are removed oldest first: a hole in their sequence is damage.
//!
//! All entries that are not purged stay in memory: Raft must read them before their fsync, followers are fed from the
//! tail, and the runtime bounds the tail by forcing snapshots ([`Log::pinned`]). A restart reads them once.

mod disk;
mod format;
mod group;
mod ledger;
mod recover;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use disk::{Disk, DiskFile, OsDisk};
pub use group::{Group, Misuse, Summary};
pub use ledger::{Pin, Stats};
pub use recover::{Cut, Damage, OpenError, Recovered};

use group::GroupState;
use ledger::Ledger;

/// One change of one group's log. The order of the variants is part of the format on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Appends entries; the first index follows the last index that the group has.
    Entries {
        /// The Raft group.
        group: u16,
        /// Index of the first entry; the others follow without a gap.
        first_index: u64,
        /// The entries, opaque.
        entries: Vec<Bytes>,
    },
    /// Drops the entries at and above an index (a Raft conflict).
    Truncate {
        /// The Raft group.
        group: u16,
        /// First index that is dropped.
        from_index: u64,
    },
    /// Drops the entries at and below an index, which may lie above the last one (an installed snapshot).
    Purge {
        /// The Raft group.
        group: u16,
        /// Last index that is dropped.
        up_to_index: u64,
        /// The purged log id, opaque.
        meta: Bytes,
    },
    /// Replaces the group's vote.
    Vote {
        /// The Raft group.
        group: u16,
        /// The vote, opaque.
        data: Bytes,
    },
    /// Replaces the group's committed mark. Alone in a submission it waits for the next one and costs no fsync.
    Committed {
        /// The Raft group.
        group: u16,
        /// The committed log id, opaque.
        data: Bytes,
    },
}

impl Record {
    /// The Raft group that the record belongs to.
    pub fn group(&self) -> u16 {
        match self {
            Self::Entries { group, .. }
            | Self::Truncate { group, .. }
            | Self::Purge { group, .. }
            | Self::Vote { group, .. }
            | Self::Committed { group, .. } => *group,
        }
    }

    /// Bytes of payload, without the few bytes of framing.
    fn payload_bytes(&self) -> usize {
        match self {
            Self::Entries { entries, .. } => entries.iter().map(|entry| entry.len() + 4).sum(),
            Self::Truncate { .. } => 0,
            Self::Purge { meta: data, .. } | Self::Vote { data, .. } | Self::Committed { data, .. } => data.len(),
        }
    }
}

/// Why a submission was not made durable.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A write or fsync failed, now or earlier: the log takes nothing more and the process is to end.
    #[error("failed to {operation} the log")]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// What the system answered.
        source: Arc<io::Error>,
    },
    /// The submission does not fit the group's log; nothing of it was taken.
    #[error("failed to take records into the log")]
    Misuse(#[from] Misuse),
    /// The log was closed.
    #[error("failed to write to the log: it is closed")]
    Closed,
}

/// Called once with the fate of a submission.
pub type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// What the log must hold, given what the node knows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The node has an identity: a directory without segments is refused.
    Member,
    /// The node has no identity yet: a log with records is refused.
    Newcomer,
    /// Not known.
    Anything,
}

/// How a log is opened.
#[derive(Clone)]
pub struct Options {
    /// A segment that has grown to this many bytes is followed by a new one.
    pub segment_bytes: u64,
    /// About how many bytes go into one frame and one fsync; what is queued beyond waits for the next.
    pub batch_bytes: usize,
    /// What the log must hold.
    pub expect: Expect,
    /// Told the duration of every fsync, from the writer thread.
    pub on_sync: Arc<dyn Fn(Duration) + Send + Sync>,
    /// Called once, from the writer thread and before any callback hears of it, when the log has failed. The process
    /// must end.
    pub on_fatal: Arc<dyn Fn(&Error) + Send + Sync>,
    /// The file layer.
    pub disk: Arc<dyn Disk>,
}

impl Options {
    /// The defaults: segments of 64 MiB, frames of 8 MiB, any content.
    pub fn new(on_fatal: Arc<dyn Fn(&Error) + Send + Sync>) -> Self {
        Self {
            segment_bytes: 64 << 20,
            batch_bytes: 8 << 20,
            expect: Expect::Anything,
            on_sync: Arc::new(|_| ()),
            on_fatal,
            disk: Arc::new(OsDisk),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("segment_bytes", &self.segment_bytes)
            .field("batch_bytes", &self.batch_bytes)
            .field("expect", &self.expect)
            .finish_non_exhaustive()
    }
}

/// What was handed over in one call of [`Log::submit`].
struct Submission {
    records: Vec<Record>,
    bytes: usize,
    done: Option<Done>,
}

impl Submission {
    fn finish(mut self, result: Result<(), Error>) {
        if let Some(done) = self.done.take() {
            done(result);
        }
    }
}

// A group whose callback is never called hangs without a word.
impl Drop for Submission {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(Err(Error::Closed));
        }
    }
}

/// What submitters, readers and the writer share.
struct State {
    groups: BTreeMap<u16, GroupState>,
    queue: VecDeque<Submission>,
    /// Committed marks that wait for a submission that needs an fsync anyway.
    lazy: BTreeMap<u16, Bytes>,
    closing: bool,
    failed: Option<Error>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    ledger: Mutex<Ledger>,
}

/// Ends the writer when the last handle goes.
struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.work.notify_one();
    }
}

/// A cheap handle on the node's log. When the last one is dropped, what is queued is still written.
#[derive(Clone)]
pub struct Log {
    handle: Arc<Handle>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("stats", &self.metrics()).finish()
    }
}

impl Log {
    /// Opens the log in a directory, which is made when it is absent unless a [`Expect::Member`] opens it, and
    /// replays it. Before this returns the last segment was written anew and fsynced.
    ///
    /// # Errors
    /// A damaged, incomplete or newer log is refused; the directory is then exactly as it was.
    pub fn open(dir: &Path, options: Options) -> Result<(Self, Recovered), OpenError> {
        let replayed = recover::replay(dir, &options)?;
        let opened = recover::prepare(dir, &options, replayed)?;
        let recovered = Recovered {
            groups: opened.groups.iter().map(|(group, state)| (*group, state.summary())).collect(),
            cut: opened.cut,
        };
        let marks = opened.groups.iter().map(|(group, state)| (*group, state.mark.clone())).collect();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                groups: opened.groups,
                queue: VecDeque::new(),
                lazy: BTreeMap::new(),
                closing: false,
                failed: None,
            }),
            work: Condvar::new(),
            ledger: Mutex::new(opened.ledger),
        });
        let writer = writer::Writer::new(Arc::clone(&shared), dir.to_owned(), options, opened.current, marks);
        let thread = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| OpenError::io("start the writer of", dir, source))?;
        let handle = Arc::new(Handle { shared, thread: Mutex::new(Some(thread)) });
        Ok((Self { handle }, recovered))
    }

    /// Queues records as one unit: after a crash all of them are there or none. They are readable at once; `done` runs
    /// on the writer thread after the fsync that covers them, in the order of submission, and must not block.
    ///
    /// Where the submission is refused (it does not fit, the log failed or is closed) `done` runs before this returns.
    /// So it does, with `Ok`, when all records are [`Record::Committed`]: they need no fsync and go with the next one.
    pub fn submit(&self, records: Vec<Record>, done: Done) {
        let answer = {
            let mut state = self.handle.shared.state.lock();
            match state.admit(&records) {
                Err(error) => Err(error),
                Ok(()) if records.iter().all(|record| matches!(record, Record::Committed { .. })) => {
                    state.postpone(records);
                    Ok(())
                }
                Ok(()) => {
                    state.enqueue(records, done);
                    drop(state);
                    self.handle.shared.work.notify_one();
                    return;
                }
            }
        };
        done(answer);
    }

    /// Submits and waits for the fsync.
    pub async fn write(&self, records: Vec<Record>) -> Result<(), Error> {
        let (sender, receiver) = oneshot::channel();
        self.submit(records, Box::new(move |result| drop(sender.send(result))));
        receiver.await.unwrap_or(Err(Error::Closed))
    }

    /// The view of one group's log; a group without records is empty.
    pub fn group(&self, group: u16) -> Group {
        Group::new(Arc::clone(&self.handle.shared), group)
    }

    /// Size and state of the log.
    pub fn metrics(&self) -> Stats {
        let (queued, failed) = {
            let state = self.handle.shared.state.lock();
            (state.queue.len(), state.failed.is_some())
        };
        self.handle.shared.ledger.lock().stats(queued, failed)
    }

    /// The groups that hold a segment whose end lies more than `max_behind` bytes behind the end of the log, the
    /// furthest first. Their owner takes a snapshot and purges, so that an idle group does not pin the log.
    pub fn pinned(&self, max_behind: u64) -> Vec<Pin> {
        self.handle.shared.ledger.lock().pinned(max_behind)
    }

    /// Writes what is queued, postponed committed marks included, and stops the writer. Blocks until then; must not
    /// be called from a `done` callback. Later submissions get [`Error::Closed`].
    pub fn close(&self) {
        self.handle.shared.state.lock().closing = true;
        self.handle.shared.work.notify_one();
        let thread = self.handle.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the log writer panicked");
        }
    }
}

// === impl State ===

impl State {
    /// Checks the records against the groups and applies all of them to memory, or none.
    fn admit(&mut self, records: &[Record]) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.closing {
            return Err(Error::Closed);
        }
        format::check_size(records)?;
        let mut staged = BTreeMap::new();
        for record in records {
            let group = record.group();
            staged
                .entry(group)
                .or_insert_with(|| self.groups.get(&group).map(|state| state.mark.clone()).unwrap_or_default())
                .step(record)?;
        }
        for record in records {
            self.groups.entry(record.group()).or_default().apply(record)?;
        }
        Ok(())
    }

    fn postpone(&mut self, records: Vec<Record>) {
        for record in records {
            if let Record::Committed { group, data } = record {
                self.lazy.insert(group, data);
            }
        }
    }

    /// Postponed marks go first: the entries they speak of were queued before them, and a mark among `records` is newer.
    fn enqueue(&mut self, records: Vec<Record>, done: Done) {
        let mut all = self.take_lazy();
        all.extend(records);
        let bytes = all.iter().map(Record::payload_bytes).sum();
        self.queue.push_back(Submission { records: all, bytes, done: Some(done) });
    }

    fn take_lazy(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.lazy).into_iter().map(|(group, data)| Record::Committed { group, data }).collect()
    }
}

/// The file name of a segment.
fn segment_name(seq: u64) -> String {
    format!("log-{seq:020}.seg")
}

/// The path of a segment before it is complete.
fn temporary_path(dir: &Path, seq: u64) -> PathBuf {
    dir.join(format!("{}.tmp", segment_name(seq)))
}
