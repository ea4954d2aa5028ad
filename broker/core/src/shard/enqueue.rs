//! Messages into inboxes: deduplicated by sender number and by exactly-once key, and bounded by the limits of the
//! inbox.

use std::collections::BTreeMap;

use covey_codec::QoS;
use covey_types::OwnerEpoch;

use super::bodies::Body;
use super::command::{Enqueue, Once, Outcome, Publication, SenderSeq};
use super::session::{SessionId, Slot, slot_key};
use super::state::{Effect, ShardState};
use crate::rows::{self, Rows};
use crate::subscriptions::{self, Match};
use crate::topic::{Filter, Name};

/// Milliseconds of shard time after which unused exactly-once state is dropped: a week, the default of
/// `sessions.expiryMax`.
const ONCE_KEPT: u64 = 168 * 3600 * 1000;
/// Bytes that a queued message is charged besides its body and topic.
const SLOT_BYTES: usize = 64;

impl ShardState {
    /// Applies [`Operation::Enqueue`](super::command::Operation::Enqueue).
    pub(super) fn enqueue(&mut self, enqueue: Enqueue, rows: &mut dyn Rows) -> Outcome {
        let Enqueue { sender, publication } = enqueue;
        if let Some(answer) = self.check_number(sender) {
            return answer;
        }
        if let Some(once) = &publication.once
            && self.is_repeated(once, rows)
        {
            // The message was counted before, perhaps under another sender. Its true count is not kept.
            return Outcome::Enqueued { matched: 1, accepted: 1 };
        }
        let matches = self.matching(&publication);
        let once = publication.once.clone();
        let matched = u32::try_from(matches.len()).unwrap_or(u32::MAX);
        let accepted = self.store(publication, matches, rows);
        if accepted < matched {
            self.effects.push(Effect::Missed(u64::from(matched - accepted)));
        }
        if matched > 0 && accepted == 0 {
            self.senders.entry(sender.node).or_default().rejected.insert(sender.number);
            // No inbox has the message, so a resend by the publisher is not a repetition.
            if let Some(once) = once {
                self.forget_once(&once, rows);
            }
        }
        Outcome::Enqueued { matched, accepted }
    }

    /// Checks the sequence number. Returns the outcome for a duplicate, a gap or an ended epoch; `None` if this is the
    /// next message of its sender.
    fn check_number(&mut self, next: SenderSeq) -> Option<Outcome> {
        let epoch = Some(next.epoch);
        let sender = self.senders.entry(next.node).or_default();
        if epoch <= sender.ended || epoch < sender.epoch {
            return Some(Outcome::Stale);
        }
        if epoch > sender.epoch {
            sender.epoch = epoch;
            sender.last = 0;
            sender.rejected.clear();
        }
        self.dirty.senders.insert(next.node);
        sender.rejected = sender.rejected.split_off(&next.floor);
        if next.number <= sender.last {
            let accepted = u32::from(!sender.rejected.contains(&next.number));
            return Some(Outcome::Enqueued { matched: 1, accepted });
        }
        if next.number > sender.last + 1 {
            return Some(Outcome::Gap { expected: sender.last + 1 });
        }
        sender.last = next.number;
        None
    }

    /// Records the number and returns whether it was recorded before, or is below the key's floor.
    fn is_repeated(&mut self, once: &Once, rows: &mut dyn Rows) -> bool {
        let now = self.header.time;
        let seen = self.seen.entry(once.key.clone()).or_default();
        seen.used = now;
        let repeated = seen.window.is_repeated(once.number, once.floor);
        rows.put(once_key(&once.key), rows::encode(&*seen));
        self.forget_seen(now, rows);
        repeated
    }

    /// Removes the number of a message that no inbox took.
    fn forget_once(&mut self, once: &Once, rows: &mut dyn Rows) {
        if let Some(seen) = self.seen.get_mut(&once.key) {
            seen.window.forget(once.number);
            rows.put(once_key(&once.key), rows::encode(&*seen));
        }
    }

    /// Drops state that is older than [`ONCE_KEPT`], at most 16 keys per call, to bound the work of an entry.
    fn forget_seen(&mut self, now: u64, rows: &mut dyn Rows) {
        let old = |seen: &super::state::Seen| seen.used.saturating_add(ONCE_KEPT) < now;
        let gone: Vec<Box<str>> =
            self.seen.iter().filter(|(_, seen)| old(seen)).map(|(key, _)| key.clone()).take(16).collect();
        for key in gone {
            self.seen.remove(&key);
            rows.delete(once_key(&key));
        }
    }

