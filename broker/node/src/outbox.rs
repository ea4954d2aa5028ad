//! What one connection has sent to its client and not seen acknowledged.
//!
//! Durable: the shard's leader owns the queue; a sequence number gives the packet id, so that every leader sends a message
//! under the same one. Transient: the queue is here. Both use ids below 49,152; those above are for shared groups.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use covey_codec::PacketId;
use covey_mqtt::session::{Delivery, Event};

use super::message;
use super::wire::Item;

/// Packet ids of deliveries: 1 to this.
pub(super) const IDS: u64 = 49_151;
/// Most messages that a transient session may have unacknowledged, as a durable one.
const WINDOW: u16 = 128;
/// Messages that a transient session may have waiting.
const QUEUE: usize = 1000;
/// Bytes that a transient session may have waiting.
const QUEUE_BYTES: usize = 1 << 20;

/// Packet id of an inbox sequence number.
pub(super) fn packet_of(sequence: u64) -> Option<PacketId> {
    u16::try_from(1 + sequence % IDS).ok().and_then(PacketId::new)
}

/// Deliveries of a durable session over one connection.
#[derive(Debug, Default)]
pub(super) struct Durable {
    /// Sent and not acknowledged, by packet id.
    flying: BTreeMap<PacketId, u64>,
    /// Nothing at or above it was sent on this connection.
    next: u64,
    began: bool,
}

impl Durable {
    /// Takes what a leader sent; a new leader repeats what this connection has sent already. Gives what the client must get
    /// and the sequence numbers that were acknowledged before and must be said again.
    pub(super) fn take(&mut self, items: Vec<Item>) -> (Vec<Event>, Vec<u64>) {
        let (mut events, mut again) = (Vec::new(), Vec::new());
        for item in items {
            let Some(packet) = packet_of(item.sequence) else { continue };
            if self.began && item.sequence < self.next {
                if self.flying.get(&packet) != Some(&item.sequence) {
                    again.push(item.sequence);
                }
                continue;
            }
            self.began = true;
            self.next = item.sequence + 1;
            match delivery(packet, &item) {
                // A retained message of QoS 0: nobody acknowledges it, so it is done when it is sent.
                Some(event) if item.qos == 0 && item.body.is_some() => {
                    events.push(event);
                    again.push(item.sequence);
                }
                Some(event) => {
                    self.flying.insert(packet, item.sequence);
                    events.push(event);
                }
                None => again.push(item.sequence),
            }
        }
        (events, again)
    }

    /// The delivery is done; its sequence number.
    pub(super) fn acknowledge(&mut self, packet: PacketId) -> Option<u64> {
        self.flying.remove(&packet)
    }

    /// Sequence number of a delivery that is under way.
    pub(super) fn sequence(&self, packet: PacketId) -> Option<u64> {
        self.flying.get(&packet).copied()
    }
}

fn delivery(packet: PacketId, item: &Item) -> Option<Event> {
    let Some(body) = &item.body else { return Some(Event::Release(packet)) };
    let message = message::decode(body, item.qos, item.retain, item.expiry)?;
    Some(Event::Deliver(Box::new(Delivery {
        packet_id: (item.qos > 0).then_some(packet),
        dup: item.dup && item.qos > 0,
        message,
        subscription_identifiers: item.identifiers.clone(),
    })))
}

/// The queue was full of QoS 1 and 2 messages: the session must end with 0x97.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// Queue and deliveries of a transient session.
#[derive(Debug)]
pub(super) struct Transient {
    window: usize,
    waiting: VecDeque<Delivery>,
    bytes: usize,
    flying: BTreeSet<PacketId>,
    last: u64,
}

impl Transient {
    pub(super) fn new(window: u16) -> Self {
        Self {
            window: usize::from(window.clamp(1, WINDOW)),
            waiting: VecDeque::new(),
            bytes: 0,
            flying: BTreeSet::new(),
            last: 0,
        }
    }

    /// Queues a message of QoS 1 or 2 without packet id.
    pub(super) fn push(&mut self, delivery: Delivery) -> Result<(), Full> {
        let size = delivery.message.payload.len();
        if self.waiting.len() >= QUEUE || (self.bytes + size > QUEUE_BYTES && !self.waiting.is_empty()) {
            return Err(Full);
        }
        self.bytes += size;
        self.waiting.push_back(delivery);
        Ok(())
    }

    /// Deliveries that the window allows now, with their packet ids.
    pub(super) fn pump(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while self.flying.len() < self.window {
            let Some(mut delivery) = self.waiting.pop_front() else { break };
            self.bytes -= delivery.message.payload.len();
            delivery.packet_id = self.free_packet();
            self.flying.extend(delivery.packet_id);
            events.push(Event::Deliver(Box::new(delivery)));
        }
        events
    }

    fn free_packet(&mut self) -> Option<PacketId> {
        loop {
            self.last += 1;
            let packet = packet_of(self.last)?;
            if !self.flying.contains(&packet) {
                return Some(packet);
            }
        }
    }

    /// The delivery is done.
    pub(super) fn acknowledge(&mut self, packet: PacketId) -> bool {
        self.flying.remove(&packet)
    }

    pub(super) fn is_flying(&self, packet: PacketId) -> bool {
        self.flying.contains(&packet)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use covey_codec::QoS;
    use covey_codec::packet::PublishProperties;
    use covey_mqtt::session::Message;

    use super::*;

    fn message() -> Message {
        Message {
            topic: message::text("a"),
            payload: Bytes::from_static(b"x"),
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: PublishProperties::default(),
        }
    }

    fn item(sequence: u64) -> Item {
        let body = Some(message::encode(&message()));
        Item { sequence, qos: 1, dup: false, retain: false, identifiers: vec![], expiry: None, body }
    }

    #[test]
    fn a_new_leader_repeats_and_the_client_sees_each_message_once() {
        let mut durable = Durable::default();
        assert_eq!(durable.take(vec![item(5), item(6)]).0.len(), 2);
        assert_eq!(durable.acknowledge(packet_of(5).unwrap()), Some(5));
        let (events, again) = durable.take(vec![item(5), item(6), item(7)]);
        assert_eq!(events.len(), 1, "only 7 is new");
        assert_eq!(again, [5], "5 was acknowledged and the leader does not know");
    }

    #[test]
    fn a_retained_message_of_qos_0_has_no_packet_id_and_is_done_when_sent() {
        let mut durable = Durable::default();
        let (events, done) = durable.take(vec![Item { qos: 0, dup: true, ..item(3) }]);
        assert!(matches!(&events[..], [Event::Deliver(delivery)] if delivery.packet_id.is_none() && !delivery.dup));
        assert_eq!(done, [3]);
    }

    #[test]
    fn packet_ids_stay_below_those_of_shared_groups() {
        for sequence in [0, 1, 49_150, 49_151, 49_152, u64::MAX] {
            let id = packet_of(sequence).unwrap().get();
            assert!((1..=49_151).contains(&id), "{sequence} {id}");
        }
    }

    #[test]
    fn a_transient_queue_is_bounded_and_keeps_to_the_window() {
        let mut transient = Transient::new(2);
        let delivery =
            || Delivery { packet_id: None, dup: false, message: message(), subscription_identifiers: vec![] };
        for _ in 0..QUEUE {
            transient.push(delivery()).unwrap();
        }
        assert_eq!(transient.push(delivery()), Err(Full));
        let sent = transient.pump();
        assert_eq!(sent.len(), 2);
        assert!(transient.pump().is_empty());
        assert!(transient.acknowledge(packet_of(1).unwrap()));
        assert_eq!(transient.pump().len(), 1);
    }
}
