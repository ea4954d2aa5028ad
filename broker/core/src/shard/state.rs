//! Claims, subscriptions, acknowledgements and ends of sessions.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use covey_codec::QoS;
use covey_types::{InboxSeq, NodeEpoch, NodeId, OwnerEpoch};
use serde::{Deserialize, Serialize};

use super::bodies::Bodies;
use super::command::{Claim, Claimed, End, Entry, Operation, Outcome, Subscribed, Subscription, WantRetained, Will};
use super::session::{Holder, Profile, Session, SessionId, Slot, slot_key};
use crate::dedup::Window;
use crate::live_copies::LiveCopies;
use crate::rows::{self, Rows};
use crate::subscriptions::{Options, QosCounts};
use crate::topic::{Filter, Tree};

/// Most bytes of all filters of a session. A session is one row, and rows of a snapshot must fit into a frame.
const FILTER_BYTES: usize = 1 << 20;

/// Value of row `m`: shard time, and the last number used of each kind; 0 for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// Shard time of the last entry, in milliseconds.
    pub(super) time: u64,
    pub(super) last_session: SessionId,
    /// Owner epoch of the last claim.
    #[serde(with = "covey_types::zero_is_none")]
    pub(super) last_owner: Option<OwnerEpoch>,
    pub(super) last_body: u64,
    pub(super) last_will: u64,
}

/// Value of a row `p`: what the shard knows about a node that sends to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sender {
    /// All epochs up to this one are over.
    #[serde(with = "covey_types::zero_is_none")]
    pub(super) ended: Option<NodeEpoch>,
    /// Newest epoch from which the node sent.
    #[serde(with = "covey_types::zero_is_none")]
    pub(super) epoch: Option<NodeEpoch>,
    /// Number of the last `Enqueue` of that epoch.
    pub(super) last: u64,
    /// Numbers of that epoch that no inbox took, at or above the sender's floor.
    pub(super) rejected: BTreeSet<u64>,
}

/// Value of a row `o`: exactly-once state of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// Numbers that were seen.
    pub(super) window: Window,
    /// Shard time of the last use, in milliseconds.
    pub(super) used: u64,
}

/// Work that an entry causes for the shard's leader. Followers discard it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The session's inbox or its holder changed: deliveries may be possible.
    Ready(SessionId),
    /// The connection `owner` of `holder` no longer holds the session and must be closed.
    Lost { client: Box<str>, owner: OwnerEpoch, holder: Holder },
    /// The highest QoS of the subscriptions with this filter may have changed.
    Route(Box<str>),
    /// The will with this number was queued and must be published.
    Will(u64),
    /// This many inboxes were full and did not take a message.
    Missed(u64),
}

/// State of one shard. Its fields are rebuilt from rows at start, except `effects` and `dirty`.
#[derive(Debug, Default)]
pub struct ShardState {
    /// Shard time and last numbers.
    pub(super) header: Header,
    /// All sessions, transient ones included.
    pub(super) sessions: BTreeMap<SessionId, Session>,
    /// Numbers of the sessions, by client id.
    pub(super) clients: HashMap<Box<str>, SessionId>,
    /// All subscriptions.
    pub(super) tree: Tree<SessionId, Options>,
    /// Subscriptions per filter, counted by QoS: the source of the routes.
    pub(super) filters: BTreeMap<Box<str>, QosCounts>,
    /// Messages to which slots refer.
    pub(super) bodies: Bodies,
    /// Sequence numbers and ended epochs, by sending node.
    pub(super) senders: BTreeMap<NodeId, Sender>,
    /// Exactly-once state, by key.
    pub(super) seen: BTreeMap<Box<str>, Seen>,
    /// Wills to be published, by number.
    pub(super) wills: BTreeMap<u64, Will>,
    /// Effects since the last `take_effects`.
    pub(super) effects: Vec<Effect>,
    /// What the current entry changed so far.
    pub(super) dirty: Dirty,
}

