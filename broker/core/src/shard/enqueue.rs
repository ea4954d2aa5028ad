//! Messages into inboxes: deduplicated by sender number and by exactly-once key, and bounded by the limits of the
//! inbox.

use std::collections::BTreeMap;

use covey_types::OwnerEpoch;

use super::bodies::Body;
use super::command::{Enqueue, Once, Options, Outcome};
use super::machine::{Effect, Machine};
use super::session::{SessionId, Slot, slot_key};
use crate::rows::{self, Rows};
use crate::topic::{Filter, Name};

/// Milliseconds of shard time after which unused exactly-once state is dropped: a week, the default of
/// `sessions.expiryMax`.
const ONCE_KEPT: u64 = 168 * 3600 * 1000;
/// Bytes that a queued message is charged besides its body and topic.
const SLOT_BYTES: usize = 64;

/// One delivery to a session: all of its subscriptions that the message matched ([MQTT-3.3.4-2]).
#[derive(Debug, Default)]
struct Match {
    /// Highest QoS over the subscriptions, each bounded by that of the message.
    qos: u8,
    /// Retain flag of the delivery.
    retain: bool,
    /// Subscription identifiers of all matching subscriptions.
    identifiers: Vec<u32>,
}

impl Machine {
    /// Applies [`Operation::Enqueue`](super::command::Operation::Enqueue).
    pub(super) fn enqueue(&mut self, enqueue: Enqueue, rows: &mut dyn Rows) -> Outcome {
        if let Some(answer) = self.number(&enqueue) {
            return answer;
        }
        if let Some(once) = &enqueue.once
            && self.is_repeated(once, rows)
        {
            // The first one was answered; the sender resends because the answer was lost. Its true count is not kept.
            return Outcome::Enqueued { matched: 1, accepted: 1 };
        }
        let matches = self.matching(&enqueue);
        let (node, number, once) = (enqueue.node, enqueue.number, enqueue.once.clone());
        let matched = u32::try_from(matches.len()).unwrap_or(u32::MAX);
        let accepted = self.store(enqueue, matches, rows);
        if accepted < matched {
            self.effects.push(Effect::Missed(u64::from(matched - accepted)));
        }
        if matched > 0 && accepted == 0 {
            self.senders.entry(node).or_default().rejected.insert(number);
            // No inbox has the message, so a resend by the publisher is not a repetition.
            if let Some(once) = once {
                self.forget_once(&once, rows);
            }
        }
        Outcome::Enqueued { matched, accepted }
    }

    /// Checks the sequence number. Returns the outcome for a duplicate, a gap or an ended epoch; `None` if this is the
    /// next message of its sender.
    fn number(&mut self, enqueue: &Enqueue) -> Option<Outcome> {
        let epoch = Some(enqueue.epoch);
        let sender = self.senders.entry(enqueue.node).or_default();
        if epoch <= sender.ended || epoch < sender.epoch {
            return Some(Outcome::Stale);
        }
        if epoch > sender.epoch {
            sender.epoch = epoch;
            sender.last = 0;
            sender.rejected.clear();
        }
        self.dirty.senders.insert(enqueue.node);
        sender.rejected = sender.rejected.split_off(&enqueue.floor);
        if enqueue.number <= sender.last {
            let accepted = u32::from(!sender.rejected.contains(&enqueue.number));
            return Some(Outcome::Enqueued { matched: 1, accepted });
        }
        if enqueue.number > sender.last + 1 {
            return Some(Outcome::Gap { expected: sender.last + 1 });
        }
        sender.last = enqueue.number;
        None
    }

    /// Records the number and returns whether it was recorded before, or is below the key's floor.
    fn is_repeated(&mut self, once: &Once, rows: &mut dyn Rows) -> bool {
        let now = self.header.time;
        let seen = self.seen.entry(once.key.clone()).or_default();
        seen.floor = seen.floor.max(once.floor);
        seen.used = now;
        let repeated = once.number < seen.floor || !seen.numbers.insert(once.number);
        seen.numbers = seen.numbers.split_off(&seen.floor);
        rows.put(once_key(&once.key), rows::encode(&*seen));
        self.forget_seen(now, rows);
        repeated
    }

    /// Removes the number of a message that no inbox took.
    fn forget_once(&mut self, once: &Once, rows: &mut dyn Rows) {
        if let Some(seen) = self.seen.get_mut(&once.key) {
            seen.numbers.remove(&once.number);
            rows.put(once_key(&once.key), rows::encode(&*seen));
        }
    }

    /// Drops state that is older than [`ONCE_KEPT`], at most 16 keys per call, to bound the work of an entry.
    fn forget_seen(&mut self, now: u64, rows: &mut dyn Rows) {
        let old = |seen: &super::machine::Seen| seen.used.saturating_add(ONCE_KEPT) < now;
        let gone: Vec<Box<str>> =
            self.seen.iter().filter(|(_, seen)| old(seen)).map(|(key, _)| key.clone()).take(16).collect();
        for key in gone {
            self.seen.remove(&key);
            rows.delete(once_key(&key));
        }
    }

