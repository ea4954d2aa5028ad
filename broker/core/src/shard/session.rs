//! One session of a shard: its holder, subscriptions and inbox.

use std::collections::{BTreeMap, VecDeque};

use covey_codec::QoS;
use covey_types::{ConnectionId, InboxSeq, NodeEpoch, NodeId, OwnerEpoch};
use serde::{Deserialize, Serialize};

use super::command::Will;
use crate::live_copies::LiveCopies;
use crate::rows;
use crate::subscriptions::Options;

/// Number of a session within its shard, counted from 1 and never reused.
pub type SessionId = u64;

/// Limits of a session. They are part of the claim, so that every replica applies the same ones whatever its
/// configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Most messages in the inbox.
    pub messages: u32,
    /// Most bytes in the inbox.
    pub bytes: u64,
    /// Most subscriptions.
    pub subscriptions: u32,
}

/// The connection that holds a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Node of the connection.
    pub node: NodeId,
    /// Epoch of that node.
    pub epoch: NodeEpoch,
    /// The connection.
    pub connection: ConnectionId,
}

/// Value of a row `s`: what changes with connections and subscriptions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Client id.
    pub client: Box<str>,
    /// User name of the client that opened the session.
    pub principal: Box<str>,
    /// Owner epoch of the last claim, increasing over all claims of the shard. Operations with an older one are
    /// refused.
    pub owner: OwnerEpoch,
    /// Connection that holds the session; `None` while it is offline.
    pub holder: Option<Holder>,
    /// Session Present of the last claim, kept to answer a repeated claim.
    pub present: bool,
    /// True if the shard holds subscriptions and inbox; false for a transient session, which its node holds.
    pub durable: bool,
    /// Session expiry in seconds, counted from the loss of the holder; 0 for a session that ends with its connection.
    pub expiry: u32,
    /// Shard time in milliseconds at which the holder was lost; `None` while the session is online. Shard time 0 is
    /// stored like `None` and counts the same.
    #[serde(with = "covey_types::zero_is_none")]
    pub offline_since: Option<u64>,
    /// Will of the last connection; `None` if there is none or it was published or discarded.
    pub will: Option<Will>,
    /// Limits from the last claim.
    pub limits: Limits,
    /// Subscriptions by filter.
    pub subscriptions: BTreeMap<Box<str>, Options>,
    /// Deliveries with a lower sequence number may have been sent to an earlier connection: DUP is set.
    pub dup_below: InboxSeq,
    /// Owner epoch of the claim that created the session. Distinguishes its QoS 2 numbers from those of an earlier
    /// session with the same client id.
    pub created_by: OwnerEpoch,
}

/// Value of a row `i`: a message in an inbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Id of the message's body.
    pub body: u64,
    /// Bytes that the inbox is charged for it.
    pub size: u32,
    /// QoS of the delivery: the lower one of publish and subscription. 0 only for a retained message.
    pub qos: QoS,
    /// Retain flag of the delivery.
    pub retain: bool,
    /// PUBREC is committed: the body is released and only PUBREL is sent.
    pub received: bool,
    /// Subscription identifiers.
    pub identifiers: Vec<u32>,
}

/// Value of a row `n`: counters that must survive the removal of slots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Sequence number of the next message.
    pub next: InboxSeq,
    /// Messages that did not fit since the last claim.
    pub missed: u64,
}

/// Messages for one client, in the order of their sequence numbers.
#[derive(Debug, Default)]
pub struct Inbox {
    /// Slots by sequence number. Numbers may be missing, since acknowledgements come in any order.
    pub(super) slots: VecDeque<(InboxSeq, Slot)>,
    /// Sum of the slots' sizes in bytes.
    pub(super) bytes: u64,
    /// Counters that outlive the slots.
    pub(super) counters: Counters,
}

/// Value of a row `q`: QoS 2 publishes from the client of a durable session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Receiving {
    /// Number of the last publish.
    pub(super) last: u64,
    /// Numbers of the publishes that are not released, by packet id.
    pub(super) numbers: BTreeMap<u16, u64>,
}

/// Value of a row `a`: filters whose retained messages are still to come, each with the live copies that were delivered
/// meanwhile.
pub(super) type Awaiting = BTreeMap<Box<str>, LiveCopies>;