/// Subjects whose rows are written at the end of the entry, by kind of row: `s`, `n`, `q`, `a` and `p`.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    /// Changed profiles (rows `s`).
    pub(super) profiles: BTreeSet<SessionId>,
    /// Changed inbox counters (rows `n`).
    pub(super) counters: BTreeSet<SessionId>,
    /// Changed QoS 2 publishes from clients (rows `q`).
    pub(super) receiving: BTreeSet<SessionId>,
    /// Changed subscriptions that await retained messages (rows `a`).
    pub(super) awaiting: BTreeSet<SessionId>,
    /// Changed senders (rows `p`).
    pub(super) senders: BTreeSet<NodeId>,
}

impl ShardState {
    /// Applies an entry and returns one outcome per operation, in their order.
    pub fn apply(&mut self, entry: Entry, rows: &mut dyn Rows) -> Vec<Outcome> {
        self.header.time = self.header.time.max(entry.time);
        let outcomes = entry.operations.into_iter().map(|operation| self.operate(operation, rows)).collect();
        self.write_dirty(rows);
        outcomes
    }

    fn operate(&mut self, operation: Operation, rows: &mut dyn Rows) -> Outcome {
        match operation {
            Operation::Claim(claim) => self.claim(claim, rows),
            Operation::End(end) => self.end(&end, rows),
            Operation::Subscribe { client, owner, subscriptions } => self.subscribe(&client, owner, subscriptions),
            Operation::Unsubscribe { client, owner, filters } => self.unsubscribe(&client, owner, &filters),
            Operation::Enqueue(enqueue) => self.enqueue(enqueue, rows),
            Operation::Acknowledge { client, owner, ranges } => self.acknowledge(&client, owner, &ranges, rows),
            Operation::Pubrec { client, owner, sequence } => self.pubrec(&client, owner, sequence, rows),
            Operation::BeginQos2 { client, owner, packet } => self.begin_qos2(&client, owner, packet),
            Operation::Release { client, owner, packet } => self.release(&client, owner, packet),
            Operation::DeliverRetained { client, owner, filter, messages, last } => {
                self.deliver_retained(&client, owner, &filter, messages, last, rows)
            }
            Operation::NodeDown { node, epoch } => self.node_down(node, epoch, rows),
            Operation::Expire { client, owner } => self.expire(&client, owner, rows),
            Operation::WillDue { client, owner } => self.will_due(&client, owner, rows),
            Operation::WillDone { will } => {
                rows.delete(rows::key(b'w', &[will]));
                Outcome::Known(self.wills.remove(&will).is_some())
            }
        }
    }

    /// Returns the session if `owner` holds it.
    pub(super) fn held(&mut self, client: &str, owner: OwnerEpoch) -> Option<(SessionId, &mut Session)> {
        let id = *self.clients.get(client)?;
        let session = self.sessions.get_mut(&id)?;
        (session.profile.owner == owner && session.profile.holder.is_some()).then_some((id, session))
    }

    fn claim(&mut self, claim: Claim, rows: &mut dyn Rows) -> Outcome {
        if self.senders.get(&claim.node).is_some_and(|sender| Some(claim.epoch) <= sender.ended) {
            return Outcome::Stale;
        }
        let now = self.header.time;
        if let Some(id) = self.clients.get(&claim.client).copied() {
            if self.sessions.get(&id).is_some_and(|session| session.is_expired(now)) {
                self.remove_session(id, rows);
            } else if let Some(session) = self.sessions.get(&id) {
                let holder = holder(&claim);
                if session.profile.principal != claim.principal {
                    return Outcome::WrongPrincipal;
                }
                if session.profile.holder == Some(holder) {
                    return Outcome::Claimed(claimed(session, self.missed(id)));
                }
                return self.take_over(id, claim, rows);
            }
        }
        self.open(claim)
    }

    fn missed(&self, id: SessionId) -> u64 {
        self.sessions.get(&id).map_or(0, |session| session.inbox.counters.missed)
    }

