//! Adapters: the state machines of `covey-core` for the Raft groups, shared with the node, which reads
//! them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use covey_core::shard::{Effect, Entry, Outcome};
use covey_core::{meta, retained, shard};
use covey_raft::{Rows, StateMachine, StoreError};
use covey_types::{NodeId, Ordinal};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, watch};

use super::channel::tell;
use super::membership::Roster;

/// Writes rows of `covey-core` into the runtime's batch.
struct Batch<'a>(&'a mut Rows);

impl covey_core::Rows for Batch<'_> {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.0.put(key, value);
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.0.delete(key);
    }
}

type Stored<'a> = &'a mut dyn Iterator<Item = Result<(Bytes, Bytes), StoreError>>;

/// Returns all rows, or the first error.
fn collect(rows: Stored<'_>) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, StoreError> {
    rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
}

fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Decode(Box::new(error))
}

/// State of a shard, shared by the group, which applies entries, and the leader, which delivers.
#[derive(Debug)]
pub(super) struct SharedShard {
    /// The state machine.
    pub state: Mutex<shard::ShardState>,
    /// To the shard's leader: effects of entries whose rows are written.
    effects: mpsc::UnboundedSender<Vec<Effect>>,
}

impl SharedShard {
    /// Returns an empty shard and the receiver of its effects.
    pub(super) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Vec<Effect>>) {
        let (effects, receiver) = mpsc::unbounded_channel();
        (Arc::new(Self { state: Mutex::default(), effects }), receiver)
    }
}

/// Applies entries to a [`SharedShard`].
#[derive(Debug)]
pub(super) struct ShardMachine(pub Arc<SharedShard>);

impl StateMachine for ShardMachine {
    fn apply(&mut self, _index: u64, command: &Bytes, rows: &mut Rows) -> Result<Bytes, StoreError> {
        let entry = Entry::decode(command).map_err(unreadable)?;
        let outcomes: Vec<Outcome> = self.0.state.lock().apply(entry, &mut Batch(rows));
        Ok(covey_core::encode(&outcomes).into())
    }

    fn written(&mut self) {
        let effects = self.0.state.lock().take_effects();
        if !effects.is_empty() {
            tell(&self.0.effects, effects);
        }
    }

    fn load(&mut self, _applied: u64, rows: Stored<'_>) -> Result<(), StoreError> {
        // Bodies are read when they are sent, so that a backlog need not fit into memory.
        let mut but_bodies = rows.filter(|row| !matches!(row, Ok((key, _)) if key.first() == Some(&b'b')));
        let state = shard::ShardState::restore(collect(&mut but_bodies)?).map_err(unreadable)?;
        *self.0.state.lock() = state;
        Ok(())
    }
}

/// State of the meta group; read for every publish.
#[derive(Debug)]
pub(super) struct SharedMeta {
    /// The state machine.
    pub state: RwLock<meta::MetaState>,
    /// Incremented after each entry.
    version: watch::Sender<u64>,
}

impl SharedMeta {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: RwLock::default(), version: watch::channel(0).0 })
    }

    /// Returns the members that were not removed, by ordinal.
    pub(super) fn members_by_ordinal(&self) -> BTreeMap<Ordinal, NodeId> {
        let state = self.state.read();
        state.present_members().map(|(node, member)| (member.ordinal, node)).collect()
    }

    /// Returns the members that were not removed, and which of them retire.
    pub(super) fn roster(&self) -> Roster {
        Roster::of(&self.state.read())
    }

    /// Returns a receiver that is notified after every applied entry.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

/// Applies entries to [`SharedMeta`].
#[derive(Debug)]
pub(super) struct MetaMachine(pub Arc<SharedMeta>);

impl StateMachine for MetaMachine {
    fn apply(&mut self, index: u64, command: &Bytes, rows: &mut Rows) -> Result<Bytes, StoreError> {
        let command = meta::Command::decode(command).map_err(unreadable)?;
        Ok(self.0.state.write().apply(index, command, &mut Batch(rows)).encode())
    }

    fn written(&mut self) {
        self.0.version.send_modify(|version| *version += 1);
    }

    fn load(&mut self, _applied: u64, rows: Stored<'_>) -> Result<(), StoreError> {
        let state = meta::MetaState::restore(collect(rows)?).map_err(unreadable)?;
        *self.0.state.write() = state;
        self.written();
        Ok(())
    }
}

/// State of the retained group.
#[derive(Debug)]
pub(super) struct SharedRetained {
    /// The state machine.
    pub state: RwLock<retained::RetainedState>,
    /// Most bytes of retained messages.
    limit: u64,
}

impl SharedRetained {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { state: RwLock::new(retained::RetainedState::new(limit)), limit })
    }
}

/// Applies entries to [`SharedRetained`].
#[derive(Debug)]
pub(super) struct RetainedMachine(pub Arc<SharedRetained>);

impl StateMachine for RetainedMachine {
    fn apply(&mut self, index: u64, command: &Bytes, rows: &mut Rows) -> Result<Bytes, StoreError> {
        let entry = retained::Entry::decode(command).map_err(unreadable)?;
        let outcomes = self.0.state.write().apply(index, entry, &mut Batch(rows));
        Ok(covey_core::encode(&outcomes).into())
    }

    fn written(&mut self) {}

    fn load(&mut self, _applied: u64, rows: Stored<'_>) -> Result<(), StoreError> {
        let state = retained::RetainedState::restore(self.0.limit, collect(rows)?).map_err(unreadable)?;
        *self.0.state.write() = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_cannot_be_read_is_an_error_and_changes_nothing() {
        let machines: [Box<dyn StateMachine>; 3] = [
            Box::new(ShardMachine(SharedShard::new().0)),
            Box::new(MetaMachine(SharedMeta::new())),
            Box::new(RetainedMachine(SharedRetained::new(1 << 20))),
        ];
        for mut machine in machines {
            let mut rows = Rows::new();
            let newer = Bytes::from_static(&[0xff; 16]);
            assert!(machine.apply(1, &newer, &mut rows).is_err());
            assert!(rows.is_empty());
        }
    }
}
