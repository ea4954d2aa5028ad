//! A disk in memory that knows what was synced: it can fail, tear and forget.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::segment::{Disk, DiskFile};

/// What a power cut leaves of bytes that were written and not synced.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unsynced {
    /// Nothing, neither bytes nor names.
    Lost,
    /// No bytes; of the names that were removed the first comes back, the others are gone.
    FirstNameBack,
    /// Everything (the machine lived on, the process died).
    Kept,
    /// So many bytes per file; names are kept.
    Prefix(usize),
    /// All lengths, but every n-th block of 16 bytes reads as zeros; names are kept.
    Holes(usize),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    cached: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    inodes: Vec<Inode>,
    /// Operations that change something, so far.
    operations: usize,
    /// The power is cut at this operation: it and all later ones fail.
    cut_at: Option<usize>,
    fail_sync: Option<i32>,
    fail_append: Option<(usize, i32)>,
    /// Counts power cuts: a file opened before one is dead.
    generation: usize,
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

    /// Lets so many more operations succeed.
    pub(super) fn cut_after(&self, operations: usize) {
        let mut state = self.0.lock();
        state.cut_at = Some(state.operations + operations);
    }

    /// From now on every fsync of a file fails with an error of the system.
    pub(super) fn fail_sync(&self, errno: i32) {
        self.0.lock().fail_sync = Some(errno);
    }

    /// From now on every append writes only so many bytes and fails with an error of the system.
    pub(super) fn fail_append(&self, after: usize, errno: i32) {
        self.0.lock().fail_append = Some((after, errno));
    }

    /// Ends the faults.
    pub(super) fn heal(&self) {
        let mut state = self.0.lock();
        state.fail_sync = None;
        state.fail_append = None;
    }

    /// The disk after a power cut, healthy again. The old one is dead.
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

    /// Every file with its content.
    pub(super) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.0.lock();
        state.names.iter().map(|(path, inode)| (path.clone(), state.inodes[*inode].cached.clone())).collect()
    }

    /// Replaces or makes a file, durably.
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
        // A write under way when the power goes has reached the cache.
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
