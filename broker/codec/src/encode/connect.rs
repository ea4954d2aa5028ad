//! Encodes CONNECT and CONNACK (3.1, 3.2) after their fixed headers.

use crate::packet::{
    ConnAck, ConnAckProperties, Connect, ConnectProperties, ProtocolVersion, QoS, Will, WillProperties,
};
use crate::property::{id, put_binary, put_bool, put_list, put_text, put_u8, put_u16, put_u32, put_user};
use crate::reason::ReasonCode;
use crate::wire::Sink;

pub(super) fn connect<S: Sink>(connect: &Connect, out: &mut S) {
    let v5 = connect.protocol_version == ProtocolVersion::V5;
    out.binary(b"MQTT");
    out.u8(if v5 { 5 } else { 4 });
    out.u8(connect_flags(connect));
    out.u16(connect.keep_alive);
    if v5 {
        put_list(out, |s| connect_properties(&connect.properties, s), |s| connect_properties(&connect.properties, s));
    }
    out.text(&connect.client_id);
    if let Some(will) = &connect.will {
        if v5 {
            put_list(out, |s| will_properties(&will.properties, s), |s| will_properties(&will.properties, s));
        }
        out.text(&will.topic);
        out.binary(&will.payload);
    }
    if let Some(username) = &connect.username {
        out.text(username);
    }
    if let Some(password) = &connect.password {
        out.binary(password);
    }
}

fn connect_flags(connect: &Connect) -> u8 {
    u8::from(connect.username.is_some()) << 7
        | u8::from(connect.password.is_some()) << 6
        | connect.will.as_ref().map_or(0, will_flags)
        | u8::from(connect.clean_start) << 1
}

fn will_flags(will: &Will) -> u8 {
    u8::from(will.retain) << 5 | u8::from(will.qos) << 3 | 0x04
}

fn connect_properties<S: Sink>(properties: &ConnectProperties, out: &mut S) {
    put_u32(out, id::SESSION_EXPIRY_INTERVAL, properties.session_expiry_interval);
    put_u16(out, id::RECEIVE_MAXIMUM, properties.receive_maximum);
    put_u32(out, id::MAXIMUM_PACKET_SIZE, properties.maximum_packet_size);
    put_u16(out, id::TOPIC_ALIAS_MAXIMUM, properties.topic_alias_maximum);
    put_bool(out, id::REQUEST_RESPONSE_INFORMATION, properties.request_response_information);
    put_bool(out, id::REQUEST_PROBLEM_INFORMATION, properties.request_problem_information);
    put_user(out, &properties.user_properties);
    put_text(out, id::AUTHENTICATION_METHOD, properties.authentication_method.as_ref());
    put_binary(out, id::AUTHENTICATION_DATA, properties.authentication_data.as_ref());
}

fn will_properties<S: Sink>(properties: &WillProperties, out: &mut S) {
    put_u32(out, id::WILL_DELAY_INTERVAL, properties.will_delay_interval);
    put_u8(out, id::PAYLOAD_FORMAT_INDICATOR, properties.payload_format_indicator.map(|format| format as u8));
    put_u32(out, id::MESSAGE_EXPIRY_INTERVAL, properties.message_expiry_interval);
    put_text(out, id::CONTENT_TYPE, properties.content_type.as_ref());
    put_text(out, id::RESPONSE_TOPIC, properties.response_topic.as_ref());
    put_binary(out, id::CORRELATION_DATA, properties.correlation_data.as_ref());
    put_user(out, &properties.user_properties);
}

pub(super) fn connack<S: Sink>(ack: &ConnAck, version: ProtocolVersion, out: &mut S) {
    out.u8(u8::from(ack.session_present));
    match version {
        ProtocolVersion::V5 => {
            out.u8(ack.reason.into());
            put_list(out, |s| connack_properties(&ack.properties, s), |s| connack_properties(&ack.properties, s));
        }
        ProtocolVersion::V311 => {
            out.u8(ack.reason.connect_return_code().unwrap_or_else(|| ReasonCode::UnspecifiedError.into()));
        }
    }
}

fn connack_properties<S: Sink>(properties: &ConnAckProperties, out: &mut S) {
    put_u32(out, id::SESSION_EXPIRY_INTERVAL, properties.session_expiry_interval);
    put_u16(out, id::RECEIVE_MAXIMUM, properties.receive_maximum);
    // QoS 2 is expressed by the absence of the property (3.2.2.3.4).
    put_u8(out, id::MAXIMUM_QOS, properties.maximum_qos.filter(|qos| *qos != QoS::ExactlyOnce).map(u8::from));
    put_bool(out, id::RETAIN_AVAILABLE, properties.retain_available);
    put_u32(out, id::MAXIMUM_PACKET_SIZE, properties.maximum_packet_size);
    put_text(out, id::ASSIGNED_CLIENT_IDENTIFIER, properties.assigned_client_identifier.as_ref());
    put_u16(out, id::TOPIC_ALIAS_MAXIMUM, properties.topic_alias_maximum);
    put_text(out, id::REASON_STRING, properties.reason_string.as_ref());
    put_user(out, &properties.user_properties);
    put_bool(out, id::WILDCARD_SUBSCRIPTION_AVAILABLE, properties.wildcard_subscription_available);
    put_bool(out, id::SUBSCRIPTION_IDENTIFIERS_AVAILABLE, properties.subscription_identifiers_available);
    put_bool(out, id::SHARED_SUBSCRIPTION_AVAILABLE, properties.shared_subscription_available);
    put_u16(out, id::SERVER_KEEP_ALIVE, properties.server_keep_alive);
    put_text(out, id::RESPONSE_INFORMATION, properties.response_information.as_ref());
    put_text(out, id::SERVER_REFERENCE, properties.server_reference.as_ref());
    put_text(out, id::AUTHENTICATION_METHOD, properties.authentication_method.as_ref());
    put_binary(out, id::AUTHENTICATION_DATA, properties.authentication_data.as_ref());
}