    /// Claims an existing session: resumes it if it is durable and Clean Start is 0, else replaces it.
    fn take_over(&mut self, id: SessionId, claim: Claim, rows: &mut dyn Rows) -> Outcome {
        self.leave(id, rows);
        let durable = self.sessions.get(&id).is_some_and(|session| session.profile.durable);
        if claim.clean_start || !durable {
            self.remove_session(id, rows);
            return self.open(claim);
        }
        let owner = self.next_owner();
        let Some(session) = self.sessions.get_mut(&id) else { return Outcome::Stale };
        let profile = &mut session.profile;
        profile.owner = owner;
        profile.holder = Some(holder(&claim));
        profile.present = true;
        profile.expiry = claim.expiry;
        profile.offline_since = None;
        profile.will = claim.will;
        profile.limits = claim.limits;
        let answer = claimed(session, session.inbox.counters.missed);
        session.inbox.counters.missed = 0;
        self.dirty.profiles.insert(id);
        self.dirty.counters.insert(id);
        self.effects.push(Effect::Ready(id));
        Outcome::Claimed(answer)
    }

    /// Assigns the owner epoch of a claim.
    fn next_owner(&mut self) -> OwnerEpoch {
        let owner = self.header.last_owner.map_or(OwnerEpoch::FIRST, OwnerEpoch::next);
        self.header.last_owner = Some(owner);
        owner
    }

    /// Creates a session for the claim.
    fn open(&mut self, claim: Claim) -> Outcome {
        self.header.last_session += 1;
        let (owner, id) = (self.next_owner(), self.header.last_session);
        let session = Session::new(Profile {
            holder: Some(holder(&claim)),
            client: claim.client.clone(),
            principal: claim.principal,
            owner,
            present: false,
            durable: claim.expiry > 0,
            expiry: claim.expiry,
            offline_since: None,
            will: claim.will,
            limits: claim.limits,
            subscriptions: BTreeMap::new(),
            dup_below: InboxSeq::FIRST,
            created_by: owner,
        });
        let answer = claimed(&session, 0);
        self.clients.insert(claim.client, id);
        self.sessions.insert(id, session);
        self.dirty.profiles.insert(id);
        self.effects.push(Effect::Ready(id));
        Outcome::Claimed(answer)
    }

    /// Takes the holder from the session, if it has one: the session is offline and its will delay begins. A will
    /// without delay is queued at once, even if another connection has claimed the session.
    fn leave(&mut self, id: SessionId, rows: &mut dyn Rows) {
        let now = self.header.time;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let profile = &mut session.profile;
        if let Some(holder) = profile.holder.take() {
            profile.offline_since = Some(now).filter(|now| *now > 0);
            profile.dup_below = session.inbox.counters.next;
            self.effects.push(Effect::Lost { client: profile.client.clone(), owner: profile.owner, holder });
            self.dirty.profiles.insert(id);
        }
        if profile.will.as_ref().is_some_and(|will| will.delay == 0) {
            let will = profile.will.take();
            self.queue_will(will, rows);
        }
    }

    /// Assigns a number to the will and stores it for the leader.
    fn queue_will(&mut self, will: Option<Will>, rows: &mut dyn Rows) {
        let Some(will) = will else { return };
        self.header.last_will += 1;
        let number = self.header.last_will;
        rows.put(rows::key(b'w', &[number]), rows::encode(&will));
        self.wills.insert(number, will);
        self.effects.push(Effect::Will(number));
    }

    fn end(&mut self, end: &End, rows: &mut dyn Rows) -> Outcome {
        let Some((id, session)) = self.held(&end.client, end.owner) else { return Outcome::Stale };
        let profile = &mut session.profile;
        if end.drop_will {
            profile.will = None;
        }
        // MQTT 5, section 3.14.2.2.2: DISCONNECT must not set an expiry if that of CONNECT was 0.
        if let Some(expiry) = end.expiry.filter(|_| profile.expiry > 0) {
            profile.expiry = expiry;
        }
        self.leave(id, rows);
        self.remove_if_over(id, rows);
        Outcome::Done
    }

    /// Removes a session whose expiry is 0, after its connection has ended.
    fn remove_if_over(&mut self, id: SessionId, rows: &mut dyn Rows) {
        if self.sessions.get(&id).is_some_and(|session| session.profile.expiry == 0) {
            self.remove_session(id, rows);
        }
    }

