//! Opening a log: everything is read and checked first, and the directory is changed only afterwards.
//!
//! [`replay`] only reads and detects every error, so a refused directory is unchanged. [`prepare`] then removes
//! leftovers and writes the last segment again: after a failed fsync the page cache may show frames that are not on
//! disk, so they are written and fsynced again before they are used.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::format::{self, BadHeader, FORMAT_VERSION, HEADER_BYTES, Header};
use super::group::{GroupState, Summary};
use super::ledger::Ledger;
use super::writer::{Current, create_segment};
use super::{Expect, Options, segment_name};

/// Reason why a log was not opened. The directory was not changed, except by a failed write ([`OpenError::Io`]).
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Data that was fsynced is missing or changed.
    #[error(
        "failed to open the log: {} is damaged at byte {offset}: {damage}; nothing was changed. This disk counts as \
         lost: move the directory {} aside, so that the node joins again with an empty one; what it acknowledged is \
         on the majority of the cluster",
        file.display(), dir.display()
    )]
    Corrupt {
        /// The damaged or missing file.
        file: PathBuf,
        /// Beginning of the damage, in bytes from the start of the file.
        offset: u64,
        /// Kind of damage.
        damage: Damage,
        /// The directory of the log.
        dir: PathBuf,
    },
    /// A segment was written by a newer version.
    #[error(
        "failed to open the log: {} has format {found}, this version reads format {supported}; nothing was changed. \
         Run the version that wrote it, or a newer one",
        file.display()
    )]
    Version {
        /// The segment.
        file: PathBuf,
        /// Format of the segment.
        found: u32,
        /// Newest format that this version reads.
        supported: u32,
    },
    /// The node has an identity but no log.
    #[error(
        "failed to open the log: {} holds no segment although this node has been a member; nothing was changed. Put \
         the directory back, or, if it is gone, move the node's whole data directory aside, so that the node joins \
         again with an empty one",
        dir.display()
    )]
    Missing {
        /// The directory of the log.
        dir: PathBuf,
    },
    /// The log has records but the node has no identity.
    #[error(
        "failed to open the log: {} holds records although this node has no identity; nothing was changed. Put the \
         node's marker file back, or move its whole data directory aside, so that it joins with an empty one",
        dir.display()
    )]
    Orphan {
        /// The directory of the log.
        dir: PathBuf,
    },
    /// A file operation failed.
    #[error("failed to {operation} {}", path.display())]
    Io {
        /// The operation, as in "failed to {operation}".
        operation: &'static str,
        /// File or directory of the operation.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
}

impl OpenError {
    pub(super) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { operation, path: path.to_owned(), source }
    }
}

/// Kind of damage of a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The header of a segment does not match its checksum or its file name.
    #[error("its header is not valid")]
    Header,
    /// The checkpoint is not valid. It was fsynced before the segment was renamed.
    #[error("its checkpoint is not valid")]
    Checkpoint,
    /// The checkpoint contradicts the segments before it.
    #[error("its checkpoint does not agree with the segments before it")]
    Disagrees,
    /// A record is bad and a valid one follows in the same segment.
    #[error("a bad record is followed by a valid one at byte {next}")]
    Record {
        /// Beginning of the valid record, in bytes from the start of the file.
        next: u64,
    },
    /// A record is bad and another segment follows.
    #[error("a bad record is followed by a later segment")]
    Middle,
    /// The checksum matches but the content is not valid.
    #[error("a record cannot be read")]
    Content,
    /// A segment between others is missing.
    #[error("the segment is missing")]
    Absent,
    /// Entries that are not purged are in no segment.
    #[error("entries of group {group} from index {index} on are missing")]
    Entries {
        /// The Raft group.
        group: u16,
        /// First missing index.
        index: u64,
    },
}

/// A torn tail that was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Last segment.
    pub file: PathBuf,
    /// Length of the file after the cut, in bytes.
    pub offset: u64,
    /// Bytes that were dropped.
    pub bytes: u64,
}

/// Content of an opened log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Marks of every group in the log.
    pub groups: BTreeMap<u16, Summary>,
    /// Torn tail that was cut off; `None` if there was none.
    pub cut: Option<Cut>,
}

