//! Applied state of all groups, in one fjall database per node.
//!
//! Each group has one keyspace: its rows, and a mark with the applied log id and the membership, written in the same
//! batch. Batches are not fsynced; a restart replays the log above the mark. Installing a snapshot fills a new
//! keyspace and switches to it in one batch with one fsync, so after a crash the group has either the old state or the
//! new one.

use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use covey_types::GroupId;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use super::raft::{LogId, StoredMembership, decode, encode};
use super::types::StoreError;

/// Key of the mark.
const MARK: &[u8] = &[0];
/// First byte of the key of each row.
const ROW: u8 = 1;
/// Bytes of rows from which a batch of an installed snapshot is complete.
const INSTALL_BATCH: usize = 1 << 20;

/// Position of a group in its log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Id of the last applied entry; `None` before the first.
    pub(super) applied: Option<LogId>,
    /// Last applied membership.
    pub(super) membership: StoredMembership,
}

/// Bytes of a group in memory before they are written to sorted files. Kept small, since a node has ten groups by
/// default.
const MEMTABLE: u64 = 8 << 20;

/// State store of the node.
#[derive(Clone)]
pub(super) struct StateStore {
    /// The database.
    database: Database,
    /// Number of the current keyspace of each group.
    catalog: Keyspace,
    /// Dropped with the last clone, when the database is closed.
    _alive: tokio::sync::mpsc::Sender<()>,
}

impl StateStore {
    /// Opens or creates the store; `alive` is dropped with the last handle.
    pub(super) fn open(dir: &Path, alive: tokio::sync::mpsc::Sender<()>) -> Result<Self, StoreError> {
        let database = Database::builder(dir).open()?;
        let catalog = database.keyspace("catalog", keyspace_options)?;
        Ok(Self { database, catalog, _alive: alive })
    }

    /// Opens the state of a group, and removes keyspaces that an interrupted installation left.
    pub(super) fn group(&self, group: GroupId) -> Result<GroupStore, StoreError> {
        let current = self.generation(group)?;
        let prefix = format!("g{}-", group.get());
        let mut highest = current;
        for name in self.database.list_keyspace_names() {
            let generation = name.strip_prefix(prefix.as_str()).and_then(|text| text.parse::<u64>().ok());
            if let Some(generation) = generation.filter(|generation| *generation != current) {
                highest = highest.max(generation);
                let stale = self.database.keyspace(&name, keyspace_options)?;
                self.database.delete_keyspace(stale)?;
            }
        }
        let rows = self.database.keyspace(&keyspace_name(group, current), keyspace_options)?;
        Ok(GroupStore { store: self.clone(), group, rows: RwLock::new(rows), highest: Mutex::new(highest) })
    }

    /// Returns the number of the group's current keyspace; 0 before the first installation.
    fn generation(&self, group: GroupId) -> Result<u64, StoreError> {
        let Some(raw) = self.catalog.get(group.get().to_be_bytes())? else { return Ok(0) };
        decode(&raw).map_err(|error| StoreError::Decode(error.into()))
    }
}

fn keyspace_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE)
}

fn keyspace_name(group: GroupId, generation: u64) -> String {
    format!("g{}-{generation}", group.get())
}

fn row_key(key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(key.len() + 1);
    full.push(ROW);
    full.extend_from_slice(key);
    full
}

/// State of one group.
pub(super) struct GroupStore {
    /// The store of the node.
    store: StateStore,
    /// Id of the group.
    group: GroupId,
    /// Current keyspace.
    rows: RwLock<Keyspace>,
    /// Highest number that a keyspace of this group had. Locked while a snapshot is installed.
    highest: Mutex<u64>,
}

impl GroupStore {
    fn keyspace(&self) -> Keyspace {
        self.rows.read().clone()
    }

    /// Returns the group's position in its log.
    pub(super) fn mark(&self) -> Result<Mark, StoreError> {
        read_mark(self.keyspace().get(MARK)?.as_deref())
    }

