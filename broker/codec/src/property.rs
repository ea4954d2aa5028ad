//! The properties of MQTT 5 (2.2.2), with the rules that are the same for every packet.
//!
//! The decoders of packets iterate over a list with [`each`] and select the properties that they accept; [`set`]
//! refuses duplicates. The encoders write properties with the `put_*` functions.

use bytes::Bytes;

use crate::error::{DecodeError, malformed, protocol};
use crate::packet::{PayloadFormat, QoS, UserProperties};
use crate::text::MqttStr;
use crate::topic;
use crate::varint;
use crate::wire::{Count, Reader, Sink, UserPropertyPolicy};

/// The identifiers of table 2-4.
pub(crate) mod id {
    pub(crate) const PAYLOAD_FORMAT_INDICATOR: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION_DATA: u8 = 0x09;
    pub(crate) const SUBSCRIPTION_IDENTIFIER: u8 = 0x0b;
    pub(crate) const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
    pub(crate) const ASSIGNED_CLIENT_IDENTIFIER: u8 = 0x12;
    pub(crate) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(crate) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(crate) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(crate) const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub(crate) const WILL_DELAY_INTERVAL: u8 = 0x18;
    pub(crate) const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub(crate) const RESPONSE_INFORMATION: u8 = 0x1a;
    pub(crate) const SERVER_REFERENCE: u8 = 0x1c;
    pub(crate) const REASON_STRING: u8 = 0x1f;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(crate) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(crate) const TOPIC_ALIAS: u8 = 0x23;
    pub(crate) const MAXIMUM_QOS: u8 = 0x24;
    pub(crate) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(crate) const USER_PROPERTY: u8 = 0x26;
    pub(crate) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(crate) const WILDCARD_SUBSCRIPTION_AVAILABLE: u8 = 0x28;
    pub(crate) const SUBSCRIPTION_IDENTIFIERS_AVAILABLE: u8 = 0x29;
    pub(crate) const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 0x2a;
}

/// A property with a valid value.
#[derive(Debug)]
pub(crate) enum Property {
    PayloadFormatIndicator(PayloadFormat),
    MessageExpiryInterval(u32),
    ContentType(MqttStr),
    ResponseTopic(MqttStr),
    CorrelationData(Bytes),
    SubscriptionIdentifier(u32),
    SessionExpiryInterval(u32),
    AssignedClientIdentifier(MqttStr),
    ServerKeepAlive(u16),
    AuthenticationMethod(MqttStr),
    AuthenticationData(Bytes),
    RequestProblemInformation(bool),
    WillDelayInterval(u32),
    RequestResponseInformation(bool),
    ResponseInformation(MqttStr),
    ServerReference(MqttStr),
    ReasonString(MqttStr),
    ReceiveMaximum(u16),
    TopicAliasMaximum(u16),
    TopicAlias(u16),
    MaximumQos(QoS),
    RetainAvailable(bool),
    User(MqttStr, MqttStr),
    MaximumPacketSize(u32),
    WildcardSubscriptionAvailable(bool),
    SubscriptionIdentifiersAvailable(bool),
    SharedSubscriptionAvailable(bool),
}

