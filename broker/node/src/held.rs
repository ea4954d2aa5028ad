//! The sessions whose connections are on this node.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use covey_codec::{MqttStr, PacketId, QoS};
use covey_core::shard::Once;
use covey_core::topic::{Filter, Name};
use covey_mqtt::session::{Close, Delivery, Event};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::Observer;
use super::message;
use super::outbox::{Durable, Transient};
use super::transient::{Filters, Local, Match};
use super::wire::{FromShard, Transported};

/// QoS 0 messages that a connection may have waiting, as many as a transient queue holds; what is over is dropped, counted.
const VOLATILE: usize = 1000;
/// Places that QoS 0 does not take: a window of deliveries, their releases, and the end, which always has one.
const KEPT_FOR_ACKNOWLEDGED: usize = 300;
/// Events that a connection may have waiting.
pub(super) const EVENTS: usize = VOLATILE + KEPT_FOR_ACKNOWLEDGED;
/// Publishers whose QoS 2 numbers are remembered for transient sessions.
const SEEN: usize = 10_000;

/// A session and its connection.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) client: Box<str>,
    /// User name.
    pub(super) principal: Arc<str>,
    pub owner: u64,
    pub epoch: u64,
    /// Number on this node, also the connection's number in claims.
    pub local: Local,
    /// `None` when the end was said: the connection's channel is closed behind it.
    pub events: Mutex<Option<mpsc::Sender<Event>>>,
    pub outbox: Mutex<Outbox>,
}

#[derive(Debug)]
pub(super) enum Outbox {
    Durable(Durable),
    Transient {
        queue: Transient,
        /// Packet ids of QoS 2 publishes from the client.
        receiving: BTreeSet<PacketId>,
        subscriptions: BTreeMap<MqttStr, Filter>,
        /// Subscriptions that await their retained messages: newest live index per topic.
        awaiting: BTreeMap<MqttStr, (Filter, HashMap<Box<str>, u64>)>,
    },
}

/// All of them.
pub(super) struct Registry {
    filters: Arc<Filters>,
    observer: Arc<dyn Observer>,
    sessions: Mutex<Sessions>,
    seen: Mutex<Seen>,
}

/// Per exactly-once key its floor and the numbers at or above it.
type Seen = HashMap<Box<str>, (u64, BTreeSet<u64>)>;

#[derive(Debug, Default)]
struct Sessions {
    clients: HashMap<Box<str>, Arc<Held>>,
    locals: HashMap<Local, Arc<Held>>,
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

    /// A connection holds a session. Of two with one client id the older owner is told that it lost it.
    pub(super) fn insert(&self, held: Arc<Held>) {
        let loser = {
            let mut sessions = self.sessions.lock();
            sessions.locals.insert(held.local, held.clone());
            match sessions.clients.get(&held.client) {
                Some(known) if known.owner > held.owner => Some(held),
                _ => sessions.clients.insert(held.client.clone(), held),
            }
        };
        if let Some(loser) = loser {
            self.close(&loser, Close::TakenOver);
        }
    }

    /// Forgets a session; false when it was forgotten before.
    pub(super) fn remove(&self, held: &Held) -> bool {
        let removed = {
            let mut sessions = self.sessions.lock();
            if sessions.clients.get(&held.client).is_some_and(|known| known.local == held.local) {
                sessions.clients.remove(&held.client);
            }
            sessions.locals.remove(&held.local).is_some()
        };
        if let Outbox::Transient { subscriptions, .. } = &*held.outbox.lock() {
            for filter in subscriptions.values() {
                self.filters.remove(filter, held.local);
            }
        }
        removed
    }

    /// Ends a connection from the node's side.
    pub(super) fn close(&self, held: &Held, why: Close) {
        self.remove(held);
        held.end(why);
    }

    /// Ends every connection.
    pub(super) fn close_all(&self, why: Close) {
        let all: Vec<Arc<Held>> = self.sessions.lock().locals.values().cloned().collect();
        for held in &all {
            self.close(held, why);
        }
    }

    /// Transient sessions here.
    pub(super) fn transient(&self) -> usize {
        self.sessions.lock().locals.values().filter(|held| !held.is_durable()).count()
    }

    /// Sessions here by user name.
    pub(super) fn by_user(&self) -> HashMap<String, u32> {
        let mut users = HashMap::new();
        for held in self.sessions.lock().locals.values() {
            *users.entry(held.principal.to_string()).or_default() += 1;
        }
        users
    }

    pub(super) fn len(&self) -> usize {
        self.sessions.lock().locals.len()
    }

