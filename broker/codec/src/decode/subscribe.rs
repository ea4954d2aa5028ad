//! Decodes SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK (3.8 to 3.11) after their fixed headers.

use super::ack;
use crate::error::{DecodeError, malformed, protocol};
use crate::packet::{
    AckProperties, ProtocolVersion, QoS, RetainHandling, SubAck, Subscribe, SubscribeProperties, Subscription,
    SubscriptionOptions, UnsubAck, Unsubscribe, UnsubscribeProperties,
};
use crate::property::{self, Property, Users, not_here, set};
use crate::reason::ReasonCode;
use crate::text::MqttStr;
use crate::topic;
use crate::wire::Reader;

pub(super) fn subscribe(body: &mut Reader, version: ProtocolVersion) -> Result<Subscribe, DecodeError> {
    let packet_id = body.packet_id()?;
    let properties = match version {
        ProtocolVersion::V5 => subscribe_properties(body)?,
        ProtocolVersion::V311 => SubscribeProperties::default(),
    };
    let mut subscriptions = Vec::new();
    while !body.is_empty() {
        let filter = filter(body)?;
        let bits = body.u8()?;
        let options = match version {
            ProtocolVersion::V5 => options(bits)?,
            ProtocolVersion::V311 => requested_qos(bits)?,
        };
        if options.no_local && topic::split_shared(&filter).is_some() {
            return Err(protocol("MQTT-3.8.3-4", "no local on a shared subscription"));
        }
        subscriptions.push(Subscription { filter, options });
    }
    if subscriptions.is_empty() {
        return Err(protocol("MQTT-3.8.3-2", "subscribe without a topic filter"));
    }
    Ok(Subscribe { packet_id, properties, subscriptions })
}

fn filter(body: &mut Reader) -> Result<MqttStr, DecodeError> {
    let filter = body.text()?;
    topic::check_filter(&filter)?;
    Ok(filter)
}

fn options(bits: u8) -> Result<SubscriptionOptions, DecodeError> {
    if bits & 0xc0 != 0 {
        return Err(malformed("MQTT-3.8.3-5", "reserved bits of the subscription options are set"));
    }
    let qos = QoS::from_bits(bits & 0x03).ok_or_else(|| protocol("3.8.3.1", "maximum qos is 3"))?;
    let retain_handling = match bits >> 4 {
        0 => RetainHandling::Send,
        1 => RetainHandling::SendIfNew,
        2 => RetainHandling::DoNotSend,
        _ => return Err(protocol("3.8.3.1", "retain handling is 3")),
    };
    Ok(SubscriptionOptions { qos, no_local: bits & 0x04 != 0, retain_as_published: bits & 0x08 != 0, retain_handling })
}

fn requested_qos(bits: u8) -> Result<SubscriptionOptions, DecodeError> {
    let qos =
        QoS::from_bits(bits).ok_or_else(|| malformed("3.1.1: MQTT-3.8.3-4", "requested qos is none of 0, 1 and 2"))?;
    Ok(SubscriptionOptions { qos, ..SubscriptionOptions::default() })
}

fn subscribe_properties(body: &mut Reader) -> Result<SubscribeProperties, DecodeError> {
    let mut found = SubscribeProperties::default();
    property::each(body, Users::Unread(&mut found.user_properties), |property| match property {
        Property::SubscriptionIdentifier(value) => set(&mut found.subscription_identifier, value),
        _ => Err(not_here()),
    })?;
    Ok(found)
}

pub(super) fn unsubscribe(body: &mut Reader, version: ProtocolVersion) -> Result<Unsubscribe, DecodeError> {
    let packet_id = body.packet_id()?;
    let mut properties = UnsubscribeProperties::default();
    if version == ProtocolVersion::V5 {
        property::each(body, Users::Unread(&mut properties.user_properties), |_| Err(not_here()))?;
    }
    let mut filters = Vec::new();
    while !body.is_empty() {
        filters.push(filter(body)?);
    }
    if filters.is_empty() {
        return Err(protocol("MQTT-3.10.3-2", "unsubscribe without a topic filter"));
    }
    Ok(Unsubscribe { packet_id, properties, filters })
}

pub(super) fn suback(body: &mut Reader, version: ProtocolVersion) -> Result<SubAck, DecodeError> {
    let packet_id = body.packet_id()?;
    let properties = match version {
        ProtocolVersion::V5 => ack::properties(body)?,
        ProtocolVersion::V311 => AckProperties::default(),
    };
    let reasons = reasons(body, "MQTT-3.9.3-2", |code| match version {
        ProtocolVersion::V5 => {
            matches!(code, 0x00..=0x02 | 0x80 | 0x83 | 0x87 | 0x8f | 0x91 | 0x97 | 0x9e | 0xa1 | 0xa2)
        }
        ProtocolVersion::V311 => matches!(code, 0x00..=0x02 | 0x80),
    })?;
    Ok(SubAck { packet_id, properties, reasons })
}

pub(super) fn unsuback(body: &mut Reader, version: ProtocolVersion) -> Result<UnsubAck, DecodeError> {
    let packet_id = body.packet_id()?;
    if version == ProtocolVersion::V311 {
        return Ok(UnsubAck { packet_id, properties: AckProperties::default(), reasons: Vec::new() });
    }
    let properties = ack::properties(body)?;
    let reasons =
        reasons(body, "MQTT-3.11.3-2", |code| matches!(code, 0x00 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8f | 0x91))?;
    Ok(UnsubAck { packet_id, properties, reasons })
}

fn reasons(
    body: &mut Reader,
    clause: &'static str,
    allowed: impl Fn(u8) -> bool,
) -> Result<Vec<ReasonCode>, DecodeError> {
    let refused = protocol(clause, "reason code is not valid for this packet");
    let codes = body.rest();
    if codes.is_empty() {
        return Err(protocol(clause, "acknowledgement without a reason code"));
    }
    codes
        .iter()
        .map(|&code| if allowed(code) { ReasonCode::try_from(code).map_err(|_| refused) } else { Err(refused) })
        .collect()
}
