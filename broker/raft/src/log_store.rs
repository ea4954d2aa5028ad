//! openraft's log storage: one group in the node's segment log.
//!
//! Called from the group's core task. Invariants: appended entries are readable when `append` returns; a callback runs
//! only after the fsync that covers its entries; a vote is fsynced before `save_vote` returns, by the same writer, so
//! that it never overtakes an earlier truncation. `committed` is written without waiting for an fsync, since it only
//! shortens the replay.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use covey_log::segment::{self, Log, Record};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};

use super::raft::{Entry, LogId, Types, Vote, decode, decode_entry, encode, encode_entry};

/// Bytes of entries from which an append request is full; a single larger entry is sent alone.
const REQUEST_BYTES: usize = 1 << 20;

/// One group in the log; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct LogStore {
    log: Log,
    view: segment::Group,
    group: u16,
}

impl LogStore {
    /// Returns the view of `group` in the node's log.
    pub(super) fn new(log: Log, group: u16) -> Self {
        let view = log.group(group);
        Self { log, view, group }
    }

    /// Returns the last purged log id; `None` if nothing was purged.
    pub(super) fn purged(&self) -> io::Result<Option<LogId>> {
        Ok(self.view.purged().map(|(_, id)| decode(&id)).transpose()?)
    }

    /// Returns the bytes of the entries above `above` and up to `up_to`.
    pub(super) fn bytes_between(&self, above: u64, up_to: u64) -> u64 {
        let entries = self.view.read(above.saturating_add(1)..up_to.saturating_add(1));
        entries.into_iter().map(|(_, raw)| raw.len() as u64).sum()
    }

    fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bytes = 0_usize;
        for (_, raw) in self.view.read(start..end) {
            bytes = bytes.saturating_add(raw.len());
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(decode_entry(&raw)?);
        }
        Ok(entries)
    }

    /// Submits a record without waiting for its fsync.
    fn submit_unwaited(&self, record: Record) {
        // A failure ends the process through the log's own hook, and later callbacks fail.
        self.log.submit(vec![record], Box::new(drop));
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, io::Error>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.view.vote().map(|vote| decode(&vote)).transpose()?)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, REQUEST_BYTES)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let summary = self.view.summary();
        let purged: Option<LogId> = summary.purged.map(|(_, id)| decode(&id)).transpose()?;
        let last = match summary.last_index {
            Some(last) => self.read(last, last.saturating_add(1), usize::MAX)?.pop().map(|entry| entry.log_id),
            None => None,
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let data = encode(vote)?;
        self.log.write(vec![Record::Vote { group: self.group, data }]).await.map_err(io::Error::other)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.submit_unwaited(Record::Committed { group: self.group, data: encode(&committed)? });
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.view.committed().map(|id| decode(&id)).transpose()?)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut first_index = None;
        let mut encoded: Vec<Bytes> = Vec::new();
        for entry in entries {
            first_index.get_or_insert(entry.log_id.index);
            encoded.push(encode_entry(&entry)?);
        }
        let Some(first_index) = first_index else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let record = Record::Entries { group: self.group, first_index, entries: encoded };
        let done = Box::new(move |result: Result<(), segment::Error>| {
            callback.io_completed(result.map_err(io::Error::other));
        });
        self.log.submit(vec![record], done);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from_index = last.map_or(0, |id| id.index.saturating_add(1));
        self.submit_unwaited(Record::Truncate { group: self.group, from_index });
        Ok(())
    }

    async fn purge(&mut self, up_to: LogId) -> Result<(), io::Error> {
        let meta = encode(&up_to)?;
        self.submit_unwaited(Record::Purge { group: self.group, up_to_index: up_to.index, meta });
        Ok(())
    }
}
