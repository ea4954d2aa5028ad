//! The writer thread: the only code that changes an opened log.
//!
//! It takes what is queued, writes one frame, fsyncs, records what is durable, and runs the callbacks. Between batches
//! it starts new segments and unlinks old ones. Invariant: it stops at the first failure. It marks the log as failed,
//! calls [`Options::on_fatal`], and answers all submissions with the error.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::time::Instant;

use super::disk::{Disk, DiskFile};
use super::format::{FrameBuffer, HEADER_BYTES, Header};
use super::group::Mark;
use super::{Error, Options, Record, Shared, Submission, segment_name, temporary_path};

/// Segment to which the writer appends.
#[derive(Debug)]
pub(super) struct Current {
    /// The open file.
    file: Box<dyn DiskFile>,
    /// Number and salt of the segment.
    header: Header,
    /// Size of the file in bytes.
    bytes: u64,
}

impl Current {
    /// Writes a segment under a temporary name, fsyncs and renames it durably.
    pub(super) fn write(disk: &dyn Disk, dir: &Path, header: Header, bytes: &[u8]) -> io::Result<Self> {
        let temporary = temporary_path(dir, header.seq);
        let write = || {
            let mut file = disk.create(&temporary)?;
            file.append(bytes)?;
            file.sync()?;
            disk.rename(&temporary, &dir.join(segment_name(header.seq)))?;
            disk.sync_dir(dir)?;
            Ok(file)
        };
        match write() {
            Ok(file) => Ok(Self { file, header, bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX) }),
            Err(error) => {
                // On a full disk the space would be missed. A file that stays is removed at the next start.
                if let Err(error) = disk.remove(&temporary) {
                    tracing::debug!(%error, "half-written segment stays until the next start");
                }
                Err(error)
            }
        }
    }

    /// Returns the size of the file in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Creates a segment that contains only a checkpoint.
pub(super) fn create_segment(
    disk: &dyn Disk,
    dir: &Path,
    seq: u64,
    marks: &BTreeMap<u16, Mark>,
) -> io::Result<Current> {
    let header = Header { seq, salt: rand::random() };
    let mut frame = FrameBuffer::default();
    frame.clear();
    let marks: Vec<_> = marks.iter().collect();
    frame.push(&marks).map_err(io::Error::other)?;
    let mut bytes = header.encode();
    let offset = u64::try_from(HEADER_BYTES).unwrap_or(u64::MAX);
    bytes.extend_from_slice(frame.finish(header.salt, offset).ok_or(io::ErrorKind::FileTooLarge)?);
    Current::write(disk, dir, header, &bytes)
}

/// Next action of the writer.
enum Work {
    /// Write these submissions as one frame.
    Write(Vec<Submission>),
    /// Unlink the segment with this number.
    Unlink(u64),
    /// End the thread.
    Stop,
}

