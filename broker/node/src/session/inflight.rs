//! Deliveries of one connection that its client has not acknowledged.
//!
//! Durable: the queue is with the shard's leader. The packet id follows from the sequence number, so every leader
//! sends a message under the same id. Transient: the queue is here. Both use packet ids up to 49,151; higher ones are
//! reserved for shared subscriptions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use covey_codec::{PacketId, QoS};
use covey_mqtt::session::{Delivery, Event};
use covey_types::InboxSeq;

use crate::publish::message;
use crate::shard::Item;

/// Highest packet id of deliveries.
pub(crate) const PACKET_IDS: u64 = 49_151;
/// Most unacknowledged deliveries of a transient session, as for a durable one.
const MAX_WINDOW: u16 = 128;
/// Most messages in the queue of a transient session.
const QUEUE_MESSAGES: usize = 1000;
/// Most bytes of payload in the queue of a transient session; an empty queue takes one message of any size.
const QUEUE_BYTES: usize = 1 << 20;

/// Returns the packet id of a number that counts deliveries: 1 + `number` mod [`PACKET_IDS`].
pub(super) fn packet_of(number: u64) -> Option<PacketId> {
    u16::try_from(1 + number % PACKET_IDS).ok().and_then(PacketId::new)
}

/// Deliveries of a durable session over one connection.
#[derive(Debug, Default)]
pub(super) struct Inflight {
    /// Sequence numbers of unacknowledged deliveries, by packet id.
    unacknowledged: BTreeMap<PacketId, InboxSeq>,
    /// Lowest sequence number that was not sent on this connection; `None` before anything was sent.
    next: Option<InboxSeq>,
}

impl Inflight {
    /// Takes in deliveries of a leader and drops those that this connection has sent already, as a new leader repeats
    /// them. Returns the events for the connection, and the sequence numbers to acknowledge to the leader: those that
    /// were acknowledged before, and those that need no acknowledgement.
    pub(super) fn take(&mut self, items: Vec<Item>) -> (Vec<Event>, Vec<InboxSeq>) {
        let (mut events, mut again) = (Vec::new(), Vec::new());
        for item in items {
            let Some(packet) = packet_of(item.sequence.get()) else { continue };
            if self.next.is_some_and(|next| item.sequence < next) {
                if self.unacknowledged.get(&packet) != Some(&item.sequence) {
                    again.push(item.sequence);
                }
                continue;
            }
            self.next = Some(item.sequence.next());
            match delivery(packet, &item) {
                // QoS 0 has no acknowledgement, so a retained message at QoS 0 is acknowledged when it is sent.
                Some(event) if item.qos == QoS::AtMostOnce && item.body.is_some() => {
                    events.push(event);
                    again.push(item.sequence);
                }
                Some(event) => {
                    self.unacknowledged.insert(packet, item.sequence);
                    events.push(event);
                }
                None => again.push(item.sequence),
            }
        }
        (events, again)
    }

    /// Ends a delivery and returns its sequence number; `None` for an unknown packet id.
    pub(super) fn acknowledge(&mut self, packet: PacketId) -> Option<InboxSeq> {
        self.unacknowledged.remove(&packet)
    }

    /// Returns the sequence number of an unacknowledged delivery.
    pub(super) fn sequence(&self, packet: PacketId) -> Option<InboxSeq> {
        self.unacknowledged.get(&packet).copied()
    }
}

/// Returns the event for a delivery; `None` if its body cannot be decoded.
fn delivery(packet: PacketId, item: &Item) -> Option<Event> {
    let Some(body) = &item.body else { return Some(Event::Release(packet)) };
    let message = message::decode(body, item.qos, item.retain, item.expiry)?;
    Some(Event::Deliver(Box::new(Delivery {
        packet_id: (item.qos > QoS::AtMostOnce).then_some(packet),
        dup: item.dup && item.qos > QoS::AtMostOnce,
        message,
        subscription_identifiers: item.identifiers.clone(),
    })))
}

