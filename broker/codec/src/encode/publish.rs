//! Encodes PUBLISH and its acknowledgements (3.3 to 3.7) after their fixed headers.

use crate::error::EncodeError;
use crate::packet::{Ack, AckProperties, PacketId, ProtocolVersion, Publish, PublishProperties, QoS};
use crate::property::{id, put_binary, put_list, put_text, put_u8, put_u16, put_u32, put_user};
use crate::reason::ReasonCode;
use crate::wire::Sink;

pub(super) fn check_packet_id(qos: QoS, packet_id: Option<PacketId>) -> Result<(), EncodeError> {
    if packet_id.is_some() == (qos == QoS::AtMostOnce) {
        return Err(EncodeError::PacketId);
    }
    Ok(())
}

/// Returns the low four bits of the fixed header.
pub(super) fn flags(dup: bool, qos: QoS, retain: bool) -> u8 {
    u8::from(dup) << 3 | u8::from(qos) << 1 | u8::from(retain)
}

pub(super) fn publish<S: Sink>(publish: &Publish, version: ProtocolVersion, out: &mut S) {
    out.text(&publish.topic);
    if let Some(packet_id) = publish.packet_id {
        out.u16(packet_id.get());
    }
    if version == ProtocolVersion::V5 {
        put_list(out, |s| publish_properties(&publish.properties, s), |s| publish_properties(&publish.properties, s));
    }
    out.raw(&publish.payload);
}

fn publish_properties<S: Sink>(properties: &PublishProperties, out: &mut S) {
    receiver_properties(properties.message_expiry_interval, &properties.subscription_identifiers, out);
    put_u16(out, id::TOPIC_ALIAS, properties.topic_alias);
    message_properties(properties, out);
}

/// Encodes the properties that differ between receivers.
pub(super) fn receiver_properties<S: Sink>(message_expiry_interval: Option<u32>, identifiers: &[u32], out: &mut S) {
    put_u32(out, id::MESSAGE_EXPIRY_INTERVAL, message_expiry_interval);
    for identifier in identifiers {
        out.u8(id::SUBSCRIPTION_IDENTIFIER);
        out.varint(*identifier);
    }
}

/// Encodes the properties that are forwarded unaltered to every receiver [MQTT-3.3.2-4], [MQTT-3.3.2-15] to
/// [MQTT-3.3.2-20].
pub(super) fn message_properties<S: Sink>(properties: &PublishProperties, out: &mut S) {
    put_u8(out, id::PAYLOAD_FORMAT_INDICATOR, properties.payload_format_indicator.map(|format| format as u8));
    put_text(out, id::RESPONSE_TOPIC, properties.response_topic.as_ref());
    put_binary(out, id::CORRELATION_DATA, properties.correlation_data.as_ref());
    put_text(out, id::CONTENT_TYPE, properties.content_type.as_ref());
    put_user(out, &properties.user_properties);
}

pub(super) fn ack<S: Sink>(ack: &Ack, version: ProtocolVersion, out: &mut S) {
    out.u16(ack.packet_id.get());
    let bare = ack.properties == AckProperties::default();
    if version == ProtocolVersion::V311 || (bare && ack.reason == ReasonCode::Success) {
        return;
    }
    out.u8(ack.reason.into());
    if !bare {
        put_list(out, |s| ack_properties(&ack.properties, s), |s| ack_properties(&ack.properties, s));
    }
}

pub(super) fn ack_properties<S: Sink>(properties: &AckProperties, out: &mut S) {
    put_text(out, id::REASON_STRING, properties.reason_string.as_ref());
    put_user(out, &properties.user_properties);
}
