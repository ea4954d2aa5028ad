//! State of one Raft group in the log: its marks, and its entries that are not purged.
//!
//! [`GroupState`] is changed under the log's lock by submissions and by replay, both through [`GroupState::apply`], so
//! a restart finds what a reader saw. [`Group`] is the reader's handle. Invariant: entries are contiguous from the
//! purge mark to the last index (during replay there may be a hole until a later purge covers it).

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Record, Shared};

/// A submission that contradicts the log: a bug of the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// The entries do not follow the last index.
    #[error("entries of group {group} begin at index {first}, expected {expected}")]
    Gap {
        /// The Raft group.
        group: u16,
        /// First index of the entries.
        first: u64,
        /// Index that must come next.
        expected: u64,
    },
    /// The truncation includes purged entries.
    #[error("group {group} cannot be truncated from index {from}: purged up to {purged}")]
    TruncatePurged {
        /// The Raft group.
        group: u16,
        /// First index to remove.
        from: u64,
        /// Last purged index.
        purged: u64,
    },
    /// An index is at the end of the range of numbers.
    #[error("an index of group {group} is out of range")]
    Range {
        /// The Raft group.
        group: u16,
    },
    /// The submission exceeds the limit of a frame.
    #[error("a submission of {bytes} bytes is too large")]
    TooLarge {
        /// Bytes of payload.
        bytes: usize,
    },
}

/// Marks of a group: everything but its entries. Checkpoints consist of these, so the layout is part of the format on
/// disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Next index: one above the last index, 0 for a new group.
    pub(super) next: u64,
    /// Last purged index and its log id; `None` if nothing was purged.
    pub(super) purged: Option<(u64, Bytes)>,
    /// Last vote.
    pub(super) vote: Option<Bytes>,
    /// Last committed log id.
    pub(super) committed: Option<Bytes>,
}

impl Mark {
    /// Returns the lowest index that is not purged.
    pub(super) fn floor(&self) -> u64 {
        self.purged.as_ref().map_or(0, |(index, _)| index.saturating_add(1))
    }

    /// Applies a record, or returns an error without any change.
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

/// A group in memory: marks and live entries.
#[derive(Clone, Debug, Default)]
pub(super) struct GroupState {
    /// Marks after the last record.
    pub(super) mark: Mark,
    /// Index of the first entry in `entries`.
    first: u64,
    /// Live entries in the order of their indexes.
    entries: VecDeque<Bytes>,
}

impl GroupState {
    /// Starts from the checkpoint of the oldest segment. Entries of older segments are not available.
    pub(super) fn from_mark(mark: Mark) -> Self {
        Self { first: mark.next, mark, entries: VecDeque::new() }
    }

    /// Applies a record to marks and entries, or returns an error without any change.
    pub(super) fn apply(&mut self, record: &Record) -> Result<(), Misuse> {
        self.mark.step(record)?;
        if let Record::Entries { entries, .. } = record {
            self.entries.extend(entries.iter().cloned());
        } else {
            self.trim();
        }
        Ok(())
    }

    /// Removes entries that the marks no longer include.
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
        // Releases memory after a large tail was purged.
        if self.entries.capacity() > 1024 && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }

    /// Returns the first index that is missing although it is not purged; `None` if there is none.
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
    /// Index of the last entry, or of the purge mark if there is no entry; `None` for a new group.
    pub last_index: Option<u64>,
    /// Last purged index and the log id given at the purge.
    pub purged: Option<(u64, Bytes)>,
    /// Last vote.
    pub vote: Option<Bytes>,
    /// Last committed log id.
    pub committed: Option<Bytes>,
}

/// Reader of one group's log. It sees everything that was submitted, durable or not.
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

    /// Returns the entries of a range in order, each with its index. Purged and missing ones are left out.
    pub fn read(&self, range: Range<u64>) -> Vec<(u64, Bytes)> {
        let state = self.shared.state.lock();
        state.groups.get(&self.group).map(|group| group.read(&range)).unwrap_or_default()
    }

    /// Returns a consistent copy of all marks.
    pub fn summary(&self) -> Summary {
        let state = self.shared.state.lock();
        state.groups.get(&self.group).map(GroupState::summary).unwrap_or_default()
    }

    /// Returns the index of the last entry, or of the purge mark if there is no entry; `None` for a new group.
    pub fn last_index(&self) -> Option<u64> {
        self.summary().last_index
    }

    /// Returns the last purged index and the log id given at the purge.
    pub fn purged(&self) -> Option<(u64, Bytes)> {
        self.summary().purged
    }

    /// Returns the last vote.
    pub fn vote(&self) -> Option<Bytes> {
        self.summary().vote
    }

    /// Returns the last committed log id.
    pub fn committed(&self) -> Option<Bytes> {
        self.summary().committed
    }
}
