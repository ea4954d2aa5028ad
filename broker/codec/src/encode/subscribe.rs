//! Encodes SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK (3.8 to 3.11) after their fixed headers.

use super::publish::ack_properties;
use crate::packet::{
    ProtocolVersion, SubAck, Subscribe, SubscribeProperties, SubscriptionOptions, UnsubAck, Unsubscribe,
};
use crate::property::{id, put_list, put_user};
use crate::reason::ReasonCode;
use crate::wire::Sink;

pub(super) fn subscribe<S: Sink>(subscribe: &Subscribe, version: ProtocolVersion, out: &mut S) {
    out.u16(subscribe.packet_id.get());
    if version == ProtocolVersion::V5 {
        let properties = &subscribe.properties;
        put_list(out, |s| subscribe_properties(properties, s), |s| subscribe_properties(properties, s));
    }
    for subscription in &subscribe.subscriptions {
        out.text(&subscription.filter);
        out.u8(match version {
            ProtocolVersion::V5 => options(subscription.options),
            ProtocolVersion::V311 => subscription.options.qos.into(),
        });
    }
}

fn options(options: SubscriptionOptions) -> u8 {
    u8::from(options.qos)
        | u8::from(options.no_local) << 2
        | u8::from(options.retain_as_published) << 3
        | (options.retain_handling as u8) << 4
}

fn subscribe_properties<S: Sink>(properties: &SubscribeProperties, out: &mut S) {
    if let Some(identifier) = properties.subscription_identifier {
        out.u8(id::SUBSCRIPTION_IDENTIFIER);
        out.varint(identifier);
    }
    put_user(out, &properties.user_properties);
}

pub(super) fn suback<S: Sink>(ack: &SubAck, version: ProtocolVersion, out: &mut S) {
    out.u16(ack.packet_id.get());
    if version == ProtocolVersion::V5 {
        put_list(out, |s| ack_properties(&ack.properties, s), |s| ack_properties(&ack.properties, s));
    }
    for reason in &ack.reasons {
        // 3.1.1 has a single failure code (3.1.1: 3.9.3).
        let failed = version == ProtocolVersion::V311 && reason.is_error();
        out.u8(if failed { ReasonCode::UnspecifiedError.into() } else { (*reason).into() });
    }
}

pub(super) fn unsubscribe<S: Sink>(unsubscribe: &Unsubscribe, version: ProtocolVersion, out: &mut S) {
    out.u16(unsubscribe.packet_id.get());
    if version == ProtocolVersion::V5 {
        let properties = &unsubscribe.properties.user_properties;
        put_list(out, |s| put_user(s, properties), |s| put_user(s, properties));
    }
    for filter in &unsubscribe.filters {
        out.text(filter);
    }
}

pub(super) fn unsuback<S: Sink>(ack: &UnsubAck, version: ProtocolVersion, out: &mut S) {
    out.u16(ack.packet_id.get());
    if version == ProtocolVersion::V5 {
        put_list(out, |s| ack_properties(&ack.properties, s), |s| ack_properties(&ack.properties, s));
        for reason in &ack.reasons {
            out.u8((*reason).into());
        }
    }
}
