//! Decodes CONNACK (3.2) after its fixed header.

use crate::error::{DecodeError, malformed, protocol};
use crate::packet::{ConnAck, ConnAckProperties, ProtocolVersion};
use crate::property::{self, Property, Users, not_here, set};
use crate::reason::ReasonCode;
use crate::wire::Reader;

pub(super) fn decode(body: &mut Reader, version: ProtocolVersion) -> Result<ConnAck, DecodeError> {
    let flags = body.u8()?;
    if flags & !0x01 != 0 {
        return Err(malformed("MQTT-3.2.2-1", "reserved connack flag is set"));
    }
    let code = body.u8()?;
    let (reason, properties) = match version {
        ProtocolVersion::V5 => (reason(code)?, properties(body)?),
        ProtocolVersion::V311 => (return_code(code)?, ConnAckProperties::default()),
    };
    let session_present = flags == 0x01;
    if session_present && reason != ReasonCode::Success {
        return Err(protocol("MQTT-3.2.2-6", "session present with a refusal"));
    }
    Ok(ConnAck { session_present, reason, properties })
}

fn return_code(code: u8) -> Result<ReasonCode, DecodeError> {
    ReasonCode::from_connect_return_code(code)
        .ok_or_else(|| malformed("3.1.1: 3.2.2.3", "connect return code is reserved for future use"))
}

fn reason(code: u8) -> Result<ReasonCode, DecodeError> {
    match code {
        0x00 | 0x80..=0x8a | 0x8c | 0x90 | 0x95 | 0x97 | 0x99..=0x9d | 0x9f => ReasonCode::try_from(code).ok(),
        _ => None,
    }
    .ok_or_else(|| protocol("MQTT-3.2.2-8", "reason code is not valid for connack"))
}

fn properties(body: &mut Reader) -> Result<ConnAckProperties, DecodeError> {
    let mut found = ConnAckProperties::default();
    property::each(body, Users::Unread(&mut found.user_properties), |property| match property {
        Property::SessionExpiryInterval(value) => set(&mut found.session_expiry_interval, value),
        Property::ReceiveMaximum(value) => set(&mut found.receive_maximum, value),
        Property::MaximumQos(value) => set(&mut found.maximum_qos, value),
        Property::RetainAvailable(value) => set(&mut found.retain_available, value),
        Property::MaximumPacketSize(value) => set(&mut found.maximum_packet_size, value),
        Property::AssignedClientIdentifier(value) => set(&mut found.assigned_client_identifier, value),
        Property::TopicAliasMaximum(value) => set(&mut found.topic_alias_maximum, value),
        Property::ReasonString(value) => set(&mut found.reason_string, value),
        Property::WildcardSubscriptionAvailable(value) => set(&mut found.wildcard_subscription_available, value),
        Property::SubscriptionIdentifiersAvailable(value) => set(&mut found.subscription_identifiers_available, value),
        Property::SharedSubscriptionAvailable(value) => set(&mut found.shared_subscription_available, value),
        Property::ServerKeepAlive(value) => set(&mut found.server_keep_alive, value),
        Property::ResponseInformation(value) => set(&mut found.response_information, value),
        Property::ServerReference(value) => set(&mut found.server_reference, value),
        Property::AuthenticationMethod(value) => set(&mut found.authentication_method, value),
        Property::AuthenticationData(value) => set(&mut found.authentication_data, value),
        _ => Err(not_here()),
    })?;
    Ok(found)
}
