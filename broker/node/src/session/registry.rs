//! Registry of the sessions whose connections are on this node, and deliveries to them.

use std::collections::HashMap;
use std::sync::Arc;

use covey_codec::QoS;
use covey_core::dedup::Window;
use covey_core::shard::{Once, Publication};
use covey_core::subscriptions::Match;
use covey_core::topic::Name;
use covey_mqtt::session::{Close, Delivery};
use covey_types::{ConnectionId, OwnerEpoch};
use parking_lot::Mutex;

use super::local::{LocalSession, SessionState};
use crate::Observer;
use crate::publish::message;
use crate::shard::{Acknowledgement, DeliverySink, FromShard};
use crate::transient::Filters;

/// Most keys of QoS 2 publishers that are remembered for transient sessions. When exceeded, all are forgotten.
const MAX_SEEN_KEYS: usize = 10_000;

/// All sessions here.
pub(crate) struct Registry {
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
    pub(crate) fn new(filters: Arc<Filters>, observer: Arc<dyn Observer>) -> Arc<Self> {
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
        session.close(why);
    }

    /// Removes all sessions and asks their connections to close.
    pub(crate) fn close_all(&self, why: Close) {
        let all: Vec<Arc<LocalSession>> = self.sessions.lock().connections.values().cloned().collect();
        for session in &all {
            self.close(session, why);
        }
    }

    /// Returns the number of transient sessions.
    pub(crate) fn transient(&self) -> usize {
        self.sessions.lock().connections.values().filter(|session| !session.is_durable()).count()
    }

    /// Returns the number of sessions per user name.
    pub(crate) fn by_user(&self) -> HashMap<String, u32> {
        let mut users = HashMap::new();
        for session in self.sessions.lock().connections.values() {
            *users.entry(session.principal.to_string()).or_default() += 1;
        }
        users
    }

    /// Returns the number of sessions.
    pub(crate) fn len(&self) -> usize {
        self.sessions.lock().connections.len()
    }

    fn find(&self, client: &str, owner: OwnerEpoch) -> Option<Arc<LocalSession>> {
        self.sessions.lock().clients.get(client).filter(|session| session.owner == owner).cloned()
    }

    /// Sends a QoS 0 message if there is room, else counts it as dropped.
    fn send_qos0(&self, session: &LocalSession, delivery: Delivery) {
        if !session.send_qos0(delivery) {
            self.observer.dropped_slow();
        }
    }

    /// Delivers a message to the matching transient sessions and returns their number.
    pub(crate) fn deliver(&self, message: &Publication) -> u32 {
        if message.once.as_ref().is_some_and(|once| self.is_repeated(once)) {
            return 1;
        }
        let Ok(name) = message.topic.parse::<Name>() else { return 0 };
        let own = {
            let sessions = self.sessions.lock();
            let publisher = message.publisher.as_ref().and_then(|client| sessions.clients.get(client));
            publisher.map(|session| session.connection)
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
            session.queue(delivery);
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

impl DeliverySink for Registry {
    fn on_shard(&self, event: FromShard) -> Option<Acknowledgement> {
        match event {
            FromShard::Deliver { client, owner, items } => {
                let session = self.find(&client, owner)?;
                let mut state = session.state.lock();
                let SessionState::Durable(inflight) = &mut *state else { return None };
                let (events, sequences) = inflight.take(items);
                drop(state);
                session.send(events);
                (!sequences.is_empty()).then_some(Acknowledgement { client, owner, sequences })
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
}
