//! Messages of a shard. Each is stored once, however many inboxes refer to it.
//!
//! Reference counts are in memory only and are recounted from the slots at start. A body without references has no
//! row.

use std::collections::HashMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::rows::{self, Rows};

/// Bytes of message bodies that are cached in memory besides their rows.
const CACHE: usize = 32 << 20;

/// Value of a row `b`: a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    /// Topic name.
    pub topic: Box<str>,
    /// Shard time at which the message was enqueued, in milliseconds.
    pub arrived: u64,
    /// Message expiry in seconds, counted from `arrived`; `None` for none.
    pub expiry: Option<u32>,
    /// The message as an encoded MQTT 5 PUBLISH; opaque here.
    pub data: Bytes,
}

impl Body {
    /// Decodes the value of a row `b`.
    ///
    /// # Errors
    /// Returns [`rows::Unreadable`] if the bytes are not an encoded body.
    pub fn decode(row: &[u8]) -> Result<Self, rows::Unreadable> {
        rows::decode(b'b', row)
    }

    /// Returns the remaining message expiry in seconds at shard time `now` (milliseconds); `None` for a message
    /// without expiry.
    ///
    /// # Errors
    /// Returns [`Expired`] if no full second is left.
    pub fn remaining(&self, now: u64) -> Result<Option<u32>, Expired> {
        let Some(expiry) = self.expiry else { return Ok(None) };
        let waited = u32::try_from(now.saturating_sub(self.arrived) / 1000).unwrap_or(u32::MAX);
        match expiry.checked_sub(waited) {
            Some(left) if left > 0 => Ok(Some(left)),
            _ => Err(Expired),
        }
    }
}

/// The message has passed its expiry ([MQTT-3.3.2-5]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired;

/// Reference counts and the cache of all stored bodies.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    /// By body id.
    held: HashMap<u64, Held>,
    /// Bytes of the cached bodies, at most [`CACHE`].
    cached: usize,
}

/// A stored body.
#[derive(Debug, Default)]
struct Held {
    /// Slots that refer to it.
    references: u32,
    /// `None` if it did not fit into the cache, or was stored before the last restart.
    body: Option<Body>,
}

impl Bodies {
    /// Stores a body to which `references` slots refer.
    pub(super) fn insert(&mut self, id: u64, body: Body, references: u32, rows: &mut dyn Rows) {
        rows.put(rows::key(b'b', &[id]), rows::encode(&body));
        let size = body.data.len();
        let body = (self.cached + size <= CACHE).then_some(body);
        if body.is_some() {
            self.cached += size;
        }
        self.held.insert(id, Held { references, body });
    }

    /// Counts a reference from a slot that was restored.
    pub(super) fn found(&mut self, id: u64) {
        self.held.entry(id).or_default().references += 1;
    }

    /// Releases one reference; the last one deletes the row.
    pub(super) fn release(&mut self, id: u64, rows: &mut dyn Rows) {
        let Some(held) = self.held.get_mut(&id) else { return };
        held.references = held.references.saturating_sub(1);
        if held.references == 0 {
            self.cached -= held.body.as_ref().map_or(0, |body| body.data.len());
            self.held.remove(&id);
            rows.delete(rows::key(b'b', &[id]));
        }
    }

    /// Returns the body if it is cached.
    pub(super) fn cached(&self, id: u64) -> Option<&Body> {
        self.held.get(&id)?.body.as_ref()
    }
}
