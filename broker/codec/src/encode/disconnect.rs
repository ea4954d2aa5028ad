//! Encodes DISCONNECT and AUTH (3.14, 3.15) after their fixed headers.

use crate::packet::{Auth, AuthProperties, Disconnect, DisconnectProperties, ProtocolVersion};
use crate::property::{id, put_binary, put_list, put_text, put_u32, put_user};
use crate::reason::ReasonCode;
use crate::wire::Sink;

pub(super) fn disconnect<S: Sink>(disconnect: &Disconnect, version: ProtocolVersion, out: &mut S) {
    let properties = &disconnect.properties;
    let bare = *properties == DisconnectProperties::default();
    if version == ProtocolVersion::V311 || (bare && disconnect.reason == ReasonCode::NORMAL_DISCONNECTION) {
        return;
    }
    out.u8(disconnect.reason.into());
    if !bare {
        put_list(out, |s| disconnect_properties(properties, s), |s| disconnect_properties(properties, s));
    }
}

fn disconnect_properties<S: Sink>(properties: &DisconnectProperties, out: &mut S) {
    put_u32(out, id::SESSION_EXPIRY_INTERVAL, properties.session_expiry_interval);
    put_text(out, id::REASON_STRING, properties.reason_string.as_ref());
    put_user(out, &properties.user_properties);
    put_text(out, id::SERVER_REFERENCE, properties.server_reference.as_ref());
}

pub(super) fn auth<S: Sink>(auth: &Auth, out: &mut S) {
    let properties = &auth.properties;
    if auth.reason == ReasonCode::Success && *properties == AuthProperties::default() {
        return;
    }
    out.u8(auth.reason.into());
    put_list(out, |s| auth_properties(properties, s), |s| auth_properties(properties, s));
}

fn auth_properties<S: Sink>(properties: &AuthProperties, out: &mut S) {
    put_text(out, id::AUTHENTICATION_METHOD, properties.authentication_method.as_ref());
    put_binary(out, id::AUTHENTICATION_DATA, properties.authentication_data.as_ref());
    put_text(out, id::REASON_STRING, properties.reason_string.as_ref());
    put_user(out, &properties.user_properties);
}
