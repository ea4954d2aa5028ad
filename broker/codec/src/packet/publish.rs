//! PUBLISH: a message on its way (3.3).

use bytes::Bytes;

use super::{PacketId, QoS, UserProperties};
use crate::text::MqttStr;

/// A message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publish {
    /// Whether this may be a re-delivery; never set at QoS 0 [MQTT-3.3.1-2].
    pub dup: bool,
    /// The QoS of this delivery.
    pub qos: QoS,
    /// The retain flag.
    pub retain: bool,
    /// The topic name; empty only where a topic alias stands for it.
    pub topic: MqttStr,
    /// Present exactly at QoS 1 and 2 [MQTT-2.2.1-2].
    pub packet_id: Option<PacketId>,
    /// MQTT 5 properties.
    pub properties: PublishProperties,
    /// The application's bytes; may be empty.
    pub payload: Bytes,
}

/// What a payload claims to be (3.3.2.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PayloadFormat {
    /// Unspecified bytes.
    Bytes = 0,
    /// UTF-8 text; the claim is not checked here.
    Utf8 = 1,
}

/// The properties of a PUBLISH (3.3.2.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishProperties {
    /// What the payload claims to be.
    pub payload_format_indicator: Option<PayloadFormat>,
    /// The message's lifetime in seconds.
    pub message_expiry_interval: Option<u32>,
    /// The number that stands for the topic on this connection; never zero [MQTT-3.3.2-8].
    pub topic_alias: Option<u16>,
    /// Where a response is wanted; a topic name without wildcards [MQTT-3.3.2-14].
    pub response_topic: Option<MqttStr>,
    /// What a response must repeat.
    pub correlation_data: Option<Bytes>,
    /// The subscriptions that matched, 1 to 268,435,455 each; only from a server [MQTT-3.3.4-6].
    pub subscription_identifiers: Vec<u32>,
    /// The kind of the payload in the application's words.
    pub content_type: Option<MqttStr>,
    /// Name and value pairs, forwarded in order [MQTT-3.3.2-18].
    pub user_properties: UserProperties,
}