/// A session. Only durable sessions have subscriptions and an inbox here.
#[derive(Debug)]
pub struct Session {
    /// Holder, limits and subscriptions.
    pub profile: Profile,
    /// Messages that wait for the client.
    pub inbox: Inbox,
    /// QoS 2 publishes from the client that are not released.
    pub(super) receiving: Receiving,
    /// Subscriptions that await their retained messages.
    pub(super) awaiting: Awaiting,
}

impl Session {
    pub(super) fn new(profile: Profile) -> Self {
        Self { profile, inbox: Inbox::default(), receiving: Receiving::default(), awaiting: Awaiting::new() }
    }

    /// Returns whether the session is offline and its expiry has passed at shard time `now` (milliseconds).
    pub fn is_expired(&self, now: u64) -> bool {
        self.is_offline_for(self.profile.expiry, now)
    }

    /// Returns whether the session is offline and its will is due at shard time `now` (milliseconds).
    pub fn is_will_due(&self, now: u64) -> bool {
        self.profile.will.as_ref().is_some_and(|will| self.is_offline_for(will.delay, now))
    }

    /// Returns whether the session is offline and has been for at least `seconds` at shard time `now` (milliseconds).
    fn is_offline_for(&self, seconds: u32, now: u64) -> bool {
        let since = self.profile.offline_since.unwrap_or_default();
        self.profile.holder.is_none() && now >= since.saturating_add(u64::from(seconds) * 1000)
    }
}

impl Inbox {
    /// Returns the number of slots, those that only await PUBCOMP included.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns whether there are no slots.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Returns the bytes that the slots are charged.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Slots with a sequence number of at least `from`, oldest first.
    pub fn from(&self, from: InboxSeq) -> impl Iterator<Item = (InboxSeq, &Slot)> {
        let start = self.slots.partition_point(|(sequence, _)| *sequence < from);
        self.slots.range(start..).map(|(sequence, slot)| (*sequence, slot))
    }

    /// Returns the sequence number of the oldest slot, or of the next message if there is none.
    pub fn head(&self) -> InboxSeq {
        self.slots.front().map_or(self.counters.next, |(sequence, _)| *sequence)
    }

    /// Returns the sequence number that the next message gets.
    pub fn next(&self) -> InboxSeq {
        self.counters.next
    }

    /// Returns whether a message of `size` bytes fits. An empty inbox takes one message of any size.
    pub(super) fn has_room(&self, limits: Limits, size: u64) -> bool {
        self.slots.is_empty()
            || (self.slots.len() < limits.messages as usize && self.bytes.saturating_add(size) <= limits.bytes)
    }

    /// Appends a slot and returns its sequence number.
    pub(super) fn push(&mut self, slot: Slot) -> InboxSeq {
        let sequence = self.counters.next;
        self.counters.next = sequence.next();
        self.bytes += u64::from(slot.size);
        self.slots.push_back((sequence, slot));
        sequence
    }

    /// Removes and returns the slot with that sequence number.
    pub(super) fn remove(&mut self, sequence: InboxSeq) -> Option<Slot> {
        let position = self.slots.binary_search_by_key(&sequence, |(sequence, _)| *sequence).ok()?;
        let (_, slot) = self.slots.remove(position)?;
        self.bytes = self.bytes.saturating_sub(u64::from(slot.size));
        Some(slot)
    }

    /// Returns the slot with that sequence number.
    pub(super) fn get_mut(&mut self, sequence: InboxSeq) -> Option<&mut Slot> {
        let position = self.slots.binary_search_by_key(&sequence, |(sequence, _)| *sequence).ok()?;
        self.slots.get_mut(position).map(|(_, slot)| slot)
    }

    /// Returns the sequence numbers that are in the inbox between `low` and `high`, both inclusive.
    pub(super) fn within(&self, low: InboxSeq, high: InboxSeq) -> Vec<InboxSeq> {
        self.from(low).map(|(sequence, _)| sequence).take_while(|sequence| *sequence <= high).collect()
    }
}

/// Returns the key of the row that stores a slot.
pub(super) fn slot_key(session: SessionId, sequence: InboxSeq) -> Vec<u8> {
    rows::key(b'i', &[session, sequence.get()])
}
