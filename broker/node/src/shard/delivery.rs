//! What the leader of a shard sends to the holders of its sessions: from the head of the inbox, within a window, refilled by
//! acknowledgements. Nothing here is committed: a new leader sends the same messages under the same sequence numbers.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use covey_core::shard::{Body, Machine, SessionId, Slot};
use covey_raft::RowReader;

use super::border::LinkId;
use crate::outbox::IDS;
use crate::wire::{FromShard, Held, Item};

/// Most messages that may be unacknowledged at one client.
const WINDOW: u16 = 128;
/// Most bytes that may be unacknowledged at one client.
const BYTES: usize = 1 << 20;

/// A session that takes deliveries over a link.
#[derive(Debug)]
struct Outgoing {
    link: LinkId,
    client: Box<str>,
    owner: u64,
    window: usize,
    /// Sequence number to look at next.
    next: u64,
    flying: BTreeMap<u64, usize>,
    bytes: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    sessions: HashMap<SessionId, Outgoing>,
    /// Acknowledged or expired, not yet committed.
    settled: HashMap<(Box<str>, u64), Vec<u64>>,
    /// Shard time, for message expiry.
    now: u64,
}

/// Messages to one link.
pub(super) type Output = (LinkId, FromShard);

impl Deliveries {
    /// Shard time passes.
    pub(super) fn advance(&mut self, now: u64) {
        self.now = now;
    }

    /// A connection holds the session and takes deliveries; unknown or older owners are told that they lost it.
    pub(super) fn open(&mut self, link: LinkId, held: Held, machine: &Machine, rows: &RowReader) -> Vec<Output> {
        let Some((id, session)) = machine.session_of(&held.client) else {
            return vec![(link, FromShard::Lost { client: held.client, owner: held.owner })];
        };
        if session.profile.owner != held.owner || session.profile.holder.is_none() {
            return vec![(link, FromShard::Lost { client: held.client, owner: held.owner })];
        }
        let known = self.sessions.get(&id).is_some_and(|known| known.link == link && known.owner == held.owner);
        if !known {
            self.sessions.insert(
                id,
                Outgoing {
                    link,
                    client: held.client,
                    owner: held.owner,
                    window: usize::from(held.window.clamp(1, WINDOW)),
                    next: session.inbox.head(),
                    flying: BTreeMap::new(),
                    bytes: 0,
                },
            );
        }
        self.pump(id, machine, rows)
    }

    /// The session has another holder or none.
    pub(super) fn close(&mut self, client: &str, owner: u64) {
        self.sessions.retain(|_, outgoing| !(&*outgoing.client == client && outgoing.owner <= owner));
        self.settled.remove(&(client.into(), owner));
    }

    /// The link broke.
    pub(super) fn drop_link(&mut self, link: LinkId) {
        self.sessions.retain(|_, outgoing| outgoing.link != link);
    }

    /// The client acknowledged.
    pub(super) fn settle(
        &mut self,
        client: Box<str>,
        owner: u64,
        sequences: Vec<u64>,
        machine: &Machine,
        rows: &RowReader,
    ) -> Vec<Output> {
        let id = machine.session_of(&client).map(|(id, _)| id);
        if let Some(outgoing) = id.and_then(|id| self.sessions.get_mut(&id)).filter(|known| known.owner == owner) {
            for sequence in &sequences {
                outgoing.bytes -= outgoing.flying.remove(sequence).unwrap_or_default();
            }
        }
        self.settled.entry((client, owner)).or_default().extend(sequences);
        id.map(|id| self.pump(id, machine, rows)).unwrap_or_default()
    }

    pub(super) fn has_settled(&self) -> bool {
        !self.settled.is_empty()
    }

    /// Acknowledgements to commit: (client, owner, inclusive ranges).
    pub(super) fn take_settled(&mut self) -> impl Iterator<Item = (Box<str>, u64, Vec<(u64, u64)>)> + use<> {
        std::mem::take(&mut self.settled).into_iter().map(|((client, owner), mut sequences)| {
            sequences.sort_unstable();
            (client, owner, ranges(&sequences))
        })
    }

    /// Where the session's deliveries go now.
    pub(super) fn link_of(&self, id: SessionId) -> Option<(LinkId, u64)> {
        self.sessions.get(&id).map(|outgoing| (outgoing.link, outgoing.owner))
    }

    /// Sends what the window allows.
    pub(super) fn pump(&mut self, id: SessionId, machine: &Machine, rows: &RowReader) -> Vec<Output> {
        let (Some(outgoing), Some(session)) = (self.sessions.get_mut(&id), machine.session(id)) else {
            return Vec::new();
        };
        if session.profile.owner != outgoing.owner {
            return Vec::new();
        }
        let mut items = Vec::new();
        let mut expired = Vec::new();
        for (sequence, slot) in session.inbox.from(outgoing.next) {
            let oldest = outgoing.flying.first_key_value().map_or(sequence, |(oldest, _)| *oldest);
            // Packet ids come round: the one of a delivery that is still unacknowledged must not be used again.
            if outgoing.flying.len() >= outgoing.window || outgoing.bytes >= BYTES || sequence - oldest >= IDS {
                break;
            }
            outgoing.next = sequence + 1;
            match item(sequence, slot, session.profile.dup_below, self.now, machine, rows) {
                Ok(Some(item)) => {
                    let size = item.body.as_ref().map_or(0, Bytes::len);
                    outgoing.flying.insert(sequence, size);
                    outgoing.bytes += size;
                    items.push(item);
                }
                // Past its expiry; one whose row is gone was acknowledged a moment ago.
                Ok(None) => expired.push(sequence),
                Err(()) => {
                    outgoing.next = sequence;
                    break;
                }
            }
        }
        if !expired.is_empty() {
            self.settled.entry((outgoing.client.clone(), outgoing.owner)).or_default().extend(expired);
        }
        if items.is_empty() {
            return Vec::new();
        }
        let deliver = FromShard::Deliver { client: outgoing.client.clone(), owner: outgoing.owner, items };
        vec![(outgoing.link, deliver)]
    }
}

/// A slot as its holder needs it; `None` when it expired, an error when it cannot be read now.
fn item(
    sequence: u64,
    slot: &Slot,
    dup_below: u64,
    now: u64,
    machine: &Machine,
    rows: &RowReader,
) -> Result<Option<Item>, ()> {
    let mut item = Item {
        sequence,
        qos: slot.qos,
        dup: sequence < dup_below,
        retain: slot.retain,
        identifiers: slot.identifiers.clone(),
        expiry: None,
        body: None,
    };
    if slot.received {
        return Ok(Some(item));
    }
    let stored;
    let body = if let Some(body) = machine.cached_body(slot.body) {
        body
    } else {
        let row = rows.get(&Machine::body_key(slot.body)).map_err(|_| ())?.ok_or(())?;
        stored = Body::decode(&row).map_err(|_| ())?;
        &stored
    };
    let Ok(expiry) = body.remaining(now) else { return Ok(None) };
    item.expiry = expiry;
    item.body = Some(body.data.clone());
    Ok(Some(item))
}

/// Inclusive ranges over sorted numbers.
fn ranges(sorted: &[u64]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in sorted {
        match ranges.last_mut() {
            Some((_, high)) if *number <= *high + 1 => *high = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_ranges() {
        assert_eq!(ranges(&[1, 2, 2, 3, 7, 9, 10]), [(1, 3), (7, 7), (9, 10)]);
        assert_eq!(ranges(&[]), []);
    }
}