/// State of the writer thread.
pub(super) struct Writer {
    /// Queue and segments.
    shared: Arc<Shared>,
    /// Directory of the log.
    dir: PathBuf,
    /// Options of the log.
    options: Options,
    /// Segment to which it appends.
    current: Current,
    /// Marks of every group after the last written record: the content of a checkpoint at this point.
    marks: BTreeMap<u16, Mark>,
    /// Buffer of the frame.
    frame: FrameBuffer,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        dir: PathBuf,
        options: Options,
        current: Current,
        marks: BTreeMap<u16, Mark>,
    ) -> Self {
        Self { shared, dir, options, current, marks, frame: FrameBuffer::default() }
    }

    /// Runs until the log is closed or fails.
    pub(super) fn run(mut self) {
        // After a panic in a callback the groups must not wait for an fsync that will never happen.
        let guard = PanicGuard { shared: Arc::clone(&self.shared), options: self.options.clone() };
        loop {
            let result = match self.next_work() {
                Work::Write(batch) => match self.write(&batch) {
                    Ok(()) => {
                        for submission in batch {
                            submission.finish(Ok(()));
                        }
                        Ok(())
                    }
                    Err(error) => Err((error, batch)),
                },
                Work::Unlink(seq) => self.unlink(seq).map_err(|error| (error, Vec::new())),
                Work::Stop => break,
            };
            if let Err((error, batch)) = result {
                fail(&self.shared, &self.options, &error, batch);
                break;
            }
        }
        drop(guard);
    }

    /// Waits for work. Submissions take precedence over unlinking, which is done one segment at a time.
    fn next_work(&self) -> Work {
        let removable = self.shared.ledger.lock().removable();
        let mut state = self.shared.state.lock();
        loop {
            if !state.queue.is_empty() {
                let mut batch = Vec::new();
                let mut bytes = 0_usize;
                while bytes < self.options.batch_bytes
                    && let Some(submission) = state.queue.pop_front()
                {
                    bytes = bytes.saturating_add(submission.bytes);
                    batch.push(submission);
                }
                return Work::Write(batch);
            }
            if let Some(seq) = removable {
                return Work::Unlink(seq);
            }
            if state.closing {
                let records = state.take_lazy();
                if records.is_empty() {
                    return Work::Stop;
                }
                return Work::Write(vec![Submission { records, bytes: 0, done: None }]);
            }
            self.shared.work.wait(&mut state);
        }
    }

    fn write(&mut self, batch: &[Submission]) -> Result<(), Error> {
        if self.current.bytes >= self.options.segment_bytes {
            self.roll().map_err(|source| failed("start a segment of", source))?;
            self.unlink_purged()?;
        }
        self.frame.clear();
        for record in batch.iter().flat_map(|submission| &submission.records) {
            self.frame.push(record).map_err(|source| failed("encode", io::Error::other(source)))?;
            self.marks.entry(record.group()).or_default().step(record)?;
        }
        let frame = self.frame.finish(self.current.header.salt, self.current.bytes);
        let frame = frame.ok_or_else(|| failed("encode", io::ErrorKind::FileTooLarge.into()))?;
        self.current.file.append(frame).map_err(|source| failed("write", source))?;
        let started = Instant::now();
        self.current.file.sync().map_err(|source| failed("sync", source))?;
        (self.options.on_sync)(started.elapsed());
        let written = u64::try_from(frame.len()).unwrap_or(u64::MAX);
        self.current.bytes = self.current.bytes.saturating_add(written);
        self.frame.shrink(self.options.batch_bytes.saturating_mul(2));
        self.note(batch.iter().flat_map(|submission| &submission.records), written);
        Ok(())
    }

    /// Records what is durable.
    fn note<'a>(&self, records: impl Iterator<Item = &'a Record>, bytes: u64) {
        let mut ledger = self.shared.ledger.lock();
        ledger.grow(bytes);
        records.for_each(|record| ledger.note(record));
    }

    /// Starts a new segment.
    fn roll(&mut self) -> io::Result<()> {
        let seq = self.current.header.seq.saturating_add(1);
        self.current = create_segment(self.options.disk.as_ref(), &self.dir, seq, &self.marks)?;
        self.shared.ledger.lock().begin(seq, self.current.bytes);
        Ok(())
    }

    /// Unlinks all removable segments. Under constant load the writer has no other opportunity.
    fn unlink_purged(&self) -> Result<(), Error> {
        loop {
            let removable = self.shared.ledger.lock().removable();
            match removable {
                Some(seq) => self.unlink(seq)?,
                None => return Ok(()),
            }
        }
    }

    /// Unlinks the oldest segment. The directory is fsynced each time, so that a crash cannot restore an older segment
    /// without the following ones.
    fn unlink(&self, seq: u64) -> Result<(), Error> {
        let disk = self.options.disk.as_ref();
        disk.remove(&self.dir.join(segment_name(seq))).map_err(|source| failed("remove a segment of", source))?;
        disk.sync_dir(&self.dir).map_err(|source| failed("remove a segment of", source))?;
        self.shared.ledger.lock().remove_oldest();
        Ok(())
    }
}

fn failed(operation: &'static str, source: io::Error) -> Error {
    Error::Failed { operation, source: Arc::new(source) }
}

/// Marks the log as failed and answers all submissions. The hook is called first, so that the process ends before a
/// caller sees the error.
fn fail(shared: &Shared, options: &Options, error: &Error, batch: Vec<Submission>) {
    let queued = {
        let mut state = shared.state.lock();
        state.failed = Some(error.clone());
        std::mem::take(&mut state.queue)
    };
    tracing::error!(%error, "the log failed");
    (options.on_fatal)(error);
    for submission in batch.into_iter().chain(queued) {
        submission.finish(Err(error.clone()));
    }
}

/// Marks the log as failed if the writer panics.
struct PanicGuard {
    shared: Arc<Shared>,
    options: Options,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = failed("serve", io::Error::other("the writer panicked"));
            fail(&self.shared, &self.options, &error, Vec::new());
        }
    }
}
