//! Messages of a shard, each stored once however many inboxes refer to it.
//!
//! The reference counts live in memory and are rebuilt from the slots; a body without references has no row.

use std::collections::HashMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::rows::{self, Rows};

/// Bytes of recent messages that are kept in memory besides their rows.
const CACHE: usize = 32 << 20;

/// Row `b`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    pub topic: Box<str>,
    /// Shard time of arrival, milliseconds.
    pub arrived: u64,
    /// Message expiry in seconds from then.
    pub expiry: Option<u32>,
    pub data: Bytes,
}

impl Body {
    /// Reads a row.
    pub fn decode(row: &[u8]) -> Result<Self, rows::Unreadable> {
        rows::decode(b'b', row)
    }

    /// Remaining message expiry in seconds at shard time `now`; `Err` once it has passed.
    pub fn remaining(&self, now: u64) -> Result<Option<u32>, Expired> {
        let Some(expiry) = self.expiry else { return Ok(None) };
        let waited = u32::try_from(now.saturating_sub(self.arrived) / 1000).unwrap_or(u32::MAX);
        match expiry.checked_sub(waited) {
            Some(left) if left > 0 => Ok(Some(left)),
            _ => Err(Expired),
        }
    }
}

/// A message past its expiry ([MQTT-3.3.2-5]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired;

#[derive(Debug, Default)]
pub(super) struct Bodies {
    held: HashMap<u64, Held>,
    cached: usize,
}

#[derive(Debug, Default)]
struct Held {
    references: u32,
    body: Option<Body>,
}

impl Bodies {
    /// Stores a body that `references` inboxes hold.
    pub(super) fn insert(&mut self, id: u64, body: Body, references: u32, rows: &mut dyn Rows) {
        rows.put(rows::key(b'b', &[id]), rows::encode(&body));
        let size = body.data.len();
        let body = (self.cached + size <= CACHE).then_some(body);
        if body.is_some() {
            self.cached += size;
        }
        self.held.insert(id, Held { references, body });
    }

    /// Counts a slot that was found at start.
    pub(super) fn found(&mut self, id: u64) {
        self.held.entry(id).or_default().references += 1;
    }

    /// Gives back one reference.
    pub(super) fn release(&mut self, id: u64, rows: &mut dyn Rows) {
        let Some(held) = self.held.get_mut(&id) else { return };
        held.references = held.references.saturating_sub(1);
        if held.references == 0 {
            self.cached -= held.body.as_ref().map_or(0, |body| body.data.len());
            self.held.remove(&id);
            rows.delete(rows::key(b'b', &[id]));
        }
    }

    pub(super) fn cached(&self, id: u64) -> Option<&Body> {
        self.held.get(&id)?.body.as_ref()
    }
}
