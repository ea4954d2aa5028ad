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
use super::inflight::{Full, Inflight};
use super::message;
use super::transient::{Filters, TransientSession};
use super::wire::FromShard;

/// Most QoS 0 messages that wait for a connection, as many as a transient queue holds. Further ones are dropped and
/// counted.
const MAX_QOS0_QUEUED: usize = 1000;
/// Slots of a connection's event channel that QoS 0 does not use: for a window of deliveries with their PUBRELs, and
/// for `Close`.
const RESERVED_SLOTS: usize = 300;
/// Capacity of a connection's event channel.
pub(super) const EVENT_CAPACITY: usize = MAX_QOS0_QUEUED + RESERVED_SLOTS;
/// Most keys of QoS 2 publishers that are remembered for transient sessions. When exceeded, all are forgotten.
const MAX_SEEN_KEYS: usize = 10_000;

/// A session that a connection of this node holds.
#[derive(Debug)]
pub(super) struct LocalSession {
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
    pub state: Mutex<SessionState>,
}

/// State of a session on this node.
#[derive(Debug)]
pub(super) enum SessionState {
    /// Queue and subscriptions are in the shard.
    Durable(Inflight),
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
    clients: HashMap<Box<str>, Arc<LocalSession>>,
    /// By connection; includes those that are being taken over.
    connections: HashMap<ConnectionId, Arc<LocalSession>>,
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
    pub(super) fn insert(&self, session: Arc<LocalSession>) {
        let loser = {
            let mut sessions = self.sessions.lock();
            sessions.connections.insert(session.connection, session.clone());
            match sessions.clients.get(&session.client) {
                Some(known) if known.owner > session.owner => Some(session),
                _ => sessions.clients.insert(session.client.clone(), session),
            }
        };
        if let Some(loser) = loser {
            self.close(&loser, Close::TakenOver);
        }
    }

    /// Removes a session. Returns `false` if it was already removed.
    pub(super) fn remove(&self, session: &LocalSession) -> bool {
        let removed = {
            let mut sessions = self.sessions.lock();
            if sessions.clients.get(&session.client).is_some_and(|known| known.connection == session.connection) {
                sessions.clients.remove(&session.client);
            }
            sessions.connections.remove(&session.connection).is_some()
        };
        if let SessionState::Transient(transient) = &*session.state.lock() {
            transient.forget(&self.filters);
        }
        removed
    }

    /// Removes a session and asks its connection to close.
    pub(super) fn close(&self, session: &LocalSession, why: Close) {
        self.remove(session);
        session.end(why);
    }

    /// Removes all sessions and asks their connections to close.
    pub(super) fn close_all(&self, why: Close) {
        let all: Vec<Arc<LocalSession>> = self.sessions.lock().connections.values().cloned().collect();
        for session in &all {
            self.close(session, why);
        }
    }

    /// Returns the number of transient sessions.
    pub(super) fn transient(&self) -> usize {
        self.sessions.lock().connections.values().filter(|session| !session.is_durable()).count()
    }

