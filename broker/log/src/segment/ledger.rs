//! Segments of the log: their sizes and the live entries that they hold.
//!
//! Filled by replay, updated by the writer after each fsync, read for metrics and pins. Invariant: it describes only
//! what is durable. A segment is removable only while it is the oldest, is not the current one, and holds no live
//! entry of any group.

use std::collections::{BTreeMap, VecDeque};

use super::Record;

/// A group that holds old segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The Raft group.
    pub group: u16,
    /// Bytes of log after the end of the oldest segment that the group holds.
    pub behind_bytes: u64,
    /// Highest index of the group in that segment; purging up to it frees the segment.
    pub up_to_index: u64,
}

/// Size and state of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Segment files.
    pub segments: usize,
    /// Bytes of all segment files.
    pub bytes: u64,
    /// Submissions that the writer has not taken yet.
    pub queued: usize,
    /// The log has failed and accepts nothing more.
    pub failed: bool,
}

/// One segment.
#[derive(Debug)]
struct Segment {
    /// Number of the segment.
    seq: u64,
    /// Size of the file in bytes.
    bytes: u64,
    /// Lowest and highest live index, by group.
    live: BTreeMap<u16, (u64, u64)>,
}

/// All segments, oldest first; the last one is the current segment.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    segments: VecDeque<Segment>,
}

impl Ledger {
    /// Adds a segment, which becomes the current one.
    pub(super) fn begin(&mut self, seq: u64, bytes: u64) {
        self.segments.push_back(Segment { seq, bytes, live: BTreeMap::new() });
    }

    /// Adds bytes to the size of the current segment.
    pub(super) fn grow(&mut self, bytes: u64) {
        if let Some(current) = self.segments.back_mut() {
            current.bytes += bytes;
        }
    }

    /// Records a change that was written to the current segment.
    pub(super) fn note(&mut self, record: &Record) {
        match record {
            Record::Entries { group, first_index, entries } => {
                let last = u64::try_from(entries.len()).ok().and_then(|count| count.checked_sub(1));
                if let (Some(last), Some(current)) = (last, self.segments.back_mut()) {
                    let range = current.live.entry(*group).or_insert((*first_index, 0));
                    range.1 = first_index.saturating_add(last);
                }
            }
            Record::Truncate { group, from_index } => {
                self.keep(*group, |(low, high)| Some((low, high.min(from_index.checked_sub(1)?))));
            }
            Record::Purge { group, up_to_index, .. } => {
                self.keep(*group, |(low, high)| Some((low.max(up_to_index.saturating_add(1)), high)));
            }
            Record::Vote { .. } | Record::Committed { .. } => {}
        }
    }

    /// Narrows the live range of a group in every segment, and removes empty ranges.
    fn keep(&mut self, group: u16, narrow: impl Fn((u64, u64)) -> Option<(u64, u64)>) {
        for segment in &mut self.segments {
            if let Some(range) = segment.live.remove(&group) {
                let narrowed = narrow(range).filter(|(low, high)| low <= high);
                if let Some(range) = narrowed {
                    segment.live.insert(group, range);
                }
            }
        }
    }

    /// Returns the number of the oldest segment if it is removable.
    pub(super) fn removable(&self) -> Option<u64> {
        let oldest = self.segments.front()?;
        (self.segments.len() > 1 && oldest.live.is_empty()).then_some(oldest.seq)
    }

    /// Removes the oldest segment, whose file was unlinked.
    pub(super) fn remove_oldest(&mut self) {
        self.segments.pop_front();
    }

    /// Returns the size of the log, with the given state of the writer.
    pub(super) fn stats(&self, queued: usize, failed: bool) -> Stats {
        Stats {
            segments: self.segments.len(),
            bytes: self.segments.iter().map(|segment| segment.bytes).sum(),
            queued,
            failed,
        }
    }

    /// Returns the groups that hold a segment whose end is more than `max_behind` bytes before the end of the log,
    /// furthest first.
    pub(super) fn pinned(&self, max_behind: u64) -> Vec<Pin> {
        let mut behind_bytes: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
        let mut pins: BTreeMap<u16, Pin> = BTreeMap::new();
        for segment in &self.segments {
            behind_bytes -= segment.bytes;
            if behind_bytes <= max_behind {
                break;
            }
            for (group, (_, high)) in &segment.live {
                pins.entry(*group).or_insert(Pin { group: *group, behind_bytes, up_to_index: *high });
            }
        }
        let mut pins: Vec<_> = pins.into_values().collect();
        pins.sort_by_key(|pin| std::cmp::Reverse(pin.behind_bytes));
        pins
    }
}
