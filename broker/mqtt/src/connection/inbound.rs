//! Handles the packets of a client. Requests to the session start at once; their replies are queued.

use std::future::ready;
use std::time::Duration;

use covey_codec::packet::{Ack, Disconnect, Publish};
use covey_codec::{MqttStr, Packet, PacketId, ProtocolVersion, QoS, ReasonCode};
use futures::FutureExt;

use super::close::{Closed, Ending};
use super::guard::{Guard, Principal};
use super::open::Open;
use super::packet_ids::Admission;
use super::replies::{Order, Reply};
use crate::session::{Ended, Message, Published, Session, Sessions};

impl<N: Sessions, G: Guard> Open<N, G> {
    /// Handles one packet of `size` bytes.
    ///
    /// # Errors
    /// Returns how the connection ends.
    pub(super) fn on_packet(&mut self, packet: Packet, size: usize) -> Result<(), Ending> {
        match packet {
            Packet::Publish(publish) => self.on_publish(publish, size)?,
            Packet::PubAck(ack) => self.on_puback(ack.packet_id)?,
            Packet::PubRec(ack) => self.on_pubrec(&ack)?,
            Packet::PubRel(ack) => self.on_pubrel(ack.packet_id)?,
            Packet::PubComp(ack) => self.on_pubcomp(ack.packet_id)?,
            Packet::Subscribe(subscribe) => self.on_subscribe(&subscribe, size)?,
            Packet::Unsubscribe(unsubscribe) => self.on_unsubscribe(&unsubscribe, size)?,
            Packet::PingReq => self.push(&Packet::PingResp)?,
            Packet::Disconnect(disconnect) => return Err(self.on_disconnect(&disconnect)),
            Packet::Auth(_) => {
                return Err(Ending::protocol_error("auth without an authentication method in connect (3.15)"));
            }
            // The decoder rejects these packets from a client.
            Packet::Connect(_) | Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {
                return Err(Ending::protocol_error("clients may not send this packet"));
            }
        }
        Ok(())
    }

    fn on_publish(&mut self, publish: Publish, size: usize) -> Result<(), Ending> {
        let Publish { qos, retain, packet_id, mut properties, payload, topic, dup } = publish;
        let topic = self.aliases.resolve(topic, properties.topic_alias.take())?;
        if let Some(packet_id) = packet_id {
            match self.packet_ids.publish(packet_id, qos, dup, self.version)? {
                Admission::Begin => self.check_receive_maximum()?,
                Admission::Ignore => return Ok(()),
                Admission::Repeat => return self.push(&Packet::PubRec(Ack::success(packet_id))),
            }
        }
        if !self.principal.may_publish(&self.client_id, &topic, qos, retain) {
            return self.deny_publish(qos, packet_id);
        }
        let size = size + properties.user_properties.len() * size_of::<(MqttStr, MqttStr)>();
        let message = Message { topic, payload, qos, retain, properties };
        match (qos, packet_id) {
            (QoS::AtLeastOnce, Some(id)) => {
                let done = self.session.publish(message, None);
                self.replies.push(
                    Order::Publish,
                    size,
                    done.map(move |published| Reply::PubAck(id, reason(published))),
                );
            }
            (QoS::ExactlyOnce, Some(id)) => {
                let done = self.session.publish(message, Some(id));
                self.replies.push(
                    Order::Publish,
                    size,
                    done.map(move |published| Reply::PubRec(id, reason(published))),
                );
            }
            // QoS 0: the publish starts at once and is not acknowledged.
            _ => drop(self.session.publish(message, None).now_or_never()),
        }
        Ok(())
    }

    /// Checks the server's receive maximum for MQTT 5 clients ([MQTT-3.3.4-7]).
    fn check_receive_maximum(&self) -> Result<(), Ending> {
        let maximum = usize::from(self.context.limits().receive_maximum);
        if self.version == ProtocolVersion::V5 && self.packet_ids.publishes() > maximum {
            let code = ReasonCode::ReceiveMaximumExceeded;
            return Err(Ending::told(Closed::ProtocolError, code, "receive maximum exceeded [MQTT-3.3.4-7]"));
        }
        Ok(())
    }

    /// Refuses one publish. MQTT 3.1.1 and QoS 0 have no packet for a refusal, so the connection is closed instead.
    fn deny_publish(&mut self, qos: QoS, packet_id: Option<PacketId>) -> Result<(), Ending> {
        self.context.observer().publish_denied();
        let denied = ReasonCode::NotAuthorized;
        let reply = match (self.version, qos, packet_id) {
            (ProtocolVersion::V5, QoS::AtLeastOnce, Some(id)) => Reply::PubAck(id, denied),
            (ProtocolVersion::V5, QoS::ExactlyOnce, Some(id)) => Reply::PubRec(id, denied),
            _ => return Err(Ending::told(Closed::Auth, denied, "publish is not allowed")),
        };
        self.replies.push(Order::Publish, 0, ready(reply));
        Ok(())
    }

    fn on_puback(&mut self, id: PacketId) -> Result<(), Ending> {
        self.deliveries.acknowledged(id)?;
        self.session.acknowledge(id);
        Ok(())
    }

    fn on_pubcomp(&mut self, id: PacketId) -> Result<(), Ending> {
        self.deliveries.completed(id)?;
        self.session.acknowledge(id);
        Ok(())
    }

    /// Handles PUBREC: the client received a QoS 2 message, or refuses it ([MQTT-4.3.3-4]).
    fn on_pubrec(&mut self, ack: &Ack) -> Result<(), Ending> {
        let (id, refused) = (ack.packet_id, ack.reason.is_error());
        self.deliveries.received(id, refused)?;
        if refused {
            self.session.acknowledge(id);
            return Ok(());
        }
        let done = self.session.received(id);
        self.replies.push(Order::Exchange, 0, done.map(move |known| Reply::PubRel(id, found(known))));
        Ok(())
    }

    /// Handles PUBREL: the client frees the packet id of its QoS 2 publish ([MQTT-4.3.3-11]).
    fn on_pubrel(&mut self, id: PacketId) -> Result<(), Ending> {
        self.packet_ids.release(id)?;
        let done = self.session.release(id);
        self.replies.push(Order::Exchange, 0, done.map(move |known| Reply::PubComp(id, found(known))));
        Ok(())
    }

    fn on_disconnect(&mut self, disconnect: &Disconnect) -> Ending {
        let asked = disconnect.properties.session_expiry_interval;
        let expiry = asked.map(|seconds| Duration::from_secs(seconds.into()).min(self.context.limits().expiry_max));
        if self.expiry.is_zero() && asked.is_some_and(|seconds| seconds > 0) {
            return Ending::protocol_error("session expiry was zero in connect (3.14.2.2.2)");
        }
        Ending::client(Ended { drop_will: disconnect.reason == ReasonCode::NORMAL_DISCONNECTION, expiry })
    }
}

fn reason(published: Published) -> ReasonCode {
    match published {
        Published::Accepted => ReasonCode::Success,
        Published::NoMatchingSubscribers => ReasonCode::NoMatchingSubscribers,
        Published::QuotaExceeded => ReasonCode::QuotaExceeded,
    }
}

fn found(known: bool) -> ReasonCode {
    if known { ReasonCode::Success } else { ReasonCode::PacketIdentifierNotFound }
}
