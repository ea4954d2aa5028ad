//! What the log knows of one Raft group: marks, and the entries that are not purged.
//!
//! [`GroupState`] is changed under the log's lock by submissions and by replay, through the same [`GroupState::apply`],
//! so what a restart finds is what a reader saw. [`Group`] is the reader's handle. Invariant: entries are contiguous
//! from the purge mark to the last index (during replay a hole may exist until a later purge covers it).

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Record, Shared};

/// A submission that contradicts the log; a defect of the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// The entries do not follow the last one.
    #[error("entries of group {group} begin at index {first}, expected {expected}")]
    Gap {
        /// The Raft group.
        group: u16,
        /// First index of the entries.
        first: u64,
        /// The index that must come next.
        expected: u64,
    },
    /// The truncation reaches into what was purged.
    #[error("group {group} cannot be truncated from index {from}: purged up to {purged}")]
    TruncatePurged {
        /// The Raft group.
        group: u16,
        /// First index to drop.
        from: u64,
        /// The purge mark.
        purged: u64,
    },
    /// An index at the end of the number range.
    #[error("an index of group {group} is out of range")]
    Range {
        /// The Raft group.
        group: u16,
    },
    /// More than one frame can hold.
    #[error("a submission of {bytes} bytes is too large")]
    TooLarge {
        /// Bytes of payload.
        bytes: usize,
    },
}

/// Everything of a group but its entries; the unit of a checkpoint, so its layout is part of the format on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The index that comes next: one above the last index, 0 for a new group.
    pub(super) next: u64,
    pub(super) purged: Option<(u64, Bytes)>,
    pub(super) vote: Option<Bytes>,
    pub(super) committed: Option<Bytes>,
}

impl Mark {
    /// The lowest index that is not purged.
    pub(super) fn floor(&self) -> u64 {
        self.purged.as_ref().map_or(0, |(index, _)| index.saturating_add(1))
    }

    /// Takes a record in, or refuses it and stays as it was.
    pub(super) fn step(&mut self, record: &Record) -> Result<(), Misuse> {
        match record {
            Record::Entries { group, first_index, entries } => {
                if *first_index != self.next {
                    return Err(Misuse::Gap { group: *group, first: *first_index, expected: self.next });
                }
                let count = u64::try_from(entries.len()).ok();
                let next = count.and_then(|count| first_index.checked_add(count));
                self.next = next.ok_or(Misuse::Range { group: *group })?;
            }
            Record::Truncate { group, from_index } => match &self.purged {
                Some((purged, _)) if from_index <= purged => {
                    return Err(Misuse::TruncatePurged { group: *group, from: *from_index, purged: *purged });
                }
                _ => self.next = self.next.min(*from_index),
            },
            Record::Purge { group, up_to_index, meta } => {
                let above = up_to_index.checked_add(1).ok_or(Misuse::Range { group: *group })?;
                if above > self.floor() {
                    self.next = self.next.max(above);
                    self.purged = Some((*up_to_index, meta.clone()));
                }
            }
            Record::Vote { data, .. } => self.vote = Some(data.clone()),
            Record::Committed { data, .. } => self.committed = Some(data.clone()),
        }
        Ok(())
    }
}

/// A group in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct GroupState {
    pub(super) mark: Mark,
    /// Index of the first entry in `entries`.
    first: u64,
    entries: VecDeque<Bytes>,
}

impl GroupState {
    /// Begins from a checkpoint whose segment is the oldest: entries that older segments held are not there.
    pub(super) fn from_mark(mark: Mark) -> Self {
        Self { first: mark.next, mark, entries: VecDeque::new() }
    }

    /// Applies a record to marks and entries, or refuses it and stays as it was.
    pub(super) fn apply(&mut self, record: &Record) -> Result<(), Misuse> {
        self.mark.step(record)?;
        if let Record::Entries { entries, .. } = record {
            self.entries.extend(entries.iter().cloned());
        } else {
            self.trim();
        }
        Ok(())
    }

    /// Brings the entries in line with the marks.
    fn trim(&mut self) {
        let floor = self.mark.floor();
        while self.first < floor && self.entries.pop_front().is_some() {
            self.first += 1;
        }
        let keep = self.mark.next.saturating_sub(self.first);
        self.entries.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        if self.entries.is_empty() {
            self.first = self.mark.next;
        }
        // A large tail that was purged gives its memory back.
        if self.entries.capacity() > 1024 && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }

    /// The first index that should be there and is not.
    pub(super) fn hole(&self) -> Option<u64> {
        let floor = self.mark.floor();
        (floor < self.first).then_some(floor)
    }

    fn read(&self, range: &Range<u64>) -> Vec<(u64, Bytes)> {
        let start = range.start.max(self.first);
        let skip = usize::try_from(start - self.first).unwrap_or(usize::MAX);
        (start..range.end).zip(self.entries.iter().skip(skip).cloned()).collect()
    }

    pub(super) fn summary(&self) -> Summary {
        Summary {
            last_index: self.mark.next.checked_sub(1),
            purged: self.mark.purged.clone(),
            vote: self.mark.vote.clone(),
            committed: self.mark.committed.clone(),
        }
    }
}

/// The marks of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Index of the last entry, or of the purge mark where no entry is left; `None` for a new group.
    pub last_index: Option<u64>,
    /// The last purged index with the log id given at the purge.
    pub purged: Option<(u64, Bytes)>,
    /// The last vote.
    pub vote: Option<Bytes>,
    /// The last committed mark.
    pub committed: Option<Bytes>,
}

/// A reader's view of one group's log: all that was submitted, durable or not.
#[derive(Clone)]
pub struct Group {
    shared: Arc<Shared>,
    group: u16,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("group", &self.group).finish_non_exhaustive()
    }
}

impl Group {
    pub(super) fn new(shared: Arc<Shared>, group: u16) -> Self {
        Self { shared, group }
    }

    /// Reads the entries of a range that exist, in order; those purged or not yet written are absent.
    pub fn read(&self, range: Range<u64>) -> Vec<(u64, Bytes)> {
        let state = self.shared.state.lock();
        state.groups.get(&self.group).map(|group| group.read(&range)).unwrap_or_default()
    }

    /// All marks at one moment.
    pub fn summary(&self) -> Summary {
        let state = self.shared.state.lock();
        state.groups.get(&self.group).map(GroupState::summary).unwrap_or_default()
    }

    /// Index of the last entry, or of the purge mark where no entry is left.
    pub fn last_index(&self) -> Option<u64> {
        self.summary().last_index
    }

    /// The last purged index with the log id given at the purge.
    pub fn purged(&self) -> Option<(u64, Bytes)> {
        self.summary().purged
    }

    /// The last vote.
    pub fn vote(&self) -> Option<Bytes> {
        self.summary().vote
    }

    /// The last committed mark.
    pub fn committed(&self) -> Option<Bytes> {
        self.summary().committed
    }
}