    /// Removes a session with its rows; a will that is left is queued, since the session's end makes it due (MQTT 5,
    /// section 3.1.3.2.2).
    pub(super) fn remove_session(&mut self, id: SessionId, rows: &mut dyn Rows) {
        let Some(mut session) = self.sessions.remove(&id) else { return };
        self.clients.remove(&session.profile.client);
        self.queue_will(session.profile.will.take(), rows);
        for (sequence, slot) in session.inbox.slots.drain(..) {
            rows.delete(slot_key(id, sequence));
            if !slot.received {
                self.bodies.release(slot.body, rows);
            }
        }
        for (filter, options) in &session.profile.subscriptions {
            self.forget_filter(id, filter, options.qos);
        }
        for kind in [b's', b'n', b'q', b'a'] {
            rows.delete(rows::key(kind, &[id]));
        }
    }

    fn forget_filter(&mut self, id: SessionId, filter: &str, qos: QoS) {
        if let Ok(parsed) = filter.parse::<Filter>() {
            self.tree.remove(&parsed, &id);
        }
        if let Some(counts) = self.filters.get_mut(filter) {
            counts.remove(qos);
            if counts.highest().is_none() {
                self.filters.remove(filter);
            }
        }
        self.effects.push(Effect::Route(filter.into()));
    }

    fn subscribe(&mut self, client: &str, owner: OwnerEpoch, subscriptions: Vec<Subscription>) -> Outcome {
        let Some((id, _)) = self.held(client, owner) else { return Outcome::Stale };
        Outcome::Subscribed(subscriptions.into_iter().map(|wanted| self.subscribe_one(id, wanted)).collect())
    }

    fn subscribe_one(&mut self, id: SessionId, wanted: Subscription) -> Subscribed {
        let (Some(session), Ok(filter)) = (self.sessions.get_mut(&id), wanted.filter.parse::<Filter>()) else {
            return Subscribed::LimitReached;
        };
        let profile = &mut session.profile;
        let known = profile.subscriptions.contains_key(&wanted.filter);
        let bytes = || profile.subscriptions.keys().map(|filter| filter.len()).sum::<usize>() + wanted.filter.len();
        if !known && (profile.subscriptions.len() >= profile.limits.subscriptions as usize || bytes() > FILTER_BYTES) {
            return Subscribed::LimitReached;
        }
        let former = profile.subscriptions.insert(wanted.filter.clone(), wanted.options);
        let awaits_retained = match wanted.retained {
            WantRetained::Always => true,
            WantRetained::IfNew => !known,
            WantRetained::Never => false,
        };
        if awaits_retained {
            session.awaiting.insert(wanted.filter.clone(), LiveCopies::default());
            self.dirty.awaiting.insert(id);
        }
        self.dirty.profiles.insert(id);
        self.tree.insert(&filter, id, wanted.options);
        let counts = self.filters.entry(wanted.filter.clone()).or_default();
        counts.add(wanted.options.qos);
        if let Some(former) = former {
            counts.remove(former.qos);
        }
        self.effects.push(Effect::Route(wanted.filter));
        Subscribed::Granted { qos: wanted.options.qos, awaits_retained }
    }

    fn unsubscribe(&mut self, client: &str, owner: OwnerEpoch, filters: &[Box<str>]) -> Outcome {
        let Some((id, _)) = self.held(client, owner) else { return Outcome::Stale };
        let mut existed = Vec::with_capacity(filters.len());
        for filter in filters {
            let former = self.sessions.get_mut(&id).and_then(|session| {
                session.awaiting.remove(filter);
                session.profile.subscriptions.remove(filter)
            });
            if let Some(options) = former {
                self.forget_filter(id, filter, options.qos);
                self.dirty.profiles.insert(id);
                self.dirty.awaiting.insert(id);
            }
            existed.push(former.is_some());
        }
        Outcome::Unsubscribed(existed)
    }

    fn acknowledge(
        &mut self,
        client: &str,
        owner: OwnerEpoch,
        ranges: &[(InboxSeq, InboxSeq)],
        rows: &mut dyn Rows,
    ) -> Outcome {
        let Some((id, session)) = self.held(client, owner) else { return Outcome::Stale };
        let mut removed: Vec<(InboxSeq, Slot)> = Vec::new();
        for (low, high) in ranges {
            for sequence in session.inbox.within(*low, *high) {
                removed.extend(session.inbox.remove(sequence).map(|slot| (sequence, slot)));
            }
        }
        for (sequence, slot) in removed {
            rows.delete(slot_key(id, sequence));
            if !slot.received {
                self.bodies.release(slot.body, rows);
            }
        }
        self.effects.push(Effect::Ready(id));
        Outcome::Done
    }

