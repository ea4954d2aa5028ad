//! One fsynced, checksummed segment log per node, shared by all of its Raft groups.
//!
//! Each group's Raft storage submits records and reads its own entries back; entries are opaque bytes here. One writer
//! thread takes everything that was queued during the last fsync, writes it as **one frame**, fsyncs once and runs the
//! callbacks. An idle log runs no timer.
//!
//! ```text
//!  submit ──► memory of the group (readable at once) ──► queue ──► writer: frame, fdatasync, callbacks
//!                                                                  │ segment full: new segment with a checkpoint
//!  log-1.seg  log-2.seg  …  log-n.seg  ◄───────────────────────────┘ oldest unlinked once purged by every group
//! ```
//!
//! Invariants:
//! - A callback gets `Ok` only after the fsync that covers its records. After the first failed write or fsync nothing
//!   is acknowledged any more, since the page cache may differ from the disk after EIO, and [`Options::on_fatal`] ends
//!   the process.
//! - A frame is covered by one fsync, so at most one frame can be torn, and no valid frame can follow it. A bad frame
//!   before a valid one was fsynced once and is damage: opening fails and changes nothing on disk.
//! - Damage to the very last frame looks like a torn write and is cut off. A record that was acknowledged and is lost
//!   in this way is detected by the peers, which know how far this node has acknowledged.
//! - Each segment begins with a checkpoint of every group's vote, committed mark and purge mark, so only live entries
//!   keep a segment. Segments are removed oldest first: a gap in their sequence is damage.
//!
//! All entries that are not purged stay in memory: Raft reads them before their fsync, and followers are served from
//! the tail. The runtime bounds the tail by snapshots ([`Log::pinned`]). A restart reads all segments once.

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

/// A change of one group's log. The order of the variants is part of the format on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Appends entries. The first index must follow the last index of the group.
    Entries {
        /// The Raft group.
        group: u16,
        /// Index of the first entry; the others follow without gaps.
        first_index: u64,
        /// Entries, opaque.
        entries: Vec<Bytes>,
    },
    /// Removes the entries at and above an index (a Raft conflict).
    Truncate {
        /// The Raft group.
        group: u16,
        /// First index that is removed.
        from_index: u64,
    },
    /// Removes the entries at and below an index, which may be above the last one (an installed snapshot).
    Purge {
        /// The Raft group.
        group: u16,
        /// Last index that is removed.
        up_to_index: u64,
        /// Purged log id, opaque.
        meta: Bytes,
    },
    /// Replaces the group's vote.
    Vote {
        /// The Raft group.
        group: u16,
        /// Vote, opaque.
        data: Bytes,
    },
    /// Replaces the group's committed mark. In a submission of its own it is written with the next one and causes no
    /// fsync.
    Committed {
        /// The Raft group.
        group: u16,
        /// Committed log id, opaque.
        data: Bytes,
    },
}

impl Record {
    /// Returns the Raft group of the record.
    pub fn group(&self) -> u16 {
        match self {
            Self::Entries { group, .. }
            | Self::Truncate { group, .. }
            | Self::Purge { group, .. }
            | Self::Vote { group, .. }
            | Self::Committed { group, .. } => *group,
        }
    }

    /// Returns the bytes of the payload, without framing.
    fn payload_bytes(&self) -> usize {
        match self {
            Self::Entries { entries, .. } => entries.iter().map(|entry| entry.len() + 4).sum(),
            Self::Truncate { .. } => 0,
            Self::Purge { meta: data, .. } | Self::Vote { data, .. } | Self::Committed { data, .. } => data.len(),
        }
    }
}

/// Reason why a submission was not made durable.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A write or fsync failed, now or earlier. The log accepts nothing more, and the process must end.
    #[error("failed to {operation} the log")]
    Failed {
        /// The operation, as in "failed to {operation} the log".
        operation: &'static str,
        /// Error of the operating system.
        source: Arc<io::Error>,
    },
    /// The submission contradicts the group's log. None of it was accepted.
    #[error("failed to take records into the log")]
    Misuse(#[from] Misuse),
    /// The log was closed.
    #[error("failed to write to the log: it is closed")]
    Closed,
}

/// Callback with the result of a submission, called once.
pub type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Expected content of a log, given the node's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The node has an identity: a directory without segments is an error.
    Member,
    /// The node has no identity: a log with records is an error.
    Newcomer,
    /// Any content is accepted.
    Anything,
}

/// Options of a log.
#[derive(Clone)]
pub struct Options {
    /// Bytes from which a segment is full and a new one is started.
    pub segment_bytes: u64,
    /// Bytes of payload from which a frame is full; further submissions wait for the next one.
    pub batch_bytes: usize,
    /// Expected content.
    pub expect: Expect,
    /// Called on the writer thread with the duration of every fsync.
    pub on_sync: Arc<dyn Fn(Duration) + Send + Sync>,
    /// Called once when the log has failed, on the writer thread and before any callback of a submission. The process
    /// must end.
    pub on_fatal: Arc<dyn Fn(&Error) + Send + Sync>,
    /// File operations.
    pub disk: Arc<dyn Disk>,
}