    /// Returns the sessions with a match at QoS 1 or 2, each once.
    fn matching(&mut self, message: &Publication) -> BTreeMap<SessionId, Match> {
        let Ok(name) = message.topic.parse::<Name>() else { return BTreeMap::new() };
        let mut matches = subscriptions::matching(&self.tree, &name, |id| self.is_of(id, message.publisher.as_deref()));
        // QoS 0 is not logged: those subscriptions are served by `qos0_matches`.
        matches.retain(|_, matched| matched.qos.min(message.qos) > QoS::AtMostOnce);
        if let Some(index) = message.retained_index {
            for id in matches.keys() {
                self.note_live_copy(*id, &name, index);
            }
        }
        matches
    }

    /// Notes a live copy of a retained message, for subscriptions that still await their retained messages.
    fn note_live_copy(&mut self, id: SessionId, name: &Name, index: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        // Without a holder no retained messages are read for the session; the read after the next claim includes this
        // message.
        if session.profile.holder.is_none() {
            return;
        }
        for (filter, live) in &mut session.awaiting {
            let matches = filter.parse::<Filter>().is_ok_and(|filter| filter.matches(name));
            if matches && live.note(name.as_str(), index) {
                self.dirty.awaiting.insert(id);
            }
        }
    }

    /// Appends the message to every matching inbox that has room; returns the number of those.
    fn store(&mut self, message: Publication, matches: BTreeMap<SessionId, Match>, rows: &mut dyn Rows) -> u32 {
        let size = message.body.len() + message.topic.len() + SLOT_BYTES;
        let body = self.header.last_body + 1;
        let mut accepted = 0;
        for (id, matched) in matches {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            if !session.inbox.has_room(session.profile.limits, size as u64) {
                session.inbox.counters.missed += 1;
                self.dirty.counters.insert(id);
                continue;
            }
            let slot = Slot {
                body,
                size: u32::try_from(size).unwrap_or(u32::MAX),
                qos: matched.qos.min(message.qos),
                retain: matched.retain_as_published && message.retain,
                received: false,
                identifiers: matched.identifiers,
            };
            let row = rows::encode(&slot);
            let sequence = session.inbox.push(slot);
            rows.put(slot_key(id, sequence), row);
            self.dirty.counters.insert(id);
            self.effects.push(Effect::Ready(id));
            accepted += 1;
        }
        if accepted > 0 {
            self.header.last_body = body;
            let arrived = self.header.time;
            let stored = Body { topic: message.topic, arrived, expiry: message.expiry, data: message.body };
            self.bodies.insert(body, stored, accepted, rows);
        }
        accepted
    }

    /// Applies [`Operation::DeliverRetained`](super::command::Operation::DeliverRetained): skips copies that are not newer than a
    /// live copy of the same topic.
    pub(super) fn deliver_retained(
        &mut self,
        client: &str,
        owner: OwnerEpoch,
        filter: &str,
        messages: Vec<Publication>,
        last: bool,
        rows: &mut dyn Rows,
    ) -> Outcome {
        let Some((id, session)) = self.held(client, owner) else { return Outcome::Stale };
        let Some(options) = session.profile.subscriptions.get(filter).copied() else { return Outcome::Known(false) };
        let Some(live) = session.awaiting.get(filter).cloned() else { return Outcome::Known(false) };
        if last {
            session.awaiting.remove(filter);
            self.dirty.awaiting.insert(id);
        }
        for message in messages {
            if live.is_newer(&message.topic, message.retained_index) {
                let mut matched = Match::default();
                matched.add(options);
                // [MQTT-3.3.1-8] of MQTT 3.1.1: a retained message for a new subscription is sent with the retain flag.
                matched.retain_as_published = true;
                let message = Publication { retain: true, ..message };
                self.store(message, BTreeMap::from([(id, matched)]), rows);
            }
        }
        Outcome::Known(true)
    }

    /// Calls `visit` for each online session that gets the message at QoS 0, outside the log: sessions whose matching
    /// subscriptions all have a QoS below `below`. The others receive it as an `Enqueue`. The arguments of `visit` are
    /// the session, whether any matching subscription has Retain As Published, and the subscription identifiers.
    pub fn qos0_matches(
        &self,
        topic: &str,
        publisher: Option<&str>,
        below: u8,
        mut visit: impl FnMut(SessionId, bool, &[u32]),
    ) {
        let Ok(name) = topic.parse::<Name>() else { return };
        for (id, matched) in subscriptions::matching(&self.tree, &name, |id| self.is_of(id, publisher)) {
            let is_online = self.sessions.get(&id).is_some_and(|session| session.profile.holder.is_some());
            if is_online && u8::from(matched.qos) < below {
                visit(id, matched.retain_as_published, &matched.identifiers);
            }
        }
    }

    /// Returns whether the session is that of the client; `false` without a client.
    fn is_of(&self, id: SessionId, client: Option<&str>) -> bool {
        client.is_some() && self.sessions.get(&id).map(|session| &*session.profile.client) == client
    }
}

/// Returns the key of the row with the exactly-once state of `key`.
pub(super) fn once_key(key: &str) -> Vec<u8> {
    let mut row = vec![b'o'];
    row.extend_from_slice(key.as_bytes());
    row
}
