//! Snapshot files of a group: format, writing, checking and lookup.
//!
//! ```text
//!  "COVEYSN1"  frame*      frame = length u32, crc32c u32, payload
//!  payload = 0 head | 1 rows: (key length u32, value length u32, key, value)* | 2 end: number of rows
//! ```
//!
//! A file is written under a temporary name, fsynced and renamed, so a file with its final name is complete. Every
//! frame is checked whenever it is read, so a flipped bit is neither installed nor sent. Invariant: [`SnapshotStore::current`]
//! never returns to an older snapshot. A file that was replaced is removed with its last handle.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use covey_types::GroupId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::raft::{SnapshotMeta, decode, encode};
use super::types::StoreError;

const MAGIC: &[u8; 8] = b"COVEYSN1";
const FORMAT: u32 = 1;
const HEAD: u8 = 0;
const ROWS: u8 = 1;
const END: u8 = 2;
/// Bytes from which a frame of rows is complete.
const FRAME_BYTES: usize = 256 << 10;
/// Longest frame in bytes: one row with the largest message.
const MAX_FRAME: usize = 19 << 20;

/// Payload of the first frame.
#[derive(Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) format: u32,
    pub(super) group: GroupId,
    pub(super) meta: SnapshotMeta,
}

/// A complete snapshot on disk.
#[derive(Debug)]
pub(super) struct SnapshotFile {
    /// Last log id and membership that it covers.
    pub(super) meta: SnapshotMeta,
    /// Size of the file in bytes.
    pub(super) bytes: u64,
    path: PathBuf,
    /// Whether the file is removed when this is dropped.
    removed: AtomicBool,
}

impl SnapshotFile {
    /// Returns the index of the last entry that it covers; `None` for a snapshot of an empty group.
    pub(super) fn index(&self) -> Option<u64> {
        self.meta.last_log_id.map(|id| id.index)
    }

    /// Opens the file for reading its frames from the beginning.
    pub(super) fn frames(&self) -> Result<Frames, StoreError> {
        Frames::open(&self.path)
    }

    /// Reads the rows; every frame is checked. Yields an error and ends if a frame is damaged or the end is missing.
    pub(super) fn rows(&self) -> Result<impl Iterator<Item = Result<(Bytes, Bytes), StoreError>> + use<>, StoreError> {
        let mut frames = self.frames()?;
        let mut rows = Bytes::new();
        let mut failed = false;
        Ok(std::iter::from_fn(move || {
            loop {
                if failed {
                    return None;
                }
                if !rows.is_empty() {
                    let row = take_row(&mut rows).ok_or_else(|| StoreError::Damaged { path: frames.path.clone() });
                    failed = row.is_err();
                    return Some(row);
                }
                match frames.next_frame() {
                    Ok(Some(frame)) => rows = frame.rows(),
                    Ok(None) => return None,
                    Err(error) => {
                        failed = true;
                        return Some(Err(error));
                    }
                }
            }
        }))
    }
}

impl Drop for SnapshotFile {
    fn drop(&mut self) {
        if self.removed.load(Ordering::Relaxed)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "failed to remove a snapshot");
        }
    }
}

/// Splits the first row off; `None` if it is truncated.
fn take_row(rows: &mut Bytes) -> Option<(Bytes, Bytes)> {
    let key_len = usize::try_from(rows.try_get_u32().ok()?).ok()?;
    let value_len = usize::try_from(rows.try_get_u32().ok()?).ok()?;
    if rows.len() < key_len.checked_add(value_len)? {
        return None;
    }
    Some((rows.split_to(key_len), rows.split_to(value_len)))
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::File { action, path, source }
}

/// A checked frame, as in the file: length, checksum and payload.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    raw: Bytes,
}

impl Frame {
    /// Returns the frame as it is sent.
    pub(super) fn raw(&self) -> Bytes {
        self.raw.clone()
    }

