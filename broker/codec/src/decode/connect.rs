//! Decodes CONNECT (3.1) after its fixed header.

use bytes::Bytes;

use crate::error::{DecodeError, malformed, protocol};
use crate::packet::{Connect, ConnectProperties, ProtocolVersion, QoS, Will, WillProperties};
use crate::property::{self, Property, Users, not_here, set};
use crate::topic;
use crate::wire::Reader;

const CLEAN_START: u8 = 0x02;
const WILL: u8 = 0x04;
const WILL_RETAIN: u8 = 0x20;
const PASSWORD: u8 = 0x40;
const USER_NAME: u8 = 0x80;

/// Decodes protocol name and level.
pub(super) fn version(body: &mut Reader) -> Result<ProtocolVersion, DecodeError> {
    let name = body.binary()?;
    if name.as_ref() != b"MQTT" {
        return Err(DecodeError::UnsupportedVersion { what: "protocol name is not MQTT", clause: "MQTT-3.1.2-1" });
    }
    match body.u8()? {
        4 => Ok(ProtocolVersion::V311),
        5 => Ok(ProtocolVersion::V5),
        _ => Err(DecodeError::UnsupportedVersion { what: "protocol level is neither 4 nor 5", clause: "MQTT-3.1.2-2" }),
    }
}

/// Decodes everything after the protocol level.
///
/// An empty client identifier without Clean Session is accepted in 3.1.1: the server has to answer it with return code
/// 2 (3.1.1: [MQTT-3.1.3-8]), which is up to the caller.
pub(super) fn decode(body: &mut Reader, version: ProtocolVersion) -> Result<Connect, DecodeError> {
    let flags = body.u8()?;
    check_flags(flags, version)?;
    let keep_alive = body.u16()?;
    let properties = match version {
        ProtocolVersion::V5 => properties(body)?,
        ProtocolVersion::V311 => ConnectProperties::default(),
    };
    let client_id = body.text()?;
    let will = if flags & WILL == 0 { None } else { Some(will(body, flags, version)?) };
    let username = if flags & USER_NAME == 0 { None } else { Some(body.text()?) };
    let password: Option<Bytes> = if flags & PASSWORD == 0 { None } else { Some(body.binary()?) };
    Ok(Connect {
        protocol_version: version,
        clean_start: flags & CLEAN_START != 0,
        keep_alive,
        client_id,
        will,
        username,
        password,
        properties,
    })
}

fn will_qos(flags: u8) -> u8 {
    (flags >> 3) & 0x03
}

fn check_flags(flags: u8, version: ProtocolVersion) -> Result<(), DecodeError> {
    if flags & 0x01 != 0 {
        return Err(malformed("MQTT-3.1.2-3", "reserved connect flag is set"));
    }
    if flags & WILL == 0 {
        if will_qos(flags) != 0 {
            return Err(malformed("MQTT-3.1.2-11", "will qos is set without a will"));
        }
        if flags & WILL_RETAIN != 0 {
            return Err(malformed("MQTT-3.1.2-13", "will retain is set without a will"));
        }
    }
    if version == ProtocolVersion::V311 && flags & USER_NAME == 0 && flags & PASSWORD != 0 {
        return Err(malformed("3.1.1: MQTT-3.1.2-22", "password without a user name"));
    }
    Ok(())
}

fn properties(body: &mut Reader) -> Result<ConnectProperties, DecodeError> {
    let mut found = ConnectProperties::default();
    property::each(body, Users::Unread(&mut found.user_properties), |property| match property {
        Property::SessionExpiryInterval(value) => set(&mut found.session_expiry_interval, value),
        Property::ReceiveMaximum(value) => set(&mut found.receive_maximum, value),
        Property::MaximumPacketSize(value) => set(&mut found.maximum_packet_size, value),
        Property::TopicAliasMaximum(value) => set(&mut found.topic_alias_maximum, value),
        Property::RequestResponseInformation(value) => set(&mut found.request_response_information, value),
        Property::RequestProblemInformation(value) => set(&mut found.request_problem_information, value),
        Property::AuthenticationMethod(value) => set(&mut found.authentication_method, value),
        Property::AuthenticationData(value) => set(&mut found.authentication_data, value),
        _ => Err(not_here()),
    })?;
    if found.authentication_data.is_some() && found.authentication_method.is_none() {
        return Err(protocol("3.1.2.11.10", "authentication data without a method"));
    }
    Ok(found)
}

fn will(body: &mut Reader, flags: u8, version: ProtocolVersion) -> Result<Will, DecodeError> {
    let qos = QoS::from_bits(will_qos(flags)).ok_or_else(|| malformed("MQTT-3.1.2-12", "will qos is 3"))?;
    let properties = match version {
        ProtocolVersion::V5 => will_properties(body)?,
        ProtocolVersion::V311 => WillProperties::default(),
    };
    let topic = body.text()?;
    topic::check_name(&topic)?;
    let payload = body.binary()?;
    Ok(Will { topic, payload, qos, retain: flags & WILL_RETAIN != 0, properties })
}

fn will_properties(body: &mut Reader) -> Result<WillProperties, DecodeError> {
    let mut found = WillProperties::default();
    property::each(body, Users::Forwarded(&mut found.user_properties), |property| match property {
        Property::WillDelayInterval(value) => set(&mut found.will_delay_interval, value),
        Property::PayloadFormatIndicator(value) => set(&mut found.payload_format_indicator, value),
        Property::MessageExpiryInterval(value) => set(&mut found.message_expiry_interval, value),
        Property::ContentType(value) => set(&mut found.content_type, value),
        Property::ResponseTopic(value) => set(&mut found.response_topic, value),
        Property::CorrelationData(value) => set(&mut found.correlation_data, value),
        _ => Err(not_here()),
    })?;
    Ok(found)
}
