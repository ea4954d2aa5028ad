//! Sends packets to the client: deliveries and other events of the session, and replies that are ready.

use covey_codec::packet::{Ack, AckProperties, Publish, SubAck, UnsubAck};
use covey_codec::{Packet, PacketId, ProtocolVersion, ReasonCode};

use super::close::{Closed, Ending};
use super::guard::Guard;
use super::open::Open;
use super::replies::Reply;
use super::wire::Unsent;
use crate::session::{Delivery, Event, Session, Sessions};

impl<N: Sessions, G: Guard> Open<N, G> {
    pub(super) fn on_event(&mut self, event: Event) -> Result<(), Ending> {
        match event {
            Event::Deliver(delivery) => {
                self.deliver(*delivery);
                Ok(())
            }
            Event::Release(packet_id) => {
                self.deliveries.released(packet_id);
                self.push(&Packet::PubRel(Ack::success(packet_id)))
            }
            Event::Close(close) => Err(close.into()),
        }
    }

    pub(super) fn on_reply(&mut self, reply: Reply) -> Result<(), Ending> {
        let packet = match reply {
            Reply::PubAck(packet_id, reason) => {
                self.on_acknowledgement(reason)?;
                self.packet_ids.free(packet_id);
                Packet::PubAck(Ack::new(packet_id, reason))
            }
            Reply::PubRec(packet_id, reason) => {
                self.on_acknowledgement(reason)?;
                if reason.is_error() {
                    self.packet_ids.free(packet_id);
                } else {
                    self.packet_ids.received(packet_id);
                }
                Packet::PubRec(Ack::new(packet_id, reason))
            }
            Reply::PubRel(packet_id, reason) => Packet::PubRel(Ack::new(packet_id, reason)),
            Reply::PubComp(packet_id, reason) => {
                self.packet_ids.free(packet_id);
                Packet::PubComp(Ack::new(packet_id, reason))
            }
            Reply::SubAck(packet_id, reasons) => {
                self.packet_ids.free(packet_id);
                Packet::SubAck(SubAck { packet_id, properties: AckProperties::default(), reasons })
            }
            Reply::UnsubAck(packet_id, reasons) => {
                self.packet_ids.free(packet_id);
                Packet::UnsubAck(UnsubAck { packet_id, properties: AckProperties::default(), reasons })
            }
            Reply::Revoked => return Ok(()),
        };
        self.push(&packet)
    }

    /// Checks that the acknowledgement can be sent. In MQTT 3.1.1 every acknowledgement is positive, so a refused
    /// publish closes the connection instead.
    fn on_acknowledgement(&mut self, reason: ReasonCode) -> Result<(), Ending> {
        if self.version == ProtocolVersion::V311 && reason.is_error() {
            return Err(Ending::silent(Closed::PublishStalled, "publish was refused, which mqtt 3.1.1 cannot express"));
        }
        self.stalled = None;
        Ok(())
    }

    /// Queues a PUBLISH. A message that the client cannot receive is dropped, counted and acknowledged.
    fn deliver(&mut self, delivery: Delivery) {
        let Delivery { packet_id, dup, message, subscription_identifiers } = delivery;
        let qos = message.qos;
        let mut properties = message.properties;
        properties.subscription_identifiers = subscription_identifiers;
        let packet = Packet::Publish(Publish {
            dup,
            qos,
            retain: message.retain,
            topic: message.topic,
            packet_id,
            properties,
            payload: message.payload,
        });
        match self.output.push(&packet) {
            Ok(()) => {
                self.context.observer().sent(&packet);
                if let Some(packet_id) = packet_id {
                    self.deliveries.sent(packet_id, qos);
                }
            }
            // Discarded, and acknowledged as if the client had received it [MQTT-3.1.2-25].
            Err(Unsent::TooLarge | Unsent::Unsayable) => {
                self.context.observer().dropped_too_large(qos);
                self.give_up(packet_id);
            }
        }
    }

    fn give_up(&self, packet_id: Option<PacketId>) {
        if let Some(packet_id) = packet_id {
            self.session.acknowledge(packet_id);
        }
    }

    /// Queues a packet that must not be dropped.
    ///
    /// # Errors
    /// Closes the connection if the packet exceeds the client's maximum packet size or its version cannot encode it.
    pub(super) fn push(&mut self, packet: &Packet) -> Result<(), Ending> {
        match self.output.push(packet) {
            Ok(()) => {
                self.context.observer().sent(packet);
                Ok(())
            }
            Err(Unsent::TooLarge) => {
                let detail = "reply exceeds the client's maximum packet size [MQTT-3.1.2-24]";
                Err(Ending::told(Closed::PacketTooLarge, ReasonCode::PacketTooLarge, detail))
            }
            Err(Unsent::Unsayable) => {
                let code = ReasonCode::ImplementationSpecificError;
                Err(Ending::told(Closed::ProtocolError, code, "reply cannot be encoded in the client's version"))
            }
        }
    }
}
