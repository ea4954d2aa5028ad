//! The writer thread: the only code that changes the log after it was opened.
//!
//! It takes what is queued, writes one frame, syncs, notes what is durable, runs the callbacks, and between batches
//! starts new segments and unlinks old ones. Invariant: the first failure is the last operation; it marks the log
//! failed, calls [`Options::on_fatal`], and answers everybody with the error.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::time::Instant;

use super::disk::{Disk, DiskFile};
use super::format::{FrameBuffer, HEADER_BYTES, Header};
use super::group::Mark;
use super::{Error, Options, Record, Shared, Submission, segment_name, temporary_path};

/// The segment that is being written.
#[derive(Debug)]
pub(super) struct Current {
    file: Box<dyn DiskFile>,
    header: Header,
    bytes: u64,
}

impl Current {
    /// Writes a segment under a temporary name, syncs it, and gives it its name durably.
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
                // On a full disk the litter would be missed; what stays is removed at the next start.
                if let Err(error) = disk.remove(&temporary) {
                    tracing::debug!(%error, "half-written segment stays until the next start");
                }
                Err(error)
            }
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Makes an empty segment that begins with a checkpoint.
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

/// What the writer does next.
enum Work {
    Write(Vec<Submission>),
    Unlink(u64),
    Stop,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    dir: PathBuf,
    options: Options,
    current: Current,
    /// What a checkpoint at this point of the log says.
    marks: BTreeMap<u16, Mark>,
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

    pub(super) fn run(mut self) {
        // A panic in a callback must not leave the groups waiting for an fsync that nobody will do.
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

    /// Waits until there is something to do. Submissions come before housekeeping, one unlink at a time between them.
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

    fn note<'a>(&self, records: impl Iterator<Item = &'a Record>, bytes: u64) {
        let mut ledger = self.shared.ledger.lock();
        ledger.grow(bytes);
        records.for_each(|record| ledger.note(record));
    }

    fn roll(&mut self) -> io::Result<()> {
        let seq = self.current.header.seq.saturating_add(1);
        self.current = create_segment(self.options.disk.as_ref(), &self.dir, seq, &self.marks)?;
        self.shared.ledger.lock().begin(seq, self.current.bytes);
        Ok(())
    }

    /// Unlinks what was purged meanwhile: under lasting load no other time comes for it.
    fn unlink_purged(&self) -> Result<(), Error> {
        loop {
            let removable = self.shared.ledger.lock().removable();
            match removable {
                Some(seq) => self.unlink(seq)?,
                None => return Ok(()),
            }
        }
    }

    /// Unlinks the oldest segment. The directory is synced each time, so that a crash cannot bring back an older
    /// segment without those behind it.
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

/// Marks the log failed and answers everybody. The hook comes first: the process ends before anyone hears more.
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