impl Options {
    /// Returns the defaults: segments of 64 MiB, frames of 8 MiB, any content.
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

/// Records of one call of [`Log::submit`].
struct Submission {
    /// The records, in order.
    records: Vec<Record>,
    /// Bytes of their payload.
    bytes: usize,
    /// Callback; `None` once it was called, or if there is none.
    done: Option<Done>,
}

impl Submission {
    fn finish(mut self, result: Result<(), Error>) {
        if let Some(done) = self.done.take() {
            done(result);
        }
    }
}

// A callback that is never called would block its group without any message.
impl Drop for Submission {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(Err(Error::Closed));
        }
    }
}

/// State that submitters, readers and the writer share.
struct State {
    /// Marks and entries of every group, durable or not.
    groups: BTreeMap<u16, GroupState>,
    /// Submissions that the writer has not taken, oldest first.
    queue: VecDeque<Submission>,
    /// Committed marks that are written with the next submission.
    lazy: BTreeMap<u16, Bytes>,
    /// True after `close`: nothing more is accepted.
    closing: bool,
    /// Error of a failed log.
    failed: Option<Error>,
}

/// Shared by all handles and the writer.
struct Shared {
    /// Groups and queue.
    state: Mutex<State>,
    /// Wakes the writer.
    work: Condvar,
    /// Segments and the live entries that they hold.
    ledger: Mutex<Ledger>,
}

/// Stops the writer when the last handle is dropped.
struct Handle {
    /// State of the log.
    shared: Arc<Shared>,
    /// The writer thread; `None` after `close`.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.work.notify_one();
    }
}

/// A handle to the node's log, cheap to clone. When the last one is dropped, queued records are still written.
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
    /// Opens and replays the log in a directory. The directory is created if it does not exist, unless
    /// [`Expect::Member`] is given. Before this returns, the last segment was written again and fsynced.
    ///
    /// # Errors
    /// Returns [`OpenError`] for a damaged, incomplete or newer log; the directory is then unchanged.
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

    /// Queues records as one unit: after a crash either all or none of them are there. They are readable at once.
    /// `done` runs on the writer thread after the fsync that covers them, in the order of submission, and must not
    /// block.
    ///
    /// If the submission is refused, because it contradicts the log or the log has failed or is closed, `done` runs
    /// before this returns. The same holds, with `Ok`, if all records are [`Record::Committed`]: they are written with
    /// the next submission.
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

    /// Submits records and waits for the fsync.
    ///
    /// # Errors
    /// Returns [`Error`] if the submission is refused or the log fails or is closed.
    pub async fn write(&self, records: Vec<Record>) -> Result<(), Error> {
        let (sender, receiver) = oneshot::channel();
        self.submit(records, Box::new(move |result| drop(sender.send(result))));
        receiver.await.unwrap_or(Err(Error::Closed))
    }

    /// Returns the view of one group's log; a group without records is empty.
    pub fn group(&self, group: u16) -> Group {
        Group::new(Arc::clone(&self.handle.shared), group)
    }

    /// Returns size and state of the log.
    pub fn metrics(&self) -> Stats {
        let (queued, failed) = {
            let state = self.handle.shared.state.lock();
            (state.queue.len(), state.failed.is_some())
        };
        self.handle.shared.ledger.lock().stats(queued, failed)
    }

    /// Returns the groups that hold a segment whose end is more than `max_behind` bytes before the end of the log,
    /// furthest first. The caller makes snapshots and purges these groups, so that an idle group does not hold the
    /// log.
    pub fn pinned(&self, max_behind: u64) -> Vec<Pin> {
        self.handle.shared.ledger.lock().pinned(max_behind)
    }

    /// Writes what is queued, postponed committed marks included, and stops the writer. Blocks until then, so it must
    /// not be called from a callback. Later submissions get [`Error::Closed`].
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

impl State {
    /// Checks the records against the groups and applies either all of them or none.
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

    /// Keeps committed marks for the next submission.
    fn postpone(&mut self, records: Vec<Record>) {
        for record in records {
            if let Record::Committed { group, data } = record {
                self.lazy.insert(group, data);
            }
        }
    }

    /// Postponed marks come first: their entries were queued before, and a mark in `records` is newer.
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

/// Returns the file name of a segment.
fn segment_name(seq: u64) -> String {
    format!("log-{seq:020}.seg")
}

/// Returns the path of a segment while it is written.
fn temporary_path(dir: &Path, seq: u64) -> PathBuf {
    dir.join(format!("{}.tmp", segment_name(seq)))
}
