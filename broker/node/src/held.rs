//! Registry of the sessions whose connections are on this node.

use std::collections::HashMap;
use std::sync::Arc;

use covey_codec::QoS;
use covey_core::dedup::Window;
use covey_core::shard::{Once, Publication};
use covey_core::subscriptions::Match;
use covey_core::topic::Name;
use covey_mqtt::session::{Close, Delivery, Event};
use covey_types::{ConnectionId, InboxSeq, NodeEpoch, OwnerEpoch};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::Observer;
use super::message;
use super::outbox::{Durable, Full};
use super::transient::{Filters, TransientSession};
use super::wire::FromShard;

/// Most QoS 0 messages that wait for a connection, as many as a transient queue holds. Further ones are dropped and
/// counted.
const VOLATILE: usize = 1000;
/// Slots of a connection's event channel that QoS 0 does not use: for a window of deliveries with their PUBRELs, and
/// for `Close`.
const KEPT_FOR_ACKNOWLEDGED: usize = 300;
/// Capacity of a connection's event channel.
pub(super) const EVENTS: usize = VOLATILE + KEPT_FOR_ACKNOWLEDGED;
/// Most keys of QoS 2 publishers that are remembered for transient sessions. When exceeded, all are forgotten.
const SEEN: usize = 10_000;

/// A session that a connection of this node holds.
#[derive(Debug)]
pub(super) struct Held {
    /// Client id.
    pub(super) client: Box<str>,
    /// User name.
    pub(super) principal: Arc<str>,
    /// Owner epoch from the claim.
    pub owner: OwnerEpoch,
    /// Node epoch under which the claim was made.
    pub epoch: NodeEpoch,
    /// The connection, as in the claim.
    pub connection: ConnectionId,
    /// Events for the connection; `None` once `Close` was sent, after which the channel ends.
    pub events: Mutex<Option<mpsc::Sender<Event>>>,
    /// Deliveries to the client, and the state of a transient session.
    pub outbox: Mutex<Outbox>,
}

/// State of a session on this node.
#[derive(Debug)]
pub(super) enum Outbox {
    /// Queue and subscriptions are in the shard.
    Durable(Durable),
    /// All state is here.
    Transient(TransientSession),
}

/// All sessions here.
pub(super) struct Registry {
    /// Subscriptions of the transient sessions.
    filters: Arc<Filters>,
    /// Counts dropped messages.
    observer: Arc<dyn Observer>,
    /// Sessions by client id and by connection.
    sessions: Mutex<Sessions>,
    /// Exactly-once state of messages for transient sessions.
    seen: Mutex<Seen>,
}

/// Numbers that were seen, by exactly-once key.
type Seen = HashMap<Box<str>, Window>;

/// The same sessions by two keys.
#[derive(Debug, Default)]
struct Sessions {
    /// By client id: the session with the newest owner epoch.
    clients: HashMap<Box<str>, Arc<Held>>,
    /// By connection; includes those that are being taken over.
    connections: HashMap<ConnectionId, Arc<Held>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("sessions", &self.sessions).finish_non_exhaustive()
    }
}

impl Registry {
    pub(super) fn new(filters: Arc<Filters>, observer: Arc<dyn Observer>) -> Arc<Self> {
        Arc::new(Self { filters, observer, sessions: Mutex::default(), seen: Mutex::default() })
    }

    /// Registers a session. If two connections have the same client id, the one with the older owner epoch is closed.
    pub(super) fn insert(&self, held: Arc<Held>) {
        let loser = {
            let mut sessions = self.sessions.lock();
            sessions.connections.insert(held.connection, held.clone());
            match sessions.clients.get(&held.client) {
                Some(known) if known.owner > held.owner => Some(held),
                _ => sessions.clients.insert(held.client.clone(), held),
            }
        };
        if let Some(loser) = loser {
            self.close(&loser, Close::TakenOver);
        }
    }

    /// Removes a session. Returns `false` if it was already removed.
    pub(super) fn remove(&self, held: &Held) -> bool {
        let removed = {
            let mut sessions = self.sessions.lock();
            if sessions.clients.get(&held.client).is_some_and(|known| known.connection == held.connection) {
                sessions.clients.remove(&held.client);
            }
            sessions.connections.remove(&held.connection).is_some()
        };
        if let Outbox::Transient(session) = &*held.outbox.lock() {
            session.forget(&self.filters);
        }
        removed
    }

    /// Removes a session and asks its connection to close.
    pub(super) fn close(&self, held: &Held, why: Close) {
        self.remove(held);
        held.end(why);
    }

    /// Removes all sessions and asks their connections to close.
    pub(super) fn close_all(&self, why: Close) {
        let all: Vec<Arc<Held>> = self.sessions.lock().connections.values().cloned().collect();
        for held in &all {
            self.close(held, why);
        }
    }

    /// Returns the number of transient sessions.
    pub(super) fn transient(&self) -> usize {
        self.sessions.lock().connections.values().filter(|held| !held.is_durable()).count()
    }

    /// Returns the number of sessions per user name.
    pub(super) fn by_user(&self) -> HashMap<String, u32> {
        let mut users = HashMap::new();
        for held in self.sessions.lock().connections.values() {
            *users.entry(held.principal.to_string()).or_default() += 1;
        }
        users
    }

    /// Returns the number of sessions.
    pub(super) fn len(&self) -> usize {
        self.sessions.lock().connections.len()
    }