    /// Returns the number of sessions per user name.
    pub(super) fn by_user(&self) -> HashMap<String, u32> {
        let mut users = HashMap::new();
        for session in self.sessions.lock().connections.values() {
            *users.entry(session.principal.to_string()).or_default() += 1;
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
                let session = self.find(&client, owner)?;
                let mut state = session.state.lock();
                let SessionState::Durable(durable) = &mut *state else { return None };
                let (events, again) = durable.take(items);
                drop(state);
                Self::send(&session, events);
                (!again.is_empty()).then_some((client, owner, again))
            }
            FromShard::Qos0 { client, owner, retain, identifiers, expiry, body } => {
                let session = self.find(&client, owner)?;
                let message = message::decode(&body, QoS::AtMostOnce, retain, expiry)?;
                self.send_qos0(
                    &session,
                    Delivery { packet_id: None, dup: false, message, subscription_identifiers: identifiers },
                );
                None
            }
            FromShard::Lost { client, owner } => {
                if let Some(session) = self.find(&client, owner) {
                    self.close(&session, Close::TakenOver);
                }
                None
            }
            FromShard::Attached | FromShard::Answer { .. } | FromShard::Enqueued { .. } => None,
        }
    }

    fn find(&self, client: &str, owner: OwnerEpoch) -> Option<Arc<LocalSession>> {
        self.sessions.lock().clients.get(client).filter(|session| session.owner == owner).cloned()
    }

    /// Sends events that must not be dropped. A connection without room for them is closed. Its session stays
    /// registered until the connection has ended, because only that ends the claim and publishes the will.
    pub(super) fn send(session: &LocalSession, events: Vec<Event>) {
        for event in events {
            if !session.offer(event, 0) {
                session.end(Close::QueueFull);
                return;
            }
        }
    }

    /// Sends a QoS 0 message if there is room, else counts it as dropped.
    fn send_qos0(&self, session: &LocalSession, delivery: Delivery) {
        if !session.offer(Event::Deliver(Box::new(delivery)), RESERVED_SLOTS) {
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
            message.publisher.as_ref().and_then(|client| sessions.clients.get(client)).map(|session| session.connection)
        };
        let matches = self.filters.matches(&name, |connection| own == Some(connection));
        let mut matched = 0;
        for (connection, found) in matches {
            let session = self.sessions.lock().connections.get(&connection).cloned();
            if let Some(session) = session {
                matched += 1;
                self.deliver_to(&session, &name, message, found);
            }
        }
        matched
    }

    fn deliver_to(&self, session: &LocalSession, name: &Name, message: &Publication, matched: Match) {
        let qos = matched.qos.min(message.qos);
        let retain = matched.retain_as_published && message.retain;
        let Some(decoded) = message::decode(&message.body, qos, retain, message.expiry) else { return };
        let delivery =
            Delivery { packet_id: None, dup: false, message: decoded, subscription_identifiers: matched.identifiers };
        if let Some(index) = message.retained_index {
            session.note_live_copy(name, index);
        }
        if qos == QoS::AtMostOnce {
            self.send_qos0(session, delivery);
        } else {
            Self::queue(session, delivery);
        }
    }

    /// Queues a QoS 1 or 2 delivery for a transient session; a full queue closes the session (0x97).
    pub(super) fn queue(session: &LocalSession, delivery: Delivery) {
        if let SessionState::Transient(transient) = &mut *session.state.lock() {
            Self::push(session, transient, delivery);
        }
    }

    fn push(session: &LocalSession, transient: &mut TransientSession, delivery: Delivery) {
        match transient.push(delivery) {
            Ok(events) => Self::send(session, events),
            Err(Full) => session.end(Close::QueueFull),
        }
    }

    /// Sends a retained message to a transient session, which is that of the locked state.
    pub(super) fn send_retained(session: &LocalSession, transient: &mut TransientSession, delivery: Delivery) {
        if delivery.message.qos == QoS::AtMostOnce {
            Self::send(session, vec![Event::Deliver(Box::new(delivery))]);
        } else {
            Self::push(session, transient, delivery);
        }
    }

    /// Records the number and returns whether it was recorded before, or is below the key's floor.
    fn is_repeated(&self, once: &Once) -> bool {
        let mut seen = self.seen.lock();
        if seen.len() > MAX_SEEN_KEYS {
            seen.clear();
        }
        seen.entry(once.key.clone()).or_default().is_repeated(once.number, once.floor)
    }
}

impl LocalSession {
    /// Records the index of a live retained message, for subscriptions that still await their retained messages.
    fn note_live_copy(&self, name: &Name, index: u64) {
        if let SessionState::Transient(session) = &mut *self.state.lock() {
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
        matches!(&*self.state.lock(), SessionState::Durable(_))
    }
}
