//! One message for many receivers: what is the same for all is encoded once and shared.
//!
//! The broker makes one [`EncodedPublish`] per message and version, and writes it once per receiver with a [`Delivery`].
//! The bytes equal those of [`encode`](super::encode) for the PUBLISH with the same fields.
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

/// What of a PUBLISH is one receiver's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delivery<'a> {
    /// Whether this repeats an earlier delivery.
    pub dup: bool,
    /// The QoS of this delivery.
    pub qos: QoS,
    /// The retain flag.
    pub retain: bool,
    /// Present exactly at QoS 1 and 2.
    pub packet_id: Option<PacketId>,
    /// What is left of the message's lifetime, in seconds [MQTT-3.3.2-6]; left out in 3.1.1.
    pub message_expiry_interval: Option<u32>,
    /// The receiver's subscriptions that matched; left out in 3.1.1.
    pub subscription_identifiers: &'a [u32],
}

/// A message whose shared parts are encoded.
#[derive(Debug, Clone)]
pub struct EncodedPublish {
    version: ProtocolVersion,
    topic: MqttStr,
    properties: Bytes,
    payload: Bytes,
}

impl EncodedPublish {
    /// Encodes topic and properties of a message; its payload is shared, not copied.
    ///
    /// `dup`, `qos`, `retain`, `packet_id`, message expiry and subscription identifiers come from each [`Delivery`]; a
    /// topic alias is left out, being the sender's own (3.3.2.3.4).
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

    /// How many bytes [`EncodedPublish::write`] appends, for the check against the receiver's maximum packet size.
    pub fn encoded_len(&self, delivery: &Delivery<'_>) -> Result<usize, EncodeError> {
        Ok(framed_len(self.body_len(delivery)?))
    }

    /// Appends the whole PUBLISH for one receiver to `out`; after an error `out` is as it was.
    pub fn write(&self, delivery: &Delivery<'_>, out: &mut BytesMut) -> Result<(), EncodeError> {
        self.write_head(delivery, out)?;
        out.raw(&self.payload);
        Ok(())
    }

    /// Appends all but the payload, for a writer that sends [`EncodedPublish::payload`] behind it without a copy.
    pub fn write_head(&self, delivery: &Delivery<'_>, out: &mut BytesMut) -> Result<(), EncodeError> {
        let len = self.body_len(delivery)?;
        out.reserve(len.saturating_add(5));
        out.u8(kind::PUBLISH << 4 | flags(delivery.dup, delivery.qos, delivery.retain));
        out.varint(u32::try_from(len).unwrap_or(varint::MAX));
        self.head(delivery, out);
        Ok(())
    }

    /// The payload that follows [`EncodedPublish::write_head`].
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
