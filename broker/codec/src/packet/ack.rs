//! PUBACK, PUBREC, PUBREL and PUBCOMP: four packets of one shape (3.4 to 3.7).

use super::{PacketId, UserProperties};
use crate::reason::ReasonCode;
use crate::text::MqttStr;

/// A step of the QoS 1 or QoS 2 exchange; the variant of [`Packet`](super::Packet) says which.
///
/// MQTT 3.1.1 carries the packet identifier only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The exchange that is answered.
    pub packet_id: PacketId,
    /// The result; [`ReasonCode::Success`] when the wire leaves it out.
    pub reason: ReasonCode,
    /// MQTT 5 properties.
    pub properties: AckProperties,
}

impl Ack {
    /// An answer with this reason and no properties.
    pub fn new(packet_id: PacketId, reason: ReasonCode) -> Self {
        Self { packet_id, reason, properties: AckProperties::default() }
    }

    /// A positive answer.
    pub fn success(packet_id: PacketId) -> Self {
        Self::new(packet_id, ReasonCode::Success)
    }
}

/// The properties that every acknowledgement may carry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AckProperties {
    /// A sentence for people, not to be parsed.
    pub reason_string: Option<MqttStr>,
    /// Name and value pairs.
    pub user_properties: UserProperties,
}
