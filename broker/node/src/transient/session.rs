//! A transient session on the node of its connection: queue, subscriptions, and QoS 2 publishes of the client. It ends
//! with the connection. Methods do not send; they return the events for the connection.

use std::collections::{BTreeMap, BTreeSet};

use covey_codec::{MqttStr, PacketId};
use covey_core::live_copies::LiveCopies;
use covey_core::shard::Publication;
use covey_core::subscriptions::Options;
use covey_core::topic::{Filter, Name};
use covey_mqtt::session::{Delivery, Event};
use covey_types::ConnectionId;

use super::filters::Filters;
use crate::session::{Full, Queue};

/// State of a transient session.
#[derive(Debug)]
pub(crate) struct TransientSession {
    /// The connection, which names the session in [`Filters`].
    connection: ConnectionId,
    /// Queue and deliveries in flight.
    queue: Queue,
    /// Packet ids of QoS 2 publishes from the client that are not released.
    receiving: BTreeSet<PacketId>,
    /// Subscriptions by their text.
    subscriptions: BTreeMap<MqttStr, Filter>,
    /// Subscriptions that await retained messages.
    awaiting: BTreeMap<MqttStr, Awaiting>,
}

/// A subscription that awaits retained messages.
#[derive(Debug)]
struct Awaiting {
    /// Its filter.
    filter: Filter,
    /// Live copies that were delivered meanwhile.
    live: LiveCopies,
}

/// A subscription that was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Granted {
    /// Change of the filters that other nodes must know before the SUBACK.
    pub(crate) change: u64,
    /// True if the session had no subscription with this filter.
    pub(crate) is_new: bool,
}

impl TransientSession {
    /// Returns a session without subscriptions, for a client with this Receive Maximum.
    pub(crate) fn new(connection: ConnectionId, receive_maximum: u16) -> Self {
        Self {
            connection,
            queue: Queue::new(receive_maximum),
            receiving: BTreeSet::new(),
            subscriptions: BTreeMap::new(),
            awaiting: BTreeMap::new(),
        }
    }

    /// Reserves the packet id of a QoS 2 publish. Returns `false` if it was reserved and not released.
    pub(crate) fn begin_qos2(&mut self, packet: PacketId) -> bool {
        self.receiving.insert(packet)
    }

    /// Frees the packet id of a QoS 2 publish. Returns `false` if it was not reserved.
    pub(crate) fn release(&mut self, packet: PacketId) -> bool {
        self.receiving.remove(&packet)
    }

    /// Adds or replaces a subscription. Returns `None` if the session has `limit` subscriptions.
    pub(crate) fn subscribe(
        &mut self,
        filters: &Filters,
        text: &MqttStr,
        filter: &Filter,
        options: Options,
        limit: usize,
    ) -> Option<Granted> {
        if self.subscriptions.len() >= limit && !self.subscriptions.contains_key(text) {
            return None;
        }
        let (change, is_new) = filters.insert(filter, self.connection, options);
        self.subscriptions.insert(text.clone(), filter.clone());
        Some(Granted { change, is_new })
    }

    /// Removes a subscription and returns whether it existed.
    pub(crate) fn unsubscribe(&mut self, filters: &Filters, text: &MqttStr) -> bool {
        self.awaiting.remove(text);
        self.subscriptions.remove(text).is_some_and(|filter| filters.remove(&filter, self.connection))
    }

    /// Removes the subscriptions from the node's filters, at the end of the session.
    pub(crate) fn forget(&self, filters: &Filters) {
        for filter in self.subscriptions.values() {
            filters.remove(filter, self.connection);
        }
    }

    /// Notes that a subscription awaits retained messages.
    pub(crate) fn await_retained(&mut self, text: &MqttStr, filter: Filter) {
        self.awaiting.insert(text.clone(), Awaiting { filter, live: LiveCopies::default() });
    }

    /// Ends the wait of a subscription for retained messages and returns those that no live copy is as new as; nothing
    /// if it was removed in the meantime.
    pub(crate) fn take_retained(&mut self, text: &MqttStr, found: Vec<Publication>) -> Vec<Publication> {
        let Some(Awaiting { live, .. }) = self.awaiting.remove(text) else { return Vec::new() };
        found.into_iter().filter(|found| live.is_newer(&found.topic, found.retained_index)).collect()
    }

