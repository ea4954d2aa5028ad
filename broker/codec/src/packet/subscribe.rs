//! SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK (3.8 to 3.11).

use super::{AckProperties, PacketId, QoS, UserProperties};
use crate::reason::ReasonCode;
use crate::text::MqttStr;

/// SUBSCRIBE, a client's request for subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// Packet identifier, which the SUBACK repeats.
    pub packet_id: PacketId,
    /// MQTT 5 properties.
    pub properties: SubscribeProperties,
    /// Subscriptions, at least one [MQTT-3.8.3-2].
    pub subscriptions: Vec<Subscription>,
}

/// The properties of a SUBSCRIBE (3.8.2.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscribeProperties {
    /// Number that the server adds to every matching message, 1 to 268,435,455.
    pub subscription_identifier: Option<u32>,
    /// Name and value pairs.
    pub user_properties: UserProperties,
}

/// One filter with its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Well-formed topic filter, including `$share/<group>/`.
    pub filter: MqttStr,
    /// Options; in 3.1.1 only the QoS.
    pub options: SubscriptionOptions,
}

/// The options of a subscription (3.8.3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubscriptionOptions {
    /// Maximum QoS of deliveries.
    pub qos: QoS,
    /// Whether the client's own messages are excluded; never set on a shared subscription [MQTT-3.8.3-4].
    pub no_local: bool,
    /// Whether the RETAIN flag of a forwarded message is kept.
    pub retain_as_published: bool,
    /// Whether retained messages are sent.
    pub retain_handling: RetainHandling,
}

/// Whether retained messages are sent for a subscription (3.8.3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum RetainHandling {
    /// At every SUBSCRIBE.
    #[default]
    Send = 0,
    /// Only if the subscription did not exist.
    SendIfNew = 1,
    /// Never.
    DoNotSend = 2,
}

/// SUBACK, the server's reply to a SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubAck {
    /// Packet identifier of the SUBSCRIBE.
    pub packet_id: PacketId,
    /// MQTT 5 properties.
    pub properties: AckProperties,
    /// One reason code per subscription, in order; 3.1.1 has one error code, 0x80.
    pub reasons: Vec<ReasonCode>,
}

/// UNSUBSCRIBE, a client's request to remove subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscribe {
    /// Packet identifier, which the UNSUBACK repeats.
    pub packet_id: PacketId,
    /// MQTT 5 properties.
    pub properties: UnsubscribeProperties,
    /// Well-formed filters, at least one [MQTT-3.10.3-2].
    pub filters: Vec<MqttStr>,
}

/// The properties of an UNSUBSCRIBE (3.10.2.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnsubscribeProperties {
    /// Name and value pairs.
    pub user_properties: UserProperties,
}

/// UNSUBACK, the server's reply to an UNSUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsubAck {
    /// Packet identifier of the UNSUBSCRIBE.
    pub packet_id: PacketId,
    /// MQTT 5 properties.
    pub properties: AckProperties,
    /// One reason code per filter, in order; none in 3.1.1.
    pub reasons: Vec<ReasonCode>,
}
