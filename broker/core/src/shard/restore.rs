//! Rows: what an entry changed is written at its end, and the state is restored from all rows at start.

use covey_types::{InboxSeq, NodeId};

use super::command::Will;
use super::session::{Awaiting, Counters, Inbox, Profile, Receiving, Session, Slot};
use super::state::{Dirty, Header, Sender, ShardState};
use crate::rows::{self, Rows, Unreadable};
use crate::topic::Filter;

impl ShardState {
    /// Writes the rows of what the entry changed. Slots, bodies, wills and exactly-once state are written where they
    /// change.
    pub(super) fn write_dirty(&mut self, rows: &mut dyn Rows) {
        rows.put(rows::key(b'm', &[]), rows::encode(&self.header));
        let dirty = std::mem::take(&mut self.dirty);
        for id in dirty.profiles {
            if let Some(session) = self.sessions.get(&id) {
                rows.put(rows::key(b's', &[id]), rows::encode(&session.profile));
            }
        }
        for id in dirty.counters {
            if let Some(session) = self.sessions.get(&id) {
                rows.put(rows::key(b'n', &[id]), rows::encode(&session.inbox.counters));
            }
        }
        for id in dirty.receiving {
            if let Some(session) = self.sessions.get(&id) {
                rows.put(rows::key(b'q', &[id]), rows::encode(&session.receiving));
            }
        }
        for id in dirty.awaiting {
            match self.sessions.get(&id) {
                Some(session) if !session.awaiting.is_empty() => {
                    rows.put(rows::key(b'a', &[id]), rows::encode(&session.awaiting));
                }
                _ => rows.delete(rows::key(b'a', &[id])),
            }
        }
        for node in dirty.senders {
            if let Some(sender) = self.senders.get(&node) {
                rows.put(rows::key(b'p', &[node.get()]), rows::encode(sender));
            }
        }
    }

    /// Restores the state from all rows, which must come in key order. Effects are not repeated: a new leader derives
    /// its work from the state.
    ///
    /// # Errors
    /// Returns [`Unreadable`] for a row of an unknown kind, a value that cannot be decoded, or a row of a session that
    /// is missing.
    pub fn restore(stored: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Result<Self, Unreadable> {
        let mut state = Self::default();
        let mut later: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (key, value) in stored {
            match key.first() {
                // Sessions first: other rows refer to them.
                Some(b's') => state.restore_session(&key, &value)?,
                Some(b'b') => {}
                _ => later.push((key, value)),
            }
        }
        for (key, value) in later {
            state.restore_row(&key, &value)?;
        }
        state.dirty = Dirty::default();
        state.effects.clear();
        Ok(state)
    }

    fn restore_session(&mut self, key: &[u8], value: &[u8]) -> Result<(), Unreadable> {
        let profile: Profile = rows::decode(b's', value)?;
        let [id] = rows::numbers(key).ok_or(Unreadable { kind: 's' })?;
        for (filter, options) in &profile.subscriptions {
            let parsed = filter.parse::<Filter>().map_err(|_| Unreadable { kind: 's' })?;
            self.tree.insert(&parsed, id, *options);
            self.filters.entry(filter.clone()).or_default().add(options.qos);
        }
        self.clients.insert(profile.client.clone(), id);
        self.sessions.insert(id, Session::new(profile));
        Ok(())
    }

    fn restore_row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Unreadable> {
        let kind = key.first().copied().unwrap_or_default();
        let unreadable = Unreadable { kind: char::from(kind) };
        let one = || rows::numbers::<1>(key).map(|[number]| number).ok_or_else(|| unreadable.clone());
        match kind {
            b'm' => self.header = rows::decode::<Header>(kind, value)?,
            b'p' => {
                self.senders.insert(NodeId::new(one()?), rows::decode::<Sender>(kind, value)?);
            }
            b'w' => {
                self.wills.insert(one()?, rows::decode::<Will>(kind, value)?);
            }
            b'o' => {
                let name = key.get(1..).and_then(|name| std::str::from_utf8(name).ok()).ok_or(unreadable)?;
                self.seen.insert(name.into(), rows::decode(kind, value)?);
            }
            b'i' => {
                let [id, sequence] = rows::numbers(key).ok_or(unreadable)?;
                let slot: Slot = rows::decode(kind, value)?;
                if !slot.received {
                    self.bodies.found(slot.body);
                }
                self.session_mut(id, kind)?.inbox.put_back(InboxSeq::new(sequence), slot);
            }
            b'n' => self.session_mut(one()?, kind)?.inbox.counters = rows::decode::<Counters>(kind, value)?,
            b'q' => self.session_mut(one()?, kind)?.receiving = rows::decode::<Receiving>(kind, value)?,
            b'a' => self.session_mut(one()?, kind)?.awaiting = rows::decode::<Awaiting>(kind, value)?,
            _ => return Err(unreadable),
        }
        Ok(())
    }

    fn session_mut(&mut self, id: u64, kind: u8) -> Result<&mut Session, Unreadable> {
        self.sessions.get_mut(&id).ok_or_else(|| Unreadable { kind: char::from(kind) })
    }
}

impl Inbox {
    /// Appends a restored slot. Rows come in the order of their sequence numbers.
    fn put_back(&mut self, sequence: InboxSeq, slot: Slot) {
        self.bytes += u64::from(slot.size);
        self.slots.push_back((sequence, slot));
    }
}