    /// Returns the sessions with a match at QoS 1 or 2, each once.
    fn matching(&mut self, enqueue: &Enqueue) -> BTreeMap<SessionId, Match> {
        let mut matches: BTreeMap<SessionId, Match> = BTreeMap::new();
        let Ok(name) = enqueue.topic.parse::<Name>() else { return matches };
        let mut found: Vec<(SessionId, Options)> = Vec::new();
        self.tree.matches(&name, |id, options| found.push((*id, *options)));
        for (id, options) in found {
            let own = || self.sessions.get(&id).is_some_and(|session| session.profile.client == enqueue.publisher);
            if !(options.no_local && own()) {
                matches.entry(id).or_default().add(options, enqueue);
            }
        }
        // QoS 0 is not logged: those subscriptions are served by `volatile_matches`.
        matches.retain(|_, matched| matched.qos > 0);
        if enqueue.retained_index > 0 {
            for id in matches.keys() {
                self.note_live_copy(*id, &name, enqueue);
            }
        }
        matches
    }

    /// Records the index of a live retained message per topic, for subscriptions that still await their retained
    /// messages.
    fn note_live_copy(&mut self, id: SessionId, name: &Name, enqueue: &Enqueue) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        // Without a holder no retained messages are read for the session; the read after the next claim includes this
        // message.
        if session.profile.holder.is_none() {
            return;
        }
        for (filter, newest) in &mut session.awaiting {
            if filter.parse::<Filter>().is_ok_and(|filter| filter.matches(name)) {
                newest.insert(enqueue.topic.clone(), enqueue.retained_index);
                self.dirty.awaiting.insert(id);
            }
        }
    }

    /// Appends the message to every matching inbox that has room; returns the number of those.
    fn store(&mut self, enqueue: Enqueue, matches: BTreeMap<SessionId, Match>, rows: &mut dyn Rows) -> u32 {
        let size = enqueue.body.len() + enqueue.topic.len() + SLOT_BYTES;
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
                qos: matched.qos,
                retain: matched.retain,
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
            let stored = Body { topic: enqueue.topic, arrived, expiry: enqueue.expiry, data: enqueue.body };
            self.bodies.insert(body, stored, accepted, rows);
        }
        accepted
    }

    /// Applies [`Operation::Snapshot`](super::command::Operation::Snapshot): skips copies that are not newer than a
    /// live copy of the same topic.
    pub(super) fn snapshot(
        &mut self,
        client: &str,
        owner: OwnerEpoch,
        filter: &str,
        messages: Vec<Enqueue>,
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
            let newer = live.get(&message.topic).is_some_and(|index| *index >= message.retained_index);
            if !newer {
                let mut matched = Match::default();
                matched.add(options, &message);
                // [MQTT-3.3.1-8] of MQTT 3.1.1: a retained message for a new subscription is sent with the retain flag.
                matched.retain = true;
                self.store(message, BTreeMap::from([(id, matched)]), rows);
            }
        }
        Outcome::Known(true)
    }

    /// Calls `visit` for each online session that gets the message at QoS 0, outside the log: sessions whose matching
    /// subscriptions all have a QoS below `below`. The others receive it as an `Enqueue`. The arguments of `visit` are
    /// the session, whether any matching subscription has Retain As Published, and the subscription identifiers.
    pub fn volatile_matches(
        &self,
        topic: &str,
        publisher: &str,
        below: u8,
        mut visit: impl FnMut(SessionId, bool, &[u32]),
    ) {
        let Ok(name) = topic.parse::<Name>() else { return };
        let mut matches: BTreeMap<SessionId, (u8, bool, Vec<u32>)> = BTreeMap::new();
        self.tree.matches(&name, |id, options| {
            let Some(session) = self.sessions.get(id) else { return };
            let own = options.no_local && &*session.profile.client == publisher;
            if session.profile.holder.is_some() && !own {
                let (qos, retain_as_published, identifiers) = matches.entry(*id).or_default();
                *qos = options.qos.max(*qos);
                *retain_as_published |= options.retain_as_published;
                identifiers.extend(options.identifier);
            }
        });
        for (id, (qos, retain_as_published, identifiers)) in matches {
            if qos < below {
                visit(id, retain_as_published, &identifiers);
            }
        }
    }
}

impl Match {
    /// Adds a matching subscription to the delivery.
    fn add(&mut self, options: Options, enqueue: &Enqueue) {
        self.qos = self.qos.max(options.qos.min(enqueue.qos));
        self.retain |= options.retain_as_published && enqueue.retain;
        self.identifiers.extend(options.identifier);
    }
}

/// Returns the key of the row with the exactly-once state of `key`.
pub(super) fn once_key(key: &str) -> Vec<u8> {
    let mut row = vec![b'o'];
    row.extend_from_slice(key.as_bytes());
    row
}
