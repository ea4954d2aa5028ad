//! Decodes PUBACK, PUBREC, PUBREL and PUBCOMP (3.4 to 3.7), and the properties that SUBACK and UNSUBACK share with
//! them.

use super::{Context, Sender, kind};
use crate::error::{DecodeError, protocol};
use crate::packet::{Ack, AckProperties, ProtocolVersion};
use crate::property::{self, Property, Users, not_here, set};
use crate::reason::ReasonCode;
use crate::wire::Reader;

pub(super) fn decode(body: &mut Reader, kind: u8, context: Context) -> Result<Ack, DecodeError> {
    let packet_id = body.packet_id()?;
    // A remaining length of 2 means success, one of 3 means no property length (3.4.2.1, 3.4.2.2.1).
    if context.version == ProtocolVersion::V311 || body.is_empty() {
        return Ok(Ack::success(packet_id));
    }
    let reason = reason(body.u8()?, kind, context.sender)?;
    let properties = if body.is_empty() { AckProperties::default() } else { properties(body)? };
    Ok(Ack { packet_id, reason, properties })
}

fn reason(code: u8, kind: u8, sender: Sender) -> Result<ReasonCode, DecodeError> {
    let releases = matches!(kind, kind::PUBREL | kind::PUBCOMP);
    let known = match code {
        0x00 => true,
        0x92 => releases,
        // Only servers send "No matching subscribers" (3.4.2.1).
        0x10 => !releases && sender == Sender::Server,
        0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99 => !releases,
        _ => false,
    };
    let clause = match kind {
        kind::PUBACK => "MQTT-3.4.2-1",
        kind::PUBREC => "MQTT-3.5.2-1",
        kind::PUBREL => "MQTT-3.6.2-1",
        _ => "MQTT-3.7.2-1",
    };
    let refused = protocol(clause, "reason code is not valid for this packet");
    if known { ReasonCode::try_from(code).map_err(|_| refused) } else { Err(refused) }
}

pub(super) fn properties(body: &mut Reader) -> Result<AckProperties, DecodeError> {
    let mut found = AckProperties::default();
    property::each(body, Users::Unread(&mut found.user_properties), |property| match property {
        Property::ReasonString(value) => set(&mut found.reason_string, value),
        _ => Err(not_here()),
    })?;
    Ok(found)
}