impl Property {
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        // Every identifier is below 128, and the minimal form of such a variable byte integer is one byte.
        let property = match u8::try_from(from.varint()?).map_err(|_| unknown())? {
            id::PAYLOAD_FORMAT_INDICATOR => Self::PayloadFormatIndicator(payload_format(from)?),
            id::MESSAGE_EXPIRY_INTERVAL => Self::MessageExpiryInterval(from.u32()?),
            id::CONTENT_TYPE => Self::ContentType(from.text()?),
            id::RESPONSE_TOPIC => Self::ResponseTopic(response_topic(from)?),
            id::CORRELATION_DATA => Self::CorrelationData(from.binary()?),
            id::SUBSCRIPTION_IDENTIFIER => Self::SubscriptionIdentifier(subscription_identifier(from)?),
            id::SESSION_EXPIRY_INTERVAL => Self::SessionExpiryInterval(from.u32()?),
            id::ASSIGNED_CLIENT_IDENTIFIER => Self::AssignedClientIdentifier(from.text()?),
            id::SERVER_KEEP_ALIVE => Self::ServerKeepAlive(from.u16()?),
            id::AUTHENTICATION_METHOD => Self::AuthenticationMethod(from.text()?),
            id::AUTHENTICATION_DATA => Self::AuthenticationData(from.binary()?),
            id::REQUEST_PROBLEM_INFORMATION => Self::RequestProblemInformation(boolean(from, "3.1.2.11.7")?),
            id::WILL_DELAY_INTERVAL => Self::WillDelayInterval(from.u32()?),
            id::REQUEST_RESPONSE_INFORMATION => Self::RequestResponseInformation(boolean(from, "3.1.2.11.6")?),
            id::RESPONSE_INFORMATION => Self::ResponseInformation(from.text()?),
            id::SERVER_REFERENCE => Self::ServerReference(from.text()?),
            id::REASON_STRING => Self::ReasonString(from.text()?),
            id::RECEIVE_MAXIMUM => Self::ReceiveMaximum(receive_maximum(from)?),
            id::TOPIC_ALIAS_MAXIMUM => Self::TopicAliasMaximum(from.u16()?),
            id::TOPIC_ALIAS => Self::TopicAlias(topic_alias(from)?),
            id::MAXIMUM_QOS => Self::MaximumQos(maximum_qos(from)?),
            id::RETAIN_AVAILABLE => Self::RetainAvailable(boolean(from, "3.2.2.3.5")?),
            id::USER_PROPERTY => Self::User(from.text()?, from.text()?),
            id::MAXIMUM_PACKET_SIZE => Self::MaximumPacketSize(maximum_packet_size(from)?),
            id::WILDCARD_SUBSCRIPTION_AVAILABLE => Self::WildcardSubscriptionAvailable(boolean(from, "3.2.2.3.11")?),
            id::SUBSCRIPTION_IDENTIFIERS_AVAILABLE => {
                Self::SubscriptionIdentifiersAvailable(boolean(from, "3.2.2.3.12")?)
            }
            id::SHARED_SUBSCRIPTION_AVAILABLE => Self::SharedSubscriptionAvailable(boolean(from, "3.2.2.3.13")?),
            _ => return Err(unknown()),
        };
        Ok(property)
    }
}

/// Destination of the user properties of a packet. Every packet with properties may have them.
#[derive(Debug)]
pub(crate) enum Users<'a> {
    /// Properties of a message, which are forwarded to its receivers.
    Forwarded(&'a mut UserProperties),
    /// Properties that are not forwarded.
    Unread(&'a mut UserProperties),
}

impl Users<'_> {
    fn push(&mut self, policy: UserPropertyPolicy, name: MqttStr, value: MqttStr) -> Result<(), DecodeError> {
        match (self, policy) {
            (Self::Unread(_), UserPropertyPolicy::Forwarded { .. }) => {}
            (Self::Forwarded(list), UserPropertyPolicy::Forwarded { max }) if list.len() >= max => {
                return Err(DecodeError::TooManyUserProperties { max });
            }
            (Self::Forwarded(list) | Self::Unread(list), _) => list.push((name, value)),
        }
        Ok(())
    }
}

/// Reads a property list with its length. User properties go to `users`, all others to `take`.
pub(crate) fn each(
    from: &mut Reader,
    mut users: Users<'_>,
    mut take: impl FnMut(Property) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    let len = usize::try_from(from.varint()?).unwrap_or(usize::MAX);
    let mut list = from.part(len)?;
    while !list.is_empty() {
        match Property::read(&mut list)? {
            Property::User(name, value) => users.push(list.policy, name, value)?,
            other => take(other)?,
        }
    }
    Ok(())
}

/// Stores a property that may occur once.
///
/// # Errors
/// Fails if it occurred before.
pub(crate) fn set<T>(slot: &mut Option<T>, value: T) -> Result<(), DecodeError> {
    if slot.is_some() {
        return Err(protocol("2.2.2.2", "property is included more than once"));
    }
    *slot = Some(value);
    Ok(())
}