    /// Checks the bytes of a frame from another node; `None` if length or checksum do not match.
    pub(super) fn parse(raw: Bytes) -> Option<Self> {
        let mut rest = raw.clone();
        let length = usize::try_from(rest.try_get_u32().ok()?).ok()?;
        let checksum = rest.try_get_u32().ok()?;
        let whole = length == rest.len() && !rest.is_empty() && crc32c::crc32c(&rest) == checksum;
        whole.then_some(Self { raw })
    }

    fn new(payload: &[u8]) -> Self {
        let mut raw = BytesMut::with_capacity(payload.len() + 8);
        raw.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        raw.put_u32(crc32c::crc32c(payload));
        raw.put_slice(payload);
        Self { raw: raw.freeze() }
    }

    fn kind(&self) -> Option<u8> {
        self.raw.get(8).copied()
    }

    fn body(&self) -> Bytes {
        self.raw.slice(9.min(self.raw.len())..)
    }

    fn rows(&self) -> Bytes {
        if self.kind() == Some(ROWS) { self.body() } else { Bytes::new() }
    }
}

/// Reads the frames of a file in order.
pub(super) struct Frames {
    reader: BufReader<File>,
    path: PathBuf,
    ended: bool,
}

impl Frames {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(io("open", path))?;
        let mut reader = BufReader::with_capacity(FRAME_BYTES, file);
        let mut magic = [0_u8; 8];
        reader.read_exact(&mut magic).map_err(io("read", path))?;
        if &magic != MAGIC {
            return Err(StoreError::Damaged { path: path.to_owned() });
        }
        Ok(Self { reader, path: path.to_owned(), ended: false })
    }

    /// Returns the next frame; `None` after the end frame.
    ///
    /// # Errors
    /// Returns [`StoreError::Damaged`] for a damaged frame and for a file without an end frame.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, StoreError> {
        if self.ended {
            return Ok(None);
        }
        let damaged = || StoreError::Damaged { path: self.path.clone() };
        let mut lengths = [0_u8; 8];
        self.reader.read_exact(&mut lengths).map_err(|_| damaged())?;
        let length = usize::try_from((&lengths[..]).get_u32()).map_err(|_| damaged())?;
        if length > MAX_FRAME {
            return Err(damaged());
        }
        let mut raw = vec![0; length + 8];
        let (head, payload) = raw.split_at_mut(8);
        head.copy_from_slice(&lengths);
        self.reader.read_exact(payload).map_err(|_| damaged())?;
        let frame = Frame::parse(raw.into()).ok_or_else(damaged)?;
        self.ended = frame.kind() == Some(END);
        Ok(Some(frame))
    }
}

/// Writes the frames of a file under a temporary name. If it is dropped before [`finish`](Self::finish), the file
/// stays until the next start.
pub(super) struct Writer {
    /// The open file.
    out: BufWriter<File>,
    /// Temporary path of the file.
    path: PathBuf,
    /// Bytes of the frames so far, without the magic.
    bytes: u64,
    /// True after the end frame.
    ended: bool,
    /// Content of the head frame; `None` before it.
    meta: Option<SnapshotMeta>,
    /// Id of the group that the snapshot must have.
    group: GroupId,
}

impl Writer {
    /// Returns the error for a damaged frame.
    pub(super) fn damaged(&self) -> StoreError {
        StoreError::Damaged { path: self.path.clone() }
    }

