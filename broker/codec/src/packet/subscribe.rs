//! SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK (3.8 to 3.11).

use super::{AckProperties, PacketId, QoS, UserProperties};
use crate::reason::ReasonCode;
use crate::text::MqttStr;

/// A client's wish for subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// What the SUBACK repeats.
    pub packet_id: PacketId,
    /// MQTT 5 properties.
    pub properties: SubscribeProperties,
    /// At least one [MQTT-3.8.3-2].
    pub subscriptions: Vec<Subscription>,
}

/// The properties of a SUBSCRIBE (3.8.2.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscribeProperties {
    /// The number that comes with every matching message, 1 to 268,435,455.
    pub subscription_identifier: Option<u32>,
    /// Name and value pairs.
    pub user_properties: UserProperties,
}

/// One filter with what the client wants of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// A well-formed topic filter, `$share/<group>/` included.
    pub filter: MqttStr,
    /// The options; in 3.1.1 the QoS alone.
    pub options: SubscriptionOptions,
}

/// The options of a subscription (3.8.3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubscriptionOptions {
    /// The highest QoS at which the client wants messages.
    pub qos: QoS,
    /// Whether the client's own messages stay away; never with a shared subscription [MQTT-3.8.3-4].
    pub no_local: bool,
    /// Whether the retain flag of a forwarded message is kept.
    pub retain_as_published: bool,
    /// When retained messages are sent.
    pub retain_handling: RetainHandling,
}

/// When retained messages are sent for a subscription (3.8.3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum RetainHandling {
    /// At every SUBSCRIBE.
    #[default]
    Send = 0,
    /// Only where the subscription did not exist.
    SendIfNew = 1,
    /// Never.
    DoNotSend = 2,
}

/// The server's answer to a SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubAck {
    /// The SUBSCRIBE that is answered.
    pub packet_id: PacketId,
    /// MQTT 5 properties.
    pub properties: AckProperties,
    /// One per subscription, in order; 3.1.1 knows one error, 0x80.
    pub reasons: Vec<ReasonCode>,
}

/// A client's wish to drop subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscribe {
    /// What the UNSUBACK repeats.
    pub packet_id: PacketId,
    /// MQTT 5 properties.
    pub properties: UnsubscribeProperties,
    /// At least one well-formed filter [MQTT-3.10.3-2].
    pub filters: Vec<MqttStr>,
}

/// The properties of an UNSUBSCRIBE (3.10.2.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnsubscribeProperties {
    /// Name and value pairs.
    pub user_properties: UserProperties,
}

/// The server's answer to an UNSUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsubAck {
    /// The UNSUBSCRIBE that is answered.
    pub packet_id: PacketId,
    /// MQTT 5 properties.
    pub properties: AckProperties,
    /// One per filter, in order; 3.1.1 sends none.
    pub reasons: Vec<ReasonCode>,
}
