//! PUBACK, PUBREC, PUBREL and PUBCOMP, four packets with the same fields (3.4 to 3.7).

use super::{PacketId, UserProperties};
use crate::reason::ReasonCode;
use crate::text::MqttStr;

/// A step of the QoS 1 or QoS 2 exchange. The variant of [`Packet`](super::Packet) determines which.
///
/// In MQTT 3.1.1 it carries only the packet identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Packet identifier of the exchange.
    pub packet_id: PacketId,
    /// The result; [`ReasonCode::Success`] if it is absent on the wire.
    pub reason: ReasonCode,
    /// MQTT 5 properties.
    pub properties: AckProperties,
}

impl Ack {
    /// Creates an acknowledgement without properties.
    pub fn new(packet_id: PacketId, reason: ReasonCode) -> Self {
        Self { packet_id, reason, properties: AckProperties::default() }
    }

    /// Creates a positive acknowledgement without properties.
    pub fn success(packet_id: PacketId) -> Self {
        Self::new(packet_id, ReasonCode::Success)
    }
}

/// The properties that every acknowledgement may carry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AckProperties {
    /// Human-readable explanation.
    pub reason_string: Option<MqttStr>,
    /// Name and value pairs.
    pub user_properties: UserProperties,
}