    /// Appends a frame, and checks head, group and order of the frames.
    pub(super) fn frame(&mut self, frame: &Frame) -> Result<(), StoreError> {
        match (frame.kind(), &self.meta) {
            (Some(HEAD), None) => {
                let head: Head = decode(&frame.body()).map_err(|error| StoreError::Decode(error.into()))?;
                if head.format > FORMAT {
                    return Err(StoreError::Newer { found: head.format, known: FORMAT });
                }
                if head.group != self.group {
                    return Err(self.damaged());
                }
                self.meta = Some(head.meta);
            }
            (Some(ROWS), Some(_)) if !self.ended => (),
            (Some(END), Some(_)) if !self.ended => self.ended = true,
            _ => return Err(self.damaged()),
        }
        self.out.write_all(&frame.raw).map_err(io("write", &self.path))?;
        self.bytes = self.bytes.saturating_add(u64::try_from(frame.raw.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Fsyncs the file. It keeps its temporary name, and is removed with its handle unless it is published.
    pub(super) fn finish(self) -> Result<Arc<SnapshotFile>, StoreError> {
        let Self { out, path, bytes, ended, meta, .. } = self;
        let file = SnapshotFile { meta: meta.unwrap_or_default(), bytes, path, removed: AtomicBool::new(true) };
        if !ended {
            return Err(StoreError::Damaged { path: file.path.clone() });
        }
        let out = out.into_inner().map_err(|error| io("write", &file.path)(error.into_error()))?;
        out.sync_all().map_err(io("fsync", &file.path))?;
        Ok(Arc::new(file))
    }
}

/// Snapshot files of one group.
#[derive(Debug)]
pub(super) struct SnapshotStore {
    /// Directory of the files of all groups.
    dir: PathBuf,
    /// Id of the group.
    group: GroupId,
    /// Newest snapshot; `None` if there is none.
    current: Mutex<Option<Arc<SnapshotFile>>>,
    /// Number of the next temporary file.
    temporary: AtomicU64,
    /// Number of snapshots that are being sent.
    sending: AtomicUsize,
}

/// Marks, until it is dropped, that a snapshot is being sent to a peer.
pub(super) struct Sending(Arc<SnapshotStore>);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.sending.fetch_sub(1, Ordering::Relaxed);
    }
}

impl SnapshotStore {
    /// Marks that a snapshot is being sent.
    pub(super) fn sending(self: &Arc<Self>) -> Sending {
        self.sending.fetch_add(1, Ordering::Relaxed);
        Sending(Arc::clone(self))
    }

    /// Returns whether a snapshot is being sent to a peer, which will need the log above it.
    pub(super) fn is_sending(&self) -> bool {
        self.sending.load(Ordering::Relaxed) > 0
    }

    /// Finds the newest snapshot of the group in an existing directory, and removes all other files of the group.
    pub(super) fn open(dir: &Path, group: GroupId) -> Result<Self, StoreError> {
        let prefix = format!("g{}-", group.get());
        let mut newest: Option<SnapshotFile> = None;
        for entry in fs::read_dir(dir).map_err(io("read", dir))? {
            let path = entry.map_err(io("read", dir))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if !name.starts_with(&prefix) {
                continue;
            }
            let found = if path.extension().is_some_and(|extension| extension == "snap") {
                read_head(&path, group)
                    .inspect_err(|error| tracing::warn!(%error, "removing an unusable snapshot"))
                    .ok()
            } else {
                None
            };
            match found {
                Some(found) if newest.as_ref().is_none_or(|newest| found.index() > newest.index()) => {
                    if let Some(older) = newest.replace(found) {
                        older.removed.store(true, Ordering::Relaxed);
                    }
                }
                _ => fs::remove_file(&path).map_err(io("remove", &path))?,
            }
        }
        let current = Mutex::new(newest.map(Arc::new));
        Ok(Self { dir: dir.to_owned(), group, current, temporary: AtomicU64::new(0), sending: AtomicUsize::new(0) })
    }

    /// Returns the newest snapshot; `None` if there is none.
    pub(super) fn current(&self) -> Option<Arc<SnapshotFile>> {
        self.current.lock().clone()
    }

