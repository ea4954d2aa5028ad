//! Decodes PUBLISH (3.3) after its fixed header.

use super::{Context, Sender};
use crate::error::{DecodeError, malformed, protocol};
use crate::packet::{ProtocolVersion, Publish, PublishProperties, QoS};
use crate::property::{self, Property, Users, not_here, set};
use crate::topic;
use crate::wire::Reader;

/// Decodes the packet. `flags` are the low four bits of the fixed header.
pub(super) fn decode(body: &mut Reader, flags: u8, context: Context) -> Result<Publish, DecodeError> {
    let (dup, retain) = (flags & 0x08 != 0, flags & 0x01 != 0);
    let qos = QoS::from_bits((flags >> 1) & 0x03).ok_or_else(|| malformed("MQTT-3.3.1-4", "qos is 3"))?;
    if dup && qos == QoS::AtMostOnce {
        return Err(malformed("MQTT-3.3.1-2", "dup is set at qos 0"));
    }
    let topic = body.text()?;
    let packet_id = if qos == QoS::AtMostOnce { None } else { Some(body.packet_id()?) };
    let properties = match context.version {
        ProtocolVersion::V5 => properties(body, context.sender)?,
        ProtocolVersion::V311 => PublishProperties::default(),
    };
    if !topic.is_empty() || context.version == ProtocolVersion::V311 {
        check_topic(&topic)?;
    } else if properties.topic_alias.is_none() {
        return Err(protocol("3.3.2.1", "topic is empty and there is no topic alias"));
    }
    let payload = body.rest();
    Ok(Publish { dup, qos, retain, topic, packet_id, properties, payload })
}

fn check_topic(name: &str) -> Result<(), DecodeError> {
    topic::check_name(name).map_err(|error| match error {
        topic::Error::WildcardInName => malformed("MQTT-3.3.2-2", "topic name contains a wildcard"),
        other => other.into(),
    })
}

fn properties(body: &mut Reader, sender: Sender) -> Result<PublishProperties, DecodeError> {
    let mut found = PublishProperties::default();
    property::each(body, Users::Forwarded(&mut found.user_properties), |property| match property {
        Property::PayloadFormatIndicator(value) => set(&mut found.payload_format_indicator, value),
        Property::MessageExpiryInterval(value) => set(&mut found.message_expiry_interval, value),
        Property::TopicAlias(value) => set(&mut found.topic_alias, value),
        Property::ResponseTopic(value) => set(&mut found.response_topic, value),
        Property::CorrelationData(value) => set(&mut found.correlation_data, value),
        Property::ContentType(value) => set(&mut found.content_type, value),
        Property::SubscriptionIdentifier(_) if sender == Sender::Client => {
            Err(protocol("MQTT-3.3.4-6", "subscription identifier in a publish from a client"))
        }
        Property::SubscriptionIdentifier(value) => {
            found.subscription_identifiers.push(value);
            Ok(())
        }
        _ => Err(not_here()),
    })?;
    Ok(found)
}