/// The queue has no room for a QoS 1 or 2 message: the session must be closed with 0x97.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// Queue and unacknowledged deliveries of a transient session.
#[derive(Debug)]
pub(crate) struct Queue {
    /// Most unacknowledged deliveries, 1 to [`MAX_WINDOW`].
    window: usize,
    /// Messages that were not sent yet, oldest first.
    waiting: VecDeque<Delivery>,
    /// Bytes of payload in `waiting`.
    bytes: usize,
    /// Packet ids of unacknowledged deliveries.
    unacknowledged: BTreeSet<PacketId>,
    /// Number from which the last packet id was derived.
    last: u64,
}

impl Queue {
    /// Returns an empty queue for a client with this Receive Maximum.
    pub(crate) fn new(window: u16) -> Self {
        Self {
            window: usize::from(window.clamp(1, MAX_WINDOW)),
            waiting: VecDeque::new(),
            bytes: 0,
            unacknowledged: BTreeSet::new(),
            last: 0,
        }
    }

    /// Queues a QoS 1 or 2 message; its packet id is assigned when it is sent.
    ///
    /// # Errors
    /// Returns [`Full`] if the message does not fit.
    pub(crate) fn push(&mut self, delivery: Delivery) -> Result<(), Full> {
        let size = delivery.message.payload.len();
        if self.waiting.len() >= QUEUE_MESSAGES || (self.bytes + size > QUEUE_BYTES && !self.waiting.is_empty()) {
            return Err(Full);
        }
        self.bytes += size;
        self.waiting.push_back(delivery);
        Ok(())
    }

    /// Takes the deliveries that the window allows now, with packet ids.
    pub(crate) fn pump(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while self.unacknowledged.len() < self.window {
            let Some(mut delivery) = self.waiting.pop_front() else { break };
            self.bytes -= delivery.message.payload.len();
            delivery.packet_id = self.free_packet();
            self.unacknowledged.extend(delivery.packet_id);
            events.push(Event::Deliver(Box::new(delivery)));
        }
        events
    }

    /// Returns the next packet id that is not in use.
    fn free_packet(&mut self) -> Option<PacketId> {
        loop {
            self.last += 1;
            let packet = packet_of(self.last)?;
            if !self.unacknowledged.contains(&packet) {
                return Some(packet);
            }
        }
    }

    /// Ends a delivery. Returns `false` for an unknown packet id.
    pub(crate) fn acknowledge(&mut self, packet: PacketId) -> bool {
        self.unacknowledged.remove(&packet)
    }

    /// Returns whether a delivery with this packet id is unacknowledged.
    pub(crate) fn is_unacknowledged(&self, packet: PacketId) -> bool {
        self.unacknowledged.contains(&packet)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
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
        Item {
            sequence: InboxSeq::new(sequence),
            qos: QoS::AtLeastOnce,
            dup: false,
            retain: false,
            identifiers: vec![],
            expiry: None,
            body,
        }
    }

    #[test]
    fn a_new_leader_repeats_and_the_client_sees_each_message_once() {
        let mut durable = Inflight::default();
        assert_eq!(durable.take(vec![item(5), item(6)]).0.len(), 2);
        assert_eq!(durable.acknowledge(packet_of(5).unwrap()), Some(InboxSeq::new(5)));
        let (events, again) = durable.take(vec![item(5), item(6), item(7)]);
        assert_eq!(events.len(), 1, "only 7 is new");
        assert_eq!(again, [InboxSeq::new(5)], "5 was acknowledged, which the new leader does not know");
    }

    #[test]
    fn a_retained_message_of_qos_0_has_no_packet_id_and_is_done_when_sent() {
        let mut durable = Inflight::default();
        let (events, done) = durable.take(vec![Item { qos: QoS::AtMostOnce, dup: true, ..item(3) }]);
        assert!(matches!(&events[..], [Event::Deliver(delivery)] if delivery.packet_id.is_none() && !delivery.dup));
        assert_eq!(done, [InboxSeq::new(3)]);
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
        let mut transient = Queue::new(2);
        let delivery =
            || Delivery { packet_id: None, dup: false, message: message(), subscription_identifiers: vec![] };
        for _ in 0..QUEUE_MESSAGES {
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