    fn pubrec(&mut self, client: &str, owner: OwnerEpoch, sequence: InboxSeq, rows: &mut dyn Rows) -> Outcome {
        let Some((id, session)) = self.held(client, owner) else { return Outcome::Stale };
        let Some(slot) = session.inbox.get_mut(sequence) else { return Outcome::Known(false) };
        if !slot.received {
            slot.received = true;
            let (row, body) = (rows::encode(&*slot), slot.body);
            rows.put(slot_key(id, sequence), row);
            self.bodies.release(body, rows);
        }
        Outcome::Known(true)
    }

    fn begin_qos2(&mut self, client: &str, owner: OwnerEpoch, packet: u16) -> Outcome {
        let Some((id, session)) = self.held(client, owner) else { return Outcome::Stale };
        let receiving = &mut session.receiving;
        let number = if let Some(number) = receiving.numbers.get(&packet) {
            *number
        } else {
            receiving.last += 1;
            receiving.numbers.insert(packet, receiving.last);
            receiving.last
        };
        let floor = receiving.numbers.values().min().copied().unwrap_or(number);
        let created_by = session.profile.created_by;
        self.dirty.receiving.insert(id);
        Outcome::Qos2Begun { number, floor, created_by }
    }

    fn release(&mut self, client: &str, owner: OwnerEpoch, packet: u16) -> Outcome {
        let Some((id, session)) = self.held(client, owner) else { return Outcome::Stale };
        let known = session.receiving.numbers.remove(&packet).is_some();
        self.dirty.receiving.insert(id);
        Outcome::Known(known)
    }

    fn node_down(&mut self, node: NodeId, epoch: NodeEpoch, rows: &mut dyn Rows) -> Outcome {
        let sender = self.senders.entry(node).or_default();
        if Some(epoch) <= sender.ended {
            return Outcome::Done;
        }
        sender.ended = Some(epoch);
        sender.rejected.clear();
        self.dirty.senders.insert(node);
        let is_gone = |session: &Session| {
            session.profile.holder.is_some_and(|holder| holder.node == node && holder.epoch <= epoch)
        };
        let gone: Vec<SessionId> =
            self.sessions.iter().filter(|(_, session)| is_gone(session)).map(|(id, _)| *id).collect();
        for id in gone {
            self.leave(id, rows);
            self.remove_if_over(id, rows);
        }
        Outcome::Done
    }

    fn expire(&mut self, client: &str, owner: OwnerEpoch, rows: &mut dyn Rows) -> Outcome {
        let now = self.header.time;
        let Some(id) = self.clients.get(client).copied() else { return Outcome::Known(false) };
        let due = |session: &Session| session.profile.owner == owner && session.is_expired(now);
        let expired = self.sessions.get(&id).is_some_and(due);
        if expired {
            self.remove_session(id, rows);
        }
        Outcome::Known(expired)
    }

    fn will_due(&mut self, client: &str, owner: OwnerEpoch, rows: &mut dyn Rows) -> Outcome {
        let now = self.header.time;
        let session = self.clients.get(client).and_then(|id| self.sessions.get_mut(id).map(|session| (*id, session)));
        let Some((id, session)) =
            session.filter(|(_, session)| session.profile.owner == owner && session.is_will_due(now))
        else {
            return Outcome::Known(false);
        };
        let will = session.profile.will.take();
        self.dirty.profiles.insert(id);
        self.queue_will(will, rows);
        Outcome::Known(true)
    }
}

fn holder(claim: &Claim) -> Holder {
    Holder { node: claim.node, epoch: claim.epoch, connection: claim.connection }
}

fn claimed(session: &Session, missed: u64) -> Claimed {
    let profile = &session.profile;
    Claimed {
        owner: profile.owner,
        present: profile.present,
        durable: profile.durable,
        filters: if profile.present { profile.subscriptions.keys().cloned().collect() } else { Vec::new() },
        missed,
    }
}