    /// Handles a frame from a shard's leader. Returns deliveries to acknowledge (client id, owner epoch, sequence
    /// numbers): those that the leader repeats although they were acknowledged, and those that need no
    /// acknowledgement.
    pub(super) fn on_shard(&self, event: FromShard) -> Option<(Box<str>, OwnerEpoch, Vec<InboxSeq>)> {
        match event {
            FromShard::Deliver { client, owner, items } => {
                let held = self.find(&client, owner)?;
                let mut outbox = held.outbox.lock();
                let Outbox::Durable(durable) = &mut *outbox else { return None };
                let (events, again) = durable.take(items);
                drop(outbox);
                Self::send(&held, events);
                (!again.is_empty()).then_some((client, owner, again))
            }
            FromShard::Volatile { client, owner, retain, identifiers, expiry, body } => {
                let held = self.find(&client, owner)?;
                let message = message::decode(&body, QoS::AtMostOnce, retain, expiry)?;
                self.send_volatile(
                    &held,
                    Delivery { packet_id: None, dup: false, message, subscription_identifiers: identifiers },
                );
                None
            }
            FromShard::Lost { client, owner } => {
                if let Some(held) = self.find(&client, owner) {
                    self.close(&held, Close::TakenOver);
                }
                None
            }
            FromShard::Attached | FromShard::Answer { .. } | FromShard::Enqueued { .. } => None,
        }
    }

    fn find(&self, client: &str, owner: OwnerEpoch) -> Option<Arc<Held>> {
        self.sessions.lock().clients.get(client).filter(|held| held.owner == owner).cloned()
    }

    /// Sends events that must not be dropped. A connection without room for them is closed. Its session stays
    /// registered until the connection has ended, because only that ends the claim and publishes the will.
    pub(super) fn send(held: &Held, events: Vec<Event>) {
        for event in events {
            if !held.offer(event, 0) {
                held.end(Close::QueueFull);
                return;
            }
        }
    }

    /// Sends a QoS 0 message if there is room, else counts it as dropped.
    fn send_volatile(&self, held: &Held, delivery: Delivery) {
        if !held.offer(Event::Deliver(Box::new(delivery)), KEPT_FOR_ACKNOWLEDGED) {
            self.observer.dropped_slow();
        }
    }

    /// Delivers a message to the matching transient sessions and returns their number.
    pub(super) fn deliver(&self, message: &Publication) -> u32 {
        if message.once.as_ref().is_some_and(|once| self.is_repeated(once)) {
            return 1;
        }
        let Ok(name) = message.topic.parse::<Name>() else { return 0 };
        let own = {
            let sessions = self.sessions.lock();
            message.publisher.as_ref().and_then(|client| sessions.clients.get(client)).map(|held| held.connection)
        };
        let matches = self.filters.matches(&name, |connection| own == Some(connection));
        let mut matched = 0;
        for (connection, found) in matches {
            let held = self.sessions.lock().connections.get(&connection).cloned();
            if let Some(held) = held {
                matched += 1;
                self.deliver_to(&held, &name, message, found);
            }
        }
        matched
    }

    fn deliver_to(&self, held: &Held, name: &Name, message: &Publication, matched: Match) {
        let qos = matched.qos.min(message.qos);
        let retain = matched.retain_as_published && message.retain;
        let Some(decoded) = message::decode(&message.body, qos, retain, message.expiry) else { return };
        let delivery =
            Delivery { packet_id: None, dup: false, message: decoded, subscription_identifiers: matched.identifiers };
        if let Some(index) = message.retained_index {
            held.note_live_copy(name, index);
        }
        if qos == QoS::AtMostOnce {
            self.send_volatile(held, delivery);
        } else {
            Self::queue(held, delivery);
        }
    }

    /// Queues a QoS 1 or 2 delivery for a transient session; a full queue closes the session (0x97).
    pub(super) fn queue(held: &Held, delivery: Delivery) {
        if let Outbox::Transient(session) = &mut *held.outbox.lock() {
            Self::push(held, session, delivery);
        }
    }

    fn push(held: &Held, session: &mut TransientSession, delivery: Delivery) {
        match session.push(delivery) {
            Ok(events) => Self::send(held, events),
            Err(Full) => held.end(Close::QueueFull),
        }
    }

    /// Sends a retained message to a transient session, which is that of the locked outbox.
    pub(super) fn send_retained(held: &Held, session: &mut TransientSession, delivery: Delivery) {
        if delivery.message.qos == QoS::AtMostOnce {
            Self::send(held, vec![Event::Deliver(Box::new(delivery))]);
        } else {
            Self::push(held, session, delivery);
        }
    }

    /// Records the number and returns whether it was recorded before, or is below the key's floor.
    fn is_repeated(&self, once: &Once) -> bool {
        let mut seen = self.seen.lock();
        if seen.len() > SEEN {
            seen.clear();
        }
        seen.entry(once.key.clone()).or_default().is_repeated(once.number, once.floor)
    }
}

impl Held {
    /// Records the index of a live retained message, for subscriptions that still await their retained messages.
    fn note_live_copy(&self, name: &Name, index: u64) {
        if let Outbox::Transient(session) = &mut *self.outbox.lock() {
            session.note_live_copy(name, index);
        }
    }

    /// Queues `event` if at least `left` slots stay free afterwards; returns whether it was queued. One slot is always
    /// reserved for `Close`.
    fn offer(&self, event: Event, left: usize) -> bool {
        let events = self.events.lock();
        events.as_ref().is_some_and(|events| events.capacity() > left.max(1) && events.try_send(event).is_ok())
    }

    /// Asks the connection to close; only the first call has an effect.
    fn end(&self, why: Close) {
        if let Some(events) = self.events.lock().take() {
            // Fails if the connection has already ended.
            drop(events.try_send(Event::Close(why)));
        }
    }

    /// Returns whether the session is durable.
    pub(super) fn is_durable(&self) -> bool {
        matches!(&*self.outbox.lock(), Outbox::Durable(_))
    }
}
