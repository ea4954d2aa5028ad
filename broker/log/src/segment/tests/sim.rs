//! A simulated disk in memory that tracks what was fsynced. It can fail, tear writes and lose unsynced data.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::segment::{Disk, DiskFile};

/// Effect of a power cut on data that was written and not fsynced.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unsynced {
    /// All bytes and names are lost.
    Lost,
    /// All bytes are lost. Of the removed names the first one is back; the others stay removed.
    FirstNameBack,
    /// Nothing is lost (the process died, the machine did not).
    Kept,
    /// This many bytes per file are kept, and all names.
    Prefix(usize),
    /// Lengths and names are kept, but every n-th block of 16 bytes reads as zeros.
    Holes(usize),
}

/// A file.
#[derive(Clone, Debug, Default)]
struct Inode {
    /// Content as the process sees it.
    cached: Vec<u8>,
    /// Content that was fsynced.
    durable: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    /// Directory as the process sees it.
    names: BTreeMap<PathBuf, usize>,
    /// Directory that was fsynced.
    durable_names: BTreeMap<PathBuf, usize>,
    inodes: Vec<Inode>,
    /// Number of operations so far that change something.
    operations: usize,
    /// Operation at which the power is cut: it and all later ones fail.
    cut_at: Option<usize>,
    /// Error of every fsync of a file, if set.
    fail_sync: Option<i32>,
    /// Bytes that every append writes before it fails with this error, if set.
    fail_append: Option<(usize, i32)>,
    /// Number of power cuts. Files that were opened before the last one fail.
    generation: usize,
    /// Number of fsyncs of files.
    syncs: usize,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Sim(Arc<Mutex<State>>);

impl State {
    fn operation(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.cut_at {
            Some(at) if self.operations > at => Err(io::Error::other("no power")),
            _ => Ok(()),
        }
    }
}

impl Sim {
    pub(super) fn operations(&self) -> usize {
        self.0.lock().operations
    }

    pub(super) fn syncs(&self) -> usize {
        self.0.lock().syncs
    }

    /// Lets this many further operations succeed.
    pub(super) fn cut_after(&self, operations: usize) {
        let mut state = self.0.lock();
        state.cut_at = Some(state.operations + operations);
    }

    /// Makes every further fsync of a file fail with this error.
    pub(super) fn fail_sync(&self, errno: i32) {
        self.0.lock().fail_sync = Some(errno);
    }

    /// Makes every further append write `after` bytes and then fail with this error.
    pub(super) fn fail_append(&self, after: usize, errno: i32) {
        self.0.lock().fail_append = Some((after, errno));
    }

    /// Ends all faults.
    pub(super) fn heal(&self) {
        let mut state = self.0.lock();
        state.fail_sync = None;
        state.fail_append = None;
    }

    /// Returns the disk after a power cut, without faults. The old one fails from now on.
    pub(super) fn crash(&self, unsynced: Unsynced) -> Self {
        let mut state = self.0.lock();
        state.generation += 1;
        let mut names = if matches!(unsynced, Unsynced::Lost) { &state.durable_names } else { &state.names }.clone();
        if matches!(unsynced, Unsynced::FirstNameBack)
            && let Some((name, inode)) = state.durable_names.iter().find(|(name, _)| !names.contains_key(*name))
        {
            names.insert(name.clone(), *inode);
        }
        let survive = |inode: &Inode| {
            let synced = inode.durable.len();
            let mut bytes = inode.cached.clone();
            match unsynced {
                Unsynced::Lost | Unsynced::FirstNameBack => bytes.truncate(synced),
                Unsynced::Kept => {}
                Unsynced::Prefix(count) => bytes.truncate(synced + count),
                Unsynced::Holes(nth) => {
                    for block in bytes[synced..].chunks_mut(16).skip(nth % 2).step_by(nth.max(1)) {
                        block.fill(0);
                    }
                }
            }
            Inode { durable: bytes.clone(), cached: bytes }
        };
        let after = State {
            durable_names: names.clone(),
            names,
            inodes: state.inodes.iter().map(survive).collect(),
            ..State::default()
        };
        Self(Arc::new(Mutex::new(after)))
    }

    /// Returns all files with their content.
    pub(super) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.0.lock();
        state.names.iter().map(|(path, inode)| (path.clone(), state.inodes[*inode].cached.clone())).collect()
    }

    /// Creates or replaces a file durably.
    pub(super) fn put(&self, path: &Path, bytes: Vec<u8>) {
        let mut state = self.0.lock();
        let inode = state.inodes.len();
        state.inodes.push(Inode { durable: bytes.clone(), cached: bytes });
        state.names.insert(path.to_owned(), inode);
        state.durable_names.insert(path.to_owned(), inode);
    }

    pub(super) fn delete(&self, path: &Path) {
        let mut state = self.0.lock();
        state.names.remove(path);
        state.durable_names.remove(path);
    }
}

impl Disk for Sim {
    fn list(&self, dir: &Path) -> io::Result<Option<Vec<OsString>>> {
        let state = self.0.lock();
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        let names: Vec<_> = inside.filter_map(|path| path.file_name()).map(ToOwned::to_owned).collect();
        Ok((!names.is_empty()).then_some(names))
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        self.0.lock().operation()
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.0.lock();
        let inode = state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(state.inodes[*inode].cached.clone())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.0.lock();
        state.operation()?;
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.names.insert(path.to_owned(), inode);
        Ok(Box::new(SimFile { sim: self.clone(), inode, generation: state.generation }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.operation()?;
        let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.operation()?;
        state.names.remove(path).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.operation()?;
        state.durable_names = state.names.clone();
        Ok(())
    }
}

#[derive(Debug)]
struct SimFile {
    sim: Sim,
    inode: usize,
    generation: usize,
}

impl SimFile {
    fn alive(&self, state: &State) -> io::Result<()> {
        if state.generation == self.generation { Ok(()) } else { Err(io::Error::other("no power")) }
    }
}

impl DiskFile for SimFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.sim.0.lock();
        self.alive(&state)?;
        let cut = state.operation();
        if let Some((after, errno)) = state.fail_append {
            let some = &bytes[..after.min(bytes.len())];
            state.inodes[self.inode].cached.extend_from_slice(some);
            return Err(io::Error::from_raw_os_error(errno));
        }
        // A write in progress at the power cut has reached the cache.
        state.inodes[self.inode].cached.extend_from_slice(bytes);
        cut
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.sim.0.lock();
        self.alive(&state)?;
        state.operation()?;
        if let Some(errno) = state.fail_sync {
            return Err(io::Error::from_raw_os_error(errno));
        }
        state.syncs += 1;
        let inode = &mut state.inodes[self.inode];
        inode.durable = inode.cached.clone();
        Ok(())
    }
}
