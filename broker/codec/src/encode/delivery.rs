//! Encoding of one message for many receivers: the parts that are the same for all of them are encoded once.
//!
//! The caller creates one [`EncodedPublish`] per message and version, and writes it once per receiver with a
//! [`Delivery`]. The bytes equal those of [`encode`](super::encode) for a PUBLISH with the same fields.
//!
//! ```text
//! fixed header | topic | packet id | property length | expiry, subscription ids | other properties | payload
//!  Delivery      shared  Delivery    Delivery          Delivery                   shared             shared
//! ```

use bytes::{Bytes, BytesMut};

use super::publish::{check_packet_id, flags, message_properties, receiver_properties};
use super::{checked_len, framed_len};
use crate::decode::kind;
use crate::error::EncodeError;
use crate::packet::{PacketId, ProtocolVersion, Publish, QoS};
use crate::text::MqttStr;
use crate::varint;
use crate::wire::{Count, Sink};

/// Fields of a PUBLISH that differ between receivers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delivery<'a> {
    /// DUP flag.
    pub dup: bool,
    /// QoS of this delivery.
    pub qos: QoS,
    /// RETAIN flag.
    pub retain: bool,
    /// Packet identifier, present exactly at QoS 1 and 2.
    pub packet_id: Option<PacketId>,
    /// Remaining lifetime of the message in seconds [MQTT-3.3.2-6]; omitted in 3.1.1.
    pub message_expiry_interval: Option<u32>,
    /// Identifiers of the receiver's matching subscriptions; omitted in 3.1.1.
    pub subscription_identifiers: &'a [u32],
}

/// A message whose shared parts are encoded.
#[derive(Debug, Clone)]
pub struct EncodedPublish {
    version: ProtocolVersion,
    topic: MqttStr,
    /// Encoded properties that are the same for all receivers.
    properties: Bytes,
    payload: Bytes,
}

impl EncodedPublish {
    /// Encodes the properties of a message. The payload is shared, not copied.
    ///
    /// `dup`, `qos`, `retain`, `packet_id`, message expiry and subscription identifiers come from each [`Delivery`]. A
    /// topic alias is omitted, since it is valid only on the sender's connection (3.3.2.3.4).
    ///
    /// # Errors
    /// Fails if a field or the properties are too long for the wire format.
    pub fn new(message: &Publish, version: ProtocolVersion) -> Result<Self, EncodeError> {
        let mut properties = BytesMut::new();
        if version == ProtocolVersion::V5 {
            let mut count = Count::default();
            message_properties(&message.properties, &mut count);
            properties.reserve(checked_len(&count)?);
            message_properties(&message.properties, &mut properties);
        }
        let (topic, payload) = (message.topic.clone(), message.payload.clone());
        Ok(Self { version, topic, properties: properties.freeze(), payload })
    }

    /// Returns the number of bytes that [`EncodedPublish::write`] appends, to be compared with the receiver's maximum
    /// packet size.
    ///
    /// # Errors
    /// Fails as [`EncodedPublish::write`] does.
    pub fn encoded_len(&self, delivery: &Delivery<'_>) -> Result<usize, EncodeError> {
        Ok(framed_len(self.body_len(delivery)?))
    }

    /// Appends the PUBLISH for one receiver to `out`.
    ///
    /// # Errors
    /// Fails if packet identifier and QoS do not agree or the packet is too long. `out` is unchanged then.
    pub fn write(&self, delivery: &Delivery<'_>, out: &mut BytesMut) -> Result<(), EncodeError> {
        self.write_head(delivery, out)?;
        out.raw(&self.payload);
        Ok(())
    }

    /// Appends everything but the payload, for a writer that sends [`EncodedPublish::payload`] after it without a copy.
    ///
    /// # Errors
    /// Fails as [`EncodedPublish::write`] does.
    pub fn write_head(&self, delivery: &Delivery<'_>, out: &mut BytesMut) -> Result<(), EncodeError> {
        let len = self.body_len(delivery)?;
        out.reserve(len.saturating_add(5));
        out.u8(kind::PUBLISH << 4 | flags(delivery.dup, delivery.qos, delivery.retain));
        out.varint(u32::try_from(len).unwrap_or(varint::MAX));
        self.head(delivery, out);
        Ok(())
    }

    /// Returns the payload that follows [`EncodedPublish::write_head`].
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    fn body_len(&self, delivery: &Delivery<'_>) -> Result<usize, EncodeError> {
        check_packet_id(delivery.qos, delivery.packet_id)?;
        let mut count = Count::default();
        self.head(delivery, &mut count);
        count.raw(&self.payload);
        checked_len(&count)
    }

    fn head<S: Sink>(&self, delivery: &Delivery<'_>, out: &mut S) {
        out.text(&self.topic);
        if let Some(packet_id) = delivery.packet_id {
            out.u16(packet_id.get());
        }
        if self.version == ProtocolVersion::V311 {
            return;
        }
        let mut own = Count::default();
        receiver_properties(delivery.message_expiry_interval, delivery.subscription_identifiers, &mut own);
        let len = own.len.saturating_add(self.properties.len());
        out.varint(u32::try_from(len).unwrap_or(varint::MAX));
        receiver_properties(delivery.message_expiry_interval, delivery.subscription_identifiers, out);
        out.raw(&self.properties);
    }
}