/// Returns the error for a property that is not allowed in the packet.
pub(crate) fn not_here() -> DecodeError {
    malformed("2.2.2.2", "property is not valid for this packet")
}

fn unknown() -> DecodeError {
    malformed("2.2.2.2", "property identifier is unknown")
}

fn boolean(from: &mut Reader, clause: &'static str) -> Result<bool, DecodeError> {
    match from.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(protocol(clause, "property is neither 0 nor 1")),
    }
}

fn payload_format(from: &mut Reader) -> Result<PayloadFormat, DecodeError> {
    match from.u8()? {
        0 => Ok(PayloadFormat::Bytes),
        1 => Ok(PayloadFormat::Utf8),
        _ => Err(malformed("3.3.2.3.2", "payload format indicator is neither 0 nor 1")),
    }
}

fn response_topic(from: &mut Reader) -> Result<MqttStr, DecodeError> {
    let name = from.text()?;
    match topic::check_name(&name) {
        Ok(()) => Ok(name),
        Err(topic::Error::WildcardInName) => Err(malformed("MQTT-3.3.2-14", "response topic contains a wildcard")),
        Err(other) => Err(other.into()),
    }
}

fn subscription_identifier(from: &mut Reader) -> Result<u32, DecodeError> {
    match from.varint()? {
        0 => Err(protocol("3.8.2.1.2", "subscription identifier is zero")),
        value => Ok(value),
    }
}

fn receive_maximum(from: &mut Reader) -> Result<u16, DecodeError> {
    match from.u16()? {
        0 => Err(protocol("3.1.2.11.3", "receive maximum is zero")),
        value => Ok(value),
    }
}

fn maximum_packet_size(from: &mut Reader) -> Result<u32, DecodeError> {
    match from.u32()? {
        0 => Err(protocol("3.1.2.11.4", "maximum packet size is zero")),
        value => Ok(value),
    }
}

fn topic_alias(from: &mut Reader) -> Result<u16, DecodeError> {
    match from.u16()? {
        0 => Err(DecodeError::TopicAliasZero),
        value => Ok(value),
    }
}

fn maximum_qos(from: &mut Reader) -> Result<QoS, DecodeError> {
    match from.u8()? {
        0 => Ok(QoS::AtMostOnce),
        1 => Ok(QoS::AtLeastOnce),
        _ => Err(protocol("3.2.2.3.4", "maximum qos is neither 0 nor 1")),
    }
}

/// Writes a property list with its length. `measure` and `write` must produce the same properties.
pub(crate) fn put_list<S: Sink>(out: &mut S, measure: impl FnOnce(&mut Count), write: impl FnOnce(&mut S)) {
    let mut count = Count::default();
    measure(&mut count);
    out.varint(u32::try_from(count.len).unwrap_or(varint::MAX));
    write(out);
}

pub(crate) fn put_u8<S: Sink>(out: &mut S, id: u8, value: Option<u8>) {
    if let Some(value) = value {
        out.u8(id);
        out.u8(value);
    }
}

pub(crate) fn put_bool<S: Sink>(out: &mut S, id: u8, value: Option<bool>) {
    put_u8(out, id, value.map(u8::from));
}

pub(crate) fn put_u16<S: Sink>(out: &mut S, id: u8, value: Option<u16>) {
    if let Some(value) = value {
        out.u8(id);
        out.u16(value);
    }
}

pub(crate) fn put_u32<S: Sink>(out: &mut S, id: u8, value: Option<u32>) {
    if let Some(value) = value {
        out.u8(id);
        out.u32(value);
    }
}

pub(crate) fn put_text<S: Sink>(out: &mut S, id: u8, value: Option<&MqttStr>) {
    if let Some(value) = value {
        out.u8(id);
        out.text(value);
    }
}

pub(crate) fn put_binary<S: Sink>(out: &mut S, id: u8, value: Option<&Bytes>) {
    if let Some(value) = value {
        out.u8(id);
        out.binary(value);
    }
}

pub(crate) fn put_user<S: Sink>(out: &mut S, properties: &UserProperties) {
    for (name, value) in properties {
        out.u8(id::USER_PROPERTY);
        out.text(name);
        out.text(value);
    }
}