/// Result of [`replay`].
pub(super) struct Replayed {
    /// Marks and entries of every group.
    groups: BTreeMap<u16, GroupState>,
    /// Segments and the live entries that they hold.
    ledger: Ledger,
    /// Torn tail to be cut off.
    cut: Option<Cut>,
    /// Header and valid bytes of the last segment; `None` if there is no segment.
    last: Option<(Header, Vec<u8>)>,
    /// Whether the directory exists.
    dir_exists: bool,
}

/// An opened log for its writer.
pub(super) struct Opened {
    /// Marks and entries of every group.
    pub(super) groups: BTreeMap<u16, GroupState>,
    /// Segments and the live entries that they hold.
    pub(super) ledger: Ledger,
    /// Torn tail that was cut off.
    pub(super) cut: Option<Cut>,
    /// Segment to which the writer appends.
    pub(super) current: Current,
}

/// Reads and checks all segments; changes nothing.
pub(super) fn replay(dir: &Path, options: &Options) -> Result<Replayed, OpenError> {
    let names = options.disk.list(dir).map_err(|source| OpenError::io("list", dir, source))?;
    let mut replay = Replay { dir, groups: BTreeMap::new(), ledger: Ledger::default(), cut: None };
    let segments = segments(names.as_deref().unwrap_or_default());
    let Some(newest) = segments.last().copied() else {
        if options.expect == Expect::Member {
            return Err(OpenError::Missing { dir: dir.to_owned() });
        }
        let dir_exists = names.is_some();
        return Ok(Replayed { groups: BTreeMap::new(), ledger: Ledger::default(), cut: None, last: None, dir_exists });
    };
    let oldest = segments.first().copied().unwrap_or(newest);
    let mut last = None;
    for seq in oldest..=newest {
        let path = dir.join(segment_name(seq));
        if !segments.contains(&seq) {
            return Err(replay.corrupt(seq, 0, Damage::Absent));
        }
        let mut file = options.disk.read(&path).map_err(|source| OpenError::io("read", &path, source))?;
        let (header, valid) = replay.segment(seq, &file, seq == oldest, seq == newest)?;
        file.truncate(valid);
        last = Some((header, file));
    }
    if options.expect == Expect::Newcomer && !replay.groups.is_empty() {
        return Err(OpenError::Orphan { dir: dir.to_owned() });
    }
    for (group, state) in &replay.groups {
        if let Some(index) = state.hole() {
            return Err(replay.corrupt(oldest, 0, Damage::Entries { group: *group, index }));
        }
    }
    Ok(Replayed { groups: replay.groups, ledger: replay.ledger, cut: replay.cut, last, dir_exists: true })
}

/// Returns the numbers of the segments among the file names.
fn segments(names: &[std::ffi::OsString]) -> BTreeSet<u64> {
    let number = |name: &str| name.strip_prefix("log-")?.strip_suffix(".seg")?.parse().ok();
    let is_ours = |seq: &u64, name: &str| segment_name(*seq) == name;
    names
        .iter()
        .filter_map(|name| name.to_str())
        .filter_map(|name| number(name).filter(|seq| is_ours(seq, name)))
        .collect()
}

fn to_u64(offset: usize) -> u64 {
    u64::try_from(offset).unwrap_or(u64::MAX)
}

/// State of a replay.
struct Replay<'a> {
    dir: &'a Path,
    groups: BTreeMap<u16, GroupState>,
    ledger: Ledger,
    cut: Option<Cut>,
}

