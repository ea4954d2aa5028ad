//! One session as its shard knows it: who holds it, what it subscribed to and what waits for it.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::command::{NodeId, Options, Will};

/// Number of a session within its shard; never reused.
pub type SessionId = u64;

/// Limits of an inbox. They travel in the claim, so that every replica judges alike whatever its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub messages: u32,
    pub bytes: u64,
    pub subscriptions: u32,
}

/// The connection that holds a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub node: NodeId,
    pub epoch: u64,
    pub connection: u64,
}

/// Row `s`: what changes with connections and subscriptions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    pub client: Box<str>,
    pub principal: Box<str>,
    /// Rises with every claim in the shard; operations under an older one are refused.
    pub owner: u64,
    pub holder: Option<Holder>,
    /// Answer to the last claim, for its repetition.
    pub present: bool,
    /// The shard holds subscriptions and inbox.
    pub durable: bool,
    /// Seconds.
    pub expiry: u32,
    /// Shard time at which the holder went; 0 while online.
    pub offline_since: u64,
    pub will: Option<Will>,
    pub limits: Limits,
    pub subscriptions: BTreeMap<Box<str>, Options>,
    /// Deliveries below this sequence number may have reached the client under an earlier holder: DUP = 1.
    pub dup_below: u64,
    /// Owner epoch of the claim that created the session: tells its QoS 2 numbers from those of a former session.
    pub incarnation: u64,
}

/// A queued message of one inbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub body: u64,
    /// Bytes that the inbox is charged.
    pub size: u32,
    /// min(publish, subscription).
    pub qos: u8,
    pub retain: bool,
    /// PUBREC is committed: the body is gone, PUBREL is what remains.
    pub received: bool,
    pub identifiers: Vec<u32>,
}

/// Row `n`: counters that outlive the slots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Sequence number of the next message; the first is 0.
    pub next: u64,
    /// Messages that did not fit since the last claim.
    pub missed: u64,
}

/// What waits for the client, oldest first.
#[derive(Debug, Default)]
pub struct Inbox {
    pub(super) slots: VecDeque<(u64, Slot)>,
    pub(super) bytes: u64,
    pub(super) counters: Counters,
}

/// Row `q`: QoS 2 publishes of a durable session, by packet id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Receiving {
    pub(super) last: u64,
    pub(super) numbers: BTreeMap<u16, u64>,
}

/// Row `a`: subscriptions whose retained messages are still to come, each with the newest retained index that a live copy
/// had per topic, so that no older copy follows a newer one.
pub(super) type Awaiting = BTreeMap<Box<str>, BTreeMap<Box<str>, u64>>;

#[derive(Debug)]
pub struct Session {
    pub profile: Profile,
    pub inbox: Inbox,
    pub(super) receiving: Receiving,
    pub(super) awaiting: Awaiting,
}

impl Session {
    pub(super) fn new(profile: Profile) -> Self {
        Self { profile, inbox: Inbox::default(), receiving: Receiving::default(), awaiting: Awaiting::new() }
    }

    /// Whether the offline session's expiry has passed at shard time `now`.
    pub fn is_expired(&self, now: u64) -> bool {
        let profile = &self.profile;
        profile.holder.is_none() && now >= profile.offline_since.saturating_add(u64::from(profile.expiry) * 1000)
    }

    /// Whether the offline session's will is due at shard time `now`.
    pub fn is_will_due(&self, now: u64) -> bool {
        let profile = &self.profile;
        let delay = |will: &Will| profile.offline_since.saturating_add(u64::from(will.delay) * 1000);
        profile.holder.is_none() && profile.will.as_ref().is_some_and(|will| now >= delay(will))
    }
}

impl Inbox {
    /// Messages that wait, PUBRELs included.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Slots at or after `from`, oldest first.
    pub fn from(&self, from: u64) -> impl Iterator<Item = (u64, &Slot)> {
        let start = self.slots.partition_point(|(sequence, _)| *sequence < from);
        self.slots.range(start..).map(|(sequence, slot)| (*sequence, slot))
    }

    /// Sequence number of the oldest slot, or of the next message.
    pub fn head(&self) -> u64 {
        self.slots.front().map_or(self.counters.next, |(sequence, _)| *sequence)
    }

    pub fn next(&self) -> u64 {
        self.counters.next
    }

    /// A message of `size` bytes fits. An empty inbox takes one message of any size.
    pub(super) fn has_room(&self, limits: Limits, size: u64) -> bool {
        self.slots.is_empty()
            || (self.slots.len() < limits.messages as usize && self.bytes.saturating_add(size) <= limits.bytes)
    }

    pub(super) fn push(&mut self, slot: Slot) -> u64 {
        let sequence = self.counters.next;
        self.counters.next += 1;
        self.bytes += u64::from(slot.size);
        self.slots.push_back((sequence, slot));
        sequence
    }

    pub(super) fn remove(&mut self, sequence: u64) -> Option<Slot> {
        let position = self.slots.binary_search_by_key(&sequence, |(sequence, _)| *sequence).ok()?;
        let (_, slot) = self.slots.remove(position)?;
        self.bytes = self.bytes.saturating_sub(u64::from(slot.size));
        Some(slot)
    }

    pub(super) fn get_mut(&mut self, sequence: u64) -> Option<&mut Slot> {
        let position = self.slots.binary_search_by_key(&sequence, |(sequence, _)| *sequence).ok()?;
        self.slots.get_mut(position).map(|(_, slot)| slot)
    }

    /// Sequence numbers within an inclusive range.
    pub(super) fn within(&self, low: u64, high: u64) -> Vec<u64> {
        self.from(low).map(|(sequence, _)| sequence).take_while(|sequence| *sequence <= high).collect()
    }
}
