//! Deliveries from the leader of a shard to the holders of its sessions: from the head of the inbox, within a window,
//! continued by acknowledgements. Nothing here is committed; a new leader sends the same messages under the same
//! sequence numbers.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use covey_core::shard::{Body, SessionId, ShardState, Slot};
use covey_raft::RowReader;
use covey_types::{InboxSeq, OwnerEpoch};

use crate::session::PACKET_IDS;
use crate::shard::link::LinkId;
use crate::shard::wire::{FromShard, HeldSession, Item};

/// Most unacknowledged deliveries of one session.
const MAX_WINDOW: u16 = 128;
/// Bytes of unacknowledged deliveries of one session from which on nothing more is sent.
const MAX_UNACKNOWLEDGED_BYTES: usize = 1 << 20;

/// A session whose holder receives deliveries over a link.
#[derive(Debug)]
struct Outgoing {
    /// Link of the holder's node.
    link: LinkId,
    /// Client id.
    client: Box<str>,
    /// Owner epoch of the holder.
    owner: OwnerEpoch,
    /// Most unacknowledged deliveries, 1 to [`MAX_WINDOW`].
    window: usize,
    /// Sequence number from which the next delivery is taken.
    next: InboxSeq,
    /// Bytes of each unacknowledged delivery, by sequence number.
    unacknowledged: BTreeMap<InboxSeq, usize>,
    /// Sum of the bytes in `unacknowledged`.
    bytes: usize,
}

/// Deliveries of all sessions in one term.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    /// Sessions with an attached holder.
    sessions: HashMap<SessionId, Outgoing>,
    /// Sequence numbers to be committed as acknowledged or expired, by client id and owner epoch.
    acknowledged: HashMap<(Box<str>, OwnerEpoch), Vec<InboxSeq>>,
    /// Shard time in milliseconds, for message expiry.
    now: u64,
}

/// A frame for a link.
pub(super) type Output = (LinkId, FromShard);

impl Deliveries {
    /// Sets shard time, in milliseconds.
    pub(super) fn advance(&mut self, now: u64) {
        self.now = now;
    }

