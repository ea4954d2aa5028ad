//! PUBLISH (3.3).

use bytes::Bytes;

use super::{PacketId, QoS, UserProperties};
use crate::text::MqttStr;

/// An application message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publish {
    /// DUP flag: the message may have been sent before; never set at QoS 0 [MQTT-3.3.1-2].
    pub dup: bool,
    /// QoS of this delivery.
    pub qos: QoS,
    /// RETAIN flag.
    pub retain: bool,
    /// Topic name; empty only if a topic alias replaces it.
    pub topic: MqttStr,
    /// Packet identifier, present exactly at QoS 1 and 2 [MQTT-2.2.1-2].
    pub packet_id: Option<PacketId>,
    /// MQTT 5 properties.
    pub properties: PublishProperties,
    /// Payload; may be empty.
    pub payload: Bytes,
}

/// Declared format of a payload (3.3.2.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PayloadFormat {
    /// Unspecified bytes.
    Bytes = 0,
    /// UTF-8 text. The codec does not check it.
    Utf8 = 1,
}

/// The properties of a PUBLISH (3.3.2.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishProperties {
    /// Declared format of the payload.
    pub payload_format_indicator: Option<PayloadFormat>,
    /// Lifetime of the message in seconds.
    pub message_expiry_interval: Option<u32>,
    /// Number that replaces the topic on this connection; never zero [MQTT-3.3.2-8].
    pub topic_alias: Option<u16>,
    /// Topic name for a response, without wildcards [MQTT-3.3.2-14].
    pub response_topic: Option<MqttStr>,
    /// Data that a response repeats.
    pub correlation_data: Option<Bytes>,
    /// Identifiers of the matching subscriptions, 1 to 268,435,455 each; only from a server [MQTT-3.3.4-6].
    pub subscription_identifiers: Vec<u32>,
    /// Content type, defined by the application.
    pub content_type: Option<MqttStr>,
    /// Name and value pairs, forwarded in order [MQTT-3.3.2-18].
    pub user_properties: UserProperties,
}