    /// Writes changes and mark in one batch, without an fsync.
    pub(super) fn commit(&self, changes: BTreeMap<Vec<u8>, Option<Bytes>>, mark: &Mark) -> Result<(), StoreError> {
        let rows = self.keyspace();
        let mut batch = self.store.database.batch();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&rows, row_key(&key), value),
                None => batch.remove(&rows, row_key(&key)),
            }
        }
        batch.insert(&rows, MARK, encode_mark(mark)?);
        Ok(batch.commit()?)
    }

    /// Returns a consistent view of the present state.
    pub(super) fn view(&self) -> View {
        View { rows: self.keyspace(), snapshot: self.store.database.snapshot() }
    }

    /// Fsyncs everything committed so far, of all groups.
    pub(super) fn persist(&self) -> Result<(), StoreError> {
        Ok(self.store.database.persist(PersistMode::SyncAll)?)
    }

    /// Replaces rows and mark. Durable when it returns.
    pub(super) fn install(
        &self,
        new_rows: &mut dyn Iterator<Item = Result<(Bytes, Bytes), StoreError>>,
        mark: &Mark,
    ) -> Result<(), StoreError> {
        let database = &self.store.database;
        let mut highest = self.highest.lock();
        let generation = highest.saturating_add(1);
        *highest = generation;
        let fresh = database.keyspace(&keyspace_name(self.group, generation), keyspace_options)?;
        let mut batch = database.batch();
        let mut bytes = 0_usize;
        for row in new_rows {
            let (key, value) = row?;
            bytes = bytes.saturating_add(key.len()).saturating_add(value.len());
            batch.insert(&fresh, row_key(&key), value);
            if bytes >= INSTALL_BATCH {
                std::mem::replace(&mut batch, database.batch()).commit()?;
                bytes = 0;
            }
        }
        batch.insert(&fresh, MARK, encode_mark(mark)?);
        let number = encode(&generation).map_err(|error| StoreError::Decode(error.into()))?;
        batch.insert(&self.store.catalog, self.group.get().to_be_bytes().to_vec(), number);
        batch.commit()?;
        self.persist()?;
        let old = std::mem::replace(&mut *self.rows.write(), fresh);
        database.delete_keyspace(old)?;
        Ok(())
    }
}

fn read_mark(raw: Option<&[u8]>) -> Result<Mark, StoreError> {
    raw.map_or_else(|| Ok(Mark::default()), |raw| decode(raw).map_err(|error| StoreError::Decode(error.into())))
}

fn encode_mark(mark: &Mark) -> Result<Bytes, StoreError> {
    encode(mark).map_err(|error| StoreError::Decode(error.into()))
}

/// A consistent view of a group's state.
pub(super) struct View {
    rows: Keyspace,
    snapshot: fjall::Snapshot,
}

impl View {
    /// Returns the group's position in its log.
    pub(super) fn mark(&self) -> Result<Mark, StoreError> {
        read_mark(self.snapshot.get(&self.rows, MARK)?.as_deref())
    }

    /// All rows in key order.
    pub(super) fn rows(&self) -> RowIter {
        RowIter { inner: self.snapshot.prefix(&self.rows, [ROW]) }
    }
}

/// Reads the applied rows of a group.
#[derive(Clone)]
pub struct RowReader {
    group: Arc<GroupStore>,
}

impl RowReader {
    pub(super) fn new(group: Arc<GroupStore>) -> Self {
        Self { group }
    }

    /// Returns the value of a key; `None` if there is no such row.
    ///
    /// # Errors
    /// Returns [`StoreError`] if the store cannot be read.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.group.keyspace().get(row_key(key))?.map(Bytes::from))
    }

    /// Rows whose key begins with `prefix`, in key order, as of this call.
    pub fn prefix(&self, prefix: &[u8]) -> RowIter {
        RowIter { inner: self.group.keyspace().prefix(row_key(prefix)) }
    }

    /// Rows in a range of keys, in key order, as of this call.
    pub fn range(&self, range: impl RangeBounds<Vec<u8>>) -> RowIter {
        let start = match range.start_bound() {
            Bound::Included(key) => Bound::Included(row_key(key)),
            Bound::Excluded(key) => Bound::Excluded(row_key(key)),
            Bound::Unbounded => Bound::Included(vec![ROW]),
        };
        let end = match range.end_bound() {
            Bound::Included(key) => Bound::Included(row_key(key)),
            Bound::Excluded(key) => Bound::Excluded(row_key(key)),
            Bound::Unbounded => Bound::Excluded(vec![ROW.saturating_add(1)]),
        };
        RowIter { inner: self.group.keyspace().range::<Vec<u8>, _>((start, end)) }
    }
}

impl std::fmt::Debug for RowReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowReader").field("group", &self.group.group).finish_non_exhaustive()
    }
}

/// Rows in key order, as of one point in time.
pub struct RowIter {
    inner: fjall::Iter,
}

impl std::fmt::Debug for RowIter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowIter").finish_non_exhaustive()
    }
}

impl Iterator for RowIter {
    type Item = Result<(Bytes, Bytes), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let guard = self.inner.next()?;
        Some(guard.into_inner().map_err(StoreError::from).map(|(key, value)| {
            let key = Bytes::from(key);
            (key.slice(1.min(key.len())..), Bytes::from(value))
        }))
    }
}