    /// Notes a live copy of a retained message, for subscriptions that still await their retained messages.
    pub(crate) fn note_live_copy(&mut self, name: &Name, index: u64) {
        for Awaiting { filter, live } in self.awaiting.values_mut() {
            if filter.matches(name) {
                live.note(name.as_str(), index);
            }
        }
    }

    /// Queues a QoS 1 or 2 message and returns what may be sent now.
    ///
    /// # Errors
    /// Returns [`Full`] if the queue has no room: the session must be closed with 0x97.
    pub(crate) fn push(&mut self, delivery: Delivery) -> Result<Vec<Event>, Full> {
        self.queue.push(delivery)?;
        Ok(self.queue.pump())
    }

    /// Ends a delivery and returns what may be sent now; `None` for an unknown packet id.
    pub(crate) fn acknowledge(&mut self, packet: PacketId) -> Option<Vec<Event>> {
        self.queue.acknowledge(packet).then(|| self.queue.pump())
    }

    /// Returns whether a delivery with this packet id is unacknowledged.
    pub(crate) fn is_unacknowledged(&self, packet: PacketId) -> bool {
        self.queue.is_unacknowledged(packet)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use covey_codec::QoS;

    use super::*;

    const OPTIONS: Options =
        Options { qos: QoS::AtLeastOnce, no_local: false, retain_as_published: false, identifier: None };

    fn subscribed(filters: &Filters, text: &str) -> (TransientSession, MqttStr) {
        let mut session = TransientSession::new(ConnectionId::new(1), 10);
        let (text, filter) = (MqttStr::new(text).unwrap(), text.parse().unwrap());
        assert!(session.subscribe(filters, &text, &filter, OPTIONS, 1).unwrap().is_new);
        session.await_retained(&text, filter);
        (session, text)
    }

    fn retained(topic: &str, index: u64) -> Publication {
        Publication {
            topic: topic.into(),
            qos: QoS::AtLeastOnce,
            retain: true,
            publisher: None,
            expiry: None,
            retained_index: Some(index),
            once: None,
            body: Bytes::new(),
        }
    }

    #[test]
    fn an_older_retained_copy_never_follows_a_newer_live_one() {
        let filters = Filters::new();
        let (mut session, text) = subscribed(&filters, "a/+");
        session.note_live_copy(&"a/b".parse().unwrap(), 9);
        session.note_live_copy(&"b".parse().unwrap(), 9);
        let found = vec![retained("a/b", 8), retained("a/b", 9), retained("a/b", 10), retained("a/c", 8)];
        let fresh = session.take_retained(&text, found.clone());
        assert_eq!(fresh, found[2..]);
        assert!(session.take_retained(&text, found).is_empty(), "it no longer awaits retained messages");
    }

    #[test]
    fn a_live_copy_that_arrives_late_does_not_hide_a_newer_one() {
        let filters = Filters::new();
        let (mut session, text) = subscribed(&filters, "a/+");
        session.note_live_copy(&"a/b".parse().unwrap(), 9);
        session.note_live_copy(&"a/b".parse().unwrap(), 7);
        assert!(session.take_retained(&text, vec![retained("a/b", 8)]).is_empty());
    }

    #[test]
    fn a_removed_subscription_awaits_nothing_and_leaves_room() {
        let filters = Filters::new();
        let (mut session, text) = subscribed(&filters, "a");
        let (other, filter) = (MqttStr::new("b").unwrap(), "b".parse().unwrap());
        assert_eq!(session.subscribe(&filters, &other, &filter, OPTIONS, 1), None);
        assert!(session.unsubscribe(&filters, &text));
        assert!(!session.unsubscribe(&filters, &text));
        assert!(session.take_retained(&text, vec![retained("a", 1)]).is_empty());
        assert!(session.subscribe(&filters, &other, &filter, OPTIONS, 1).is_some());
        session.forget(&filters);
        assert!(filters.matches(&"b".parse().unwrap(), |_| false).is_empty());
    }
}