impl Replay<'_> {
    fn corrupt(&self, seq: u64, offset: usize, damage: Damage) -> OpenError {
        let file = self.dir.join(segment_name(seq));
        OpenError::Corrupt { file, offset: to_u64(offset), damage, dir: self.dir.to_owned() }
    }

    /// Replays one segment. Returns its header and the number of valid bytes.
    fn segment(&mut self, seq: u64, file: &[u8], oldest: bool, newest: bool) -> Result<(Header, usize), OpenError> {
        let header = match Header::decode(file) {
            Ok(header) if header.seq == seq => header,
            Err(BadHeader::Version(found)) => {
                let file = self.dir.join(segment_name(seq));
                return Err(OpenError::Version { file, found, supported: FORMAT_VERSION });
            }
            Ok(_) | Err(BadHeader::Damaged) => return Err(self.corrupt(seq, 0, Damage::Header)),
        };
        // Header and checkpoint were fsynced before the segment was renamed, so they are never a torn tail.
        let checkpoint = format::frame_at(file, header.salt, HEADER_BYTES);
        let Some((body, mut offset)) = checkpoint else {
            return Err(self.corrupt(seq, HEADER_BYTES, Damage::Checkpoint));
        };
        self.checkpoint(body, oldest).map_err(|damage| self.corrupt(seq, HEADER_BYTES, damage))?;
        self.ledger.begin(seq, to_u64(offset));
        while offset < file.len() {
            let Some((body, end)) = format::frame_at(file, header.salt, offset) else {
                self.judge_tail(seq, file, header.salt, offset, newest)?;
                break;
            };
            self.records(body).map_err(|damage| self.corrupt(seq, offset, damage))?;
            self.ledger.grow(to_u64(end - offset));
            offset = end;
        }
        Ok((header, offset))
    }

    /// Handles a bad frame: a torn write if no valid frame follows it anywhere, damage otherwise.
    fn judge_tail(&mut self, seq: u64, file: &[u8], salt: u64, offset: usize, newest: bool) -> Result<(), OpenError> {
        if !newest {
            return Err(self.corrupt(seq, offset, Damage::Middle));
        }
        if let Some(next) = format::find_frame(file, salt, offset + 1) {
            return Err(self.corrupt(seq, offset, Damage::Record { next: to_u64(next) }));
        }
        let file_path = self.dir.join(segment_name(seq));
        self.cut = Some(Cut { file: file_path, offset: to_u64(offset), bytes: to_u64(file.len() - offset) });
        Ok(())
    }

    /// Starts from the checkpoint of the oldest segment; compares that of any other segment with the replayed marks.
    fn checkpoint(&mut self, body: &[u8], oldest: bool) -> Result<(), Damage> {
        let marks = format::decode_checkpoint(body).map_err(|_| Damage::Content)?;
        if oldest {
            self.groups = marks.into_iter().map(|(group, mark)| (group, GroupState::from_mark(mark))).collect();
            return Ok(());
        }
        let same = self.groups.len() == marks.len()
            && marks.iter().all(|(group, mark)| self.groups.get(group).is_some_and(|state| state.mark == *mark));
        if same { Ok(()) } else { Err(Damage::Disagrees) }
    }

    /// Applies the records of a frame.
    fn records(&mut self, body: &[u8]) -> Result<(), Damage> {
        for record in format::decode_records(body).map_err(|_| Damage::Content)? {
            self.groups.entry(record.group()).or_default().apply(&record).map_err(|_| Damage::Content)?;
            self.ledger.note(&record);
        }
        Ok(())
    }
}

/// Prepares the directory for writing: creates it, removes leftovers, and writes and fsyncs the last segment again.
pub(super) fn prepare(dir: &Path, options: &Options, replayed: Replayed) -> Result<Opened, OpenError> {
    let disk = options.disk.as_ref();
    if !replayed.dir_exists {
        disk.create_dir(dir).map_err(|source| OpenError::io("create", dir, source))?;
    }
    let leftovers = disk.list(dir).map_err(|source| OpenError::io("list", dir, source))?.unwrap_or_default();
    for name in leftovers {
        let is_leftover = name.to_str().is_some_and(|name| name.starts_with("log-") && name.ends_with(".seg.tmp"));
        if is_leftover {
            let path = dir.join(name);
            disk.remove(&path).map_err(|source| OpenError::io("remove", &path, source))?;
        }
    }
    let Replayed { groups, mut ledger, cut, last, .. } = replayed;
    let current = if let Some((header, bytes)) = last {
        Current::write(disk, dir, header, &bytes)
            .map_err(|source| OpenError::io("rewrite a segment in", dir, source))?
    } else {
        let current = create_segment(disk, dir, 1, &BTreeMap::new())
            .map_err(|source| OpenError::io("create a segment in", dir, source))?;
        ledger.begin(1, current.bytes());
        current
    };
    if let Some(cut) = &cut {
        tracing::warn!(file = %cut.file.display(), offset = cut.offset, bytes = cut.bytes, "torn log tail cut off");
    }
    Ok(Opened { groups, ledger, cut, current })
}
