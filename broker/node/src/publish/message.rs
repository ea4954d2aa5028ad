//! Encoding of messages in log, state and frames: an MQTT 5 PUBLISH.

use bytes::{Bytes, BytesMut};
use covey_codec::packet::Publish;
use covey_codec::{Decoder, MqttStr, Packet, ProtocolVersion, QoS};
use covey_mqtt::session::Message;

/// Largest stored message in bytes, larger than any `maxPacketSize`.
const MAX_ENCODED: usize = 32 << 20;

/// Encodes topic, payload and properties. QoS and flags are not part of the body.
#[expect(
    clippy::expect_used,
    reason = "texts and data were decoded from fields of 65,535 bytes, the packet is within MAX_ENCODED"
)]
pub(crate) fn encode(message: &Message) -> Bytes {
    let publish = Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: message.topic.clone(),
        packet_id: None,
        properties: message.properties.clone(),
        payload: message.payload.clone(),
    };
    let mut bytes = BytesMut::new();
    covey_codec::encode(&Packet::Publish(publish), ProtocolVersion::V5, &mut bytes).expect("a decoded message fits");
    bytes.freeze()
}

/// Decodes a stored message and sets QoS, retain flag and remaining expiry (seconds). Returns `None` for a body that
/// [`encode`] did not write.
pub(crate) fn decode(body: &Bytes, qos: QoS, retain: bool, expiry: Option<u32>) -> Option<Message> {
    let mut bytes = BytesMut::from(&body[..]);
    let Ok(Some(Packet::Publish(publish))) = Decoder::client(ProtocolVersion::V5, MAX_ENCODED).decode(&mut bytes)
    else {
        return None;
    };
    let mut properties = publish.properties;
    properties.message_expiry_interval = expiry;
    Some(Message { topic: publish.topic, payload: publish.payload, qos, retain, properties })
}

/// Wraps a text that was validated as an MQTT string before; any other text becomes empty.
pub(crate) fn text(value: &str) -> MqttStr {
    MqttStr::new(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use covey_codec::packet::PublishProperties;

    use super::*;

    #[test]
    fn a_message_survives_storage_and_its_expiry_is_what_is_left() {
        let properties = PublishProperties {
            message_expiry_interval: Some(60),
            response_topic: Some(text("answer/here")),
            user_properties: vec![(text("k"), text("v"))],
            ..PublishProperties::default()
        };
        let message = Message {
            topic: text("部门/消息"),
            payload: Bytes::from_static(b"x"),
            qos: QoS::AtLeastOnce,
            retain: true,
            properties,
        };
        let back = decode(&encode(&message), QoS::AtLeastOnce, true, Some(30)).unwrap();
        let mut expected = message;
        expected.properties.message_expiry_interval = Some(30);
        assert_eq!(back, expected);
    }
}