    /// Starts deliveries to a holder. The returned frames are its first deliveries, or `Lost` if it no longer holds
    /// the session.
    pub(super) fn open(
        &mut self,
        link: LinkId,
        held: HeldSession,
        state: &ShardState,
        rows: &RowReader,
    ) -> Vec<Output> {
        let Some((id, session)) = state.session_of(&held.client) else {
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
                    window: usize::from(held.window.clamp(1, MAX_WINDOW)),
                    next: session.inbox.head(),
                    unacknowledged: BTreeMap::new(),
                    bytes: 0,
                },
            );
        }
        self.pump(id, state, rows)
    }

    /// Stops deliveries to this owner and to older ones. Their acknowledgements that are not committed are dropped.
    pub(super) fn close(&mut self, client: &str, owner: OwnerEpoch) {
        self.sessions.retain(|_, outgoing| !(&*outgoing.client == client && outgoing.owner <= owner));
        self.acknowledged.remove(&(client.into(), owner));
    }

    /// Stops all deliveries over a link that has ended.
    pub(super) fn drop_link(&mut self, link: LinkId) {
        self.sessions.retain(|_, outgoing| outgoing.link != link);
    }

    /// Takes in acknowledgements and returns the deliveries for which there is room now.
    pub(super) fn acknowledge(
        &mut self,
        client: Box<str>,
        owner: OwnerEpoch,
        sequences: Vec<InboxSeq>,
        state: &ShardState,
        rows: &RowReader,
    ) -> Vec<Output> {
        let id = state.session_of(&client).map(|(id, _)| id);
        if let Some(outgoing) = id.and_then(|id| self.sessions.get_mut(&id)).filter(|known| known.owner == owner) {
            for sequence in &sequences {
                outgoing.bytes -= outgoing.unacknowledged.remove(sequence).unwrap_or_default();
            }
        }
        self.acknowledged.entry((client, owner)).or_default().extend(sequences);
        id.map(|id| self.pump(id, state, rows)).unwrap_or_default()
    }

    /// Returns whether acknowledgements wait to be committed.
    pub(super) fn has_acknowledged(&self) -> bool {
        !self.acknowledged.is_empty()
    }

    /// Takes the acknowledgements to commit: client id, owner epoch, and inclusive ranges of sequence numbers.
    pub(super) fn take_acknowledged(
        &mut self,
    ) -> impl Iterator<Item = (Box<str>, OwnerEpoch, Vec<(InboxSeq, InboxSeq)>)> + use<> {
        std::mem::take(&mut self.acknowledged).into_iter().map(|((client, owner), mut sequences)| {
            sequences.sort_unstable();
            (client, owner, ranges(&sequences))
        })
    }

    /// Returns the link and the owner epoch to which deliveries of the session go; `None` if no holder is attached.
    pub(super) fn link_of(&self, id: SessionId) -> Option<(LinkId, OwnerEpoch)> {
        self.sessions.get(&id).map(|outgoing| (outgoing.link, outgoing.owner))
    }

    /// Returns the deliveries that the window allows now.
    pub(super) fn pump(&mut self, id: SessionId, state: &ShardState, rows: &RowReader) -> Vec<Output> {
        let (Some(outgoing), Some(session)) = (self.sessions.get_mut(&id), state.session(id)) else {
            return Vec::new();
        };
        if session.profile.owner != outgoing.owner {
            return Vec::new();
        }
        let mut items = Vec::new();
        let mut expired = Vec::new();
        for (sequence, slot) in session.inbox.from(outgoing.next) {
            let oldest = outgoing.unacknowledged.first_key_value().map_or(sequence, |(oldest, _)| *oldest);
            // Packet ids repeat after `PACKET_IDS` sequence numbers: the id of an unacknowledged delivery must not be used
            // again.
            if outgoing.unacknowledged.len() >= outgoing.window
                || outgoing.bytes >= MAX_UNACKNOWLEDGED_BYTES
                || sequence.since(oldest) >= PACKET_IDS
            {
                break;
            }
            outgoing.next = sequence.next();
            match item(sequence, slot, session.profile.dup_below, self.now, state, rows) {
                Ok(Some(item)) => {
                    let size = item.body.as_ref().map_or(0, Bytes::len);
                    outgoing.unacknowledged.insert(sequence, size);
                    outgoing.bytes += size;
                    items.push(item);
                }
                // The message expired.
                Ok(None) => expired.push(sequence),
                // The body's row may not be written yet; the effects of its entry call this again.
                Err(()) => {
                    outgoing.next = sequence;
                    break;
                }
            }
        }
        if !expired.is_empty() {
            self.acknowledged.entry((outgoing.client.clone(), outgoing.owner)).or_default().extend(expired);
        }
        if items.is_empty() {
            return Vec::new();
        }
        let deliver = FromShard::Deliver { client: outgoing.client.clone(), owner: outgoing.owner, items };
        vec![(outgoing.link, deliver)]
    }
}

/// Returns the delivery for a slot; `None` if the message has expired, an error if its body cannot be read at present.
fn item(
    sequence: InboxSeq,
    slot: &Slot,
    dup_below: InboxSeq,
    now: u64,
    state: &ShardState,
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
    let body = if let Some(body) = state.cached_body(slot.body) {
        body
    } else {
        let row = rows.get(&ShardState::body_key(slot.body)).map_err(|_| ())?.ok_or(())?;
        stored = Body::decode(&row).map_err(|_| ())?;
        &stored
    };
    let Ok(expiry) = body.remaining(now) else { return Ok(None) };
    item.expiry = expiry;
    item.body = Some(body.data.clone());
    Ok(Some(item))
}

/// Merges sorted numbers into inclusive ranges.
fn ranges(sorted: &[InboxSeq]) -> Vec<(InboxSeq, InboxSeq)> {
    let mut ranges: Vec<(InboxSeq, InboxSeq)> = Vec::new();
    for number in sorted {
        match ranges.last_mut() {
            Some((_, high)) if *number <= high.next() => *high = *number,
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
        let merged = ranges(&[1, 2, 2, 3, 7, 9, 10].map(InboxSeq::new));
        let merged: Vec<_> = merged.iter().map(|(low, high)| (low.get(), high.get())).collect();
        assert_eq!(merged, [(1, 3), (7, 7), (9, 10)]);
        assert_eq!(ranges(&[]), []);
    }
}