    /// A shard's leader speaks of a session; gives acknowledgements that must be said again.
    pub(super) fn on_shard(&self, event: FromShard) -> Option<(Box<str>, u64, Vec<u64>)> {
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
                let message = message::decode(&body, 0, retain, expiry)?;
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

    fn find(&self, client: &str, owner: u64) -> Option<Arc<Held>> {
        self.sessions.lock().clients.get(client).filter(|held| held.owner == owner).cloned()
    }

    /// Sends what must not be lost; a connection that has no room for its window is broken. Its session stays here until
    /// the connection has ended: only that ends the claim and publishes the will.
    pub(super) fn send(held: &Held, events: Vec<Event>) {
        for event in events {
            if !held.offer(event, 0) {
                held.end(Close::QueueFull);
                return;
            }
        }
    }

    /// Sends QoS 0 if there is room; counts it as dropped if there is not.
    fn send_volatile(&self, held: &Held, delivery: Delivery) {
        if !held.offer(Event::Deliver(Box::new(delivery)), KEPT_FOR_ACKNOWLEDGED) {
            self.observer.dropped_slow();
        }
    }

    /// Delivers a message to the transient sessions here; how many matched.
    pub(super) fn deliver(&self, transported: &Transported) -> u32 {
        if transported.once.as_ref().is_some_and(|once| self.is_repeated(once)) {
            return 1;
        }
        let Ok(name) = transported.topic.parse::<Name>() else { return 0 };
        let own = {
            let sessions = self.sessions.lock();
            sessions.clients.get(&transported.publisher).map(|held| held.local)
        };
        let matches = self.filters.matches(&name, |local| own == Some(local));
        let mut matched = 0;
        for (local, found) in matches {
            let held = self.sessions.lock().locals.get(&local).cloned();
            if let Some(held) = held {
                matched += 1;
                self.deliver_to(&held, &name, transported, found);
            }
        }
        matched
    }

    fn deliver_to(&self, held: &Held, name: &Name, transported: &Transported, matched: Match) {
        let qos = matched.qos.min(transported.qos);
        let retain = matched.retain_as_published && transported.retain;
        let Some(decoded) = message::decode(&transported.body, qos, retain, transported.expiry) else { return };
        let delivery =
            Delivery { packet_id: None, dup: false, message: decoded, subscription_identifiers: matched.identifiers };
        if transported.retained_index > 0 {
            held.note_live_copy(name, transported);
        }
        if qos == 0 {
            self.send_volatile(held, delivery);
        } else {
            Self::queue(held, delivery);
        }
    }

    /// Queues a QoS 1 or 2 delivery for a transient session; a full queue ends it (0x97).
    pub(super) fn queue(held: &Held, delivery: Delivery) {
        if let Outbox::Transient { queue, .. } = &mut *held.outbox.lock() {
            Self::push(held, queue, delivery);
        }
    }

    fn push(held: &Held, queue: &mut Transient, delivery: Delivery) {
        if queue.push(delivery).is_ok() {
            Self::send(held, queue.pump());
        } else {
            held.end(Close::QueueFull);
        }
    }

    /// A retained message to a transient session that subscribed; its queue is the caller's.
    pub(super) fn send_retained(held: &Held, queue: &mut Transient, delivery: Delivery) {
        if delivery.message.qos == QoS::AtMostOnce {
            Self::send(held, vec![Event::Deliver(Box::new(delivery))]);
        } else {
            Self::push(held, queue, delivery);
        }
    }

    fn is_repeated(&self, once: &Once) -> bool {
        let mut seen = self.seen.lock();
        if seen.len() > SEEN {
            seen.clear();
        }
        let (floor, numbers) = seen.entry(once.key.clone()).or_default();
        *floor = once.floor.max(*floor);
        let repeated = once.number < *floor || !numbers.insert(once.number);
        *numbers = numbers.split_off(floor);
        repeated
    }
}

impl Held {
    /// Remembers the newest live copy for subscriptions that await their retained messages.
    fn note_live_copy(&self, name: &Name, transported: &Transported) {
        if let Outbox::Transient { awaiting, .. } = &mut *self.outbox.lock() {
            for (filter, newest) in awaiting.values_mut() {
                if filter.matches(name) {
                    newest.insert(transported.topic.clone(), transported.retained_index);
                }
            }
        }
    }

    /// Hands an event to the connection if that leaves more than so many places; whether it did. One place is always left.
    fn offer(&self, event: Event, left: usize) -> bool {
        let events = self.events.lock();
        events.as_ref().is_some_and(|events| events.capacity() > left.max(1) && events.try_send(event).is_ok())
    }

    /// Tells the connection to end; the first reason counts.
    fn end(&self, why: Close) {
        if let Some(events) = self.events.lock().take() {
            // Fails when the connection has gone: nobody to tell.
            drop(events.try_send(Event::Close(why)));
        }
    }

    pub(super) fn is_durable(&self) -> bool {
        matches!(&*self.outbox.lock(), Outbox::Durable(_))
    }
}

/// The numeric QoS.
pub(super) fn qos_of(bits: u8) -> QoS {
    QoS::from_bits(bits.min(2)).unwrap_or(QoS::AtMostOnce)
}