    /// Creates a file under a temporary name.
    pub(super) fn writer(&self) -> Result<Writer, StoreError> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("g{}-{number}.tmp", self.group.get()));
        let file = File::create(&path).map_err(io("create", &path))?;
        let mut out = BufWriter::with_capacity(FRAME_BYTES, file);
        out.write_all(MAGIC).map_err(io("write", &path))?;
        Ok(Writer { out, path, bytes: 0, ended: false, meta: None, group: self.group })
    }

    /// Writes and fsyncs a file with these rows.
    pub(super) fn write(
        &self,
        meta: SnapshotMeta,
        rows: impl Iterator<Item = Result<(Bytes, Bytes), StoreError>>,
    ) -> Result<Arc<SnapshotFile>, StoreError> {
        let decode_error = |error: super::raft::DecodeError| StoreError::Decode(error.into());
        let mut writer = self.writer()?;
        let head = encode(&Head { format: FORMAT, group: self.group, meta }).map_err(decode_error)?;
        writer.frame(&Frame::new(&[&[HEAD], head.as_ref()].concat()))?;
        let mut payload = vec![ROWS];
        let mut count = 0_u64;
        for row in rows {
            let (key, value) = row?;
            payload.put_u32(u32::try_from(key.len()).unwrap_or(u32::MAX));
            payload.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
            payload.put_slice(&key);
            payload.put_slice(&value);
            count = count.saturating_add(1);
            if payload.len() >= FRAME_BYTES {
                writer.frame(&Frame::new(&payload))?;
                payload.truncate(1);
            }
        }
        if payload.len() > 1 {
            writer.frame(&Frame::new(&payload))?;
        }
        let end = encode(&count).map_err(decode_error)?;
        writer.frame(&Frame::new(&[&[END], end.as_ref()].concat()))?;
        writer.finish()
    }

    /// Renames a finished file durably and makes it the current snapshot. If the current one is as new or newer,
    /// returns that one, and the file is dropped.
    pub(super) fn publish(&self, file: &Arc<SnapshotFile>) -> Result<Arc<SnapshotFile>, StoreError> {
        let mut current = self.current.lock();
        if let Some(current) = current.as_ref().filter(|current| current.index() >= file.index()) {
            return Ok(Arc::clone(current));
        }
        let path = self.dir.join(format!("g{}-{:020}.snap", self.group.get(), file.index().unwrap_or(0)));
        fs::rename(&file.path, &path).map_err(io("rename", &file.path))?;
        file.removed.store(false, Ordering::Relaxed);
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(io("fsync", &self.dir))?;
        let published =
            SnapshotFile { meta: file.meta.clone(), bytes: file.bytes, path, removed: AtomicBool::new(false) };
        let published = Arc::new(published);
        if let Some(older) = current.replace(Arc::clone(&published)) {
            older.removed.store(true, Ordering::Relaxed);
        }
        Ok(published)
    }

    /// Removes a snapshot with a damaged file; the next reader makes a new one.
    pub(super) fn discard(&self, damaged: &Arc<SnapshotFile>) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, damaged)) {
            *current = None;
            // Removed at once, since the new snapshot may have the same name.
            if let Err(error) = fs::remove_file(&damaged.path) {
                tracing::warn!(path = %damaged.path.display(), %error, "failed to remove a damaged snapshot");
            }
        }
    }
}

/// Reads the first frame of a file.
fn read_head(path: &Path, group: GroupId) -> Result<SnapshotFile, StoreError> {
    let damaged = || StoreError::Damaged { path: path.to_owned() };
    let frame = Frames::open(path)?.next_frame()?.ok_or_else(damaged)?;
    if frame.kind() != Some(HEAD) {
        return Err(damaged());
    }
    let head: Head = decode(&frame.body()).map_err(|error| StoreError::Decode(error.into()))?;
    if head.format > FORMAT {
        return Err(StoreError::Newer { found: head.format, known: FORMAT });
    }
    if head.group != group {
        return Err(damaged());
    }
    let bytes = fs::metadata(path).map_err(io("read", path))?.len();
    Ok(SnapshotFile { meta: head.meta, bytes, path: path.to_owned(), removed: AtomicBool::new(false) })
}
