//! Decodes DISCONNECT and AUTH (3.14, 3.15) after their fixed headers.

use super::{Context, Sender};
use crate::error::{DecodeError, protocol};
use crate::packet::{Auth, AuthProperties, Disconnect, DisconnectProperties, ProtocolVersion};
use crate::property::{self, Property, Users, not_here, set};
use crate::reason::ReasonCode;
use crate::wire::Reader;

pub(super) fn disconnect(body: &mut Reader, context: Context) -> Result<Disconnect, DecodeError> {
    // An empty body means a normal disconnection, a body of one byte has no properties (3.14.2.1, 3.14.2.2.1).
    if context.version == ProtocolVersion::V311 || body.is_empty() {
        return Ok(Disconnect::new(ReasonCode::NORMAL_DISCONNECTION));
    }
    let reason = disconnect_reason(body.u8()?, context.sender)?;
    let properties =
        if body.is_empty() { DisconnectProperties::default() } else { disconnect_properties(body, context.sender)? };
    Ok(Disconnect { reason, properties })
}

fn disconnect_reason(code: u8, sender: Sender) -> Result<ReasonCode, DecodeError> {
    let known = match code {
        0x00 | 0x80..=0x83 | 0x90 | 0x93..=0x99 => true,
        0x04 => sender == Sender::Client,
        0x87 | 0x89 | 0x8b | 0x8d..=0x8f | 0x9a..=0xa2 => sender == Sender::Server,
        _ => false,
    };
    let refused = protocol("MQTT-3.14.2-1", "reason code is not valid for disconnect from this side");
    if known { ReasonCode::try_from(code).map_err(|_| refused) } else { Err(refused) }
}

fn disconnect_properties(body: &mut Reader, sender: Sender) -> Result<DisconnectProperties, DecodeError> {
    let mut found = DisconnectProperties::default();
    property::each(body, Users::Unread(&mut found.user_properties), |property| match property {
        Property::SessionExpiryInterval(_) if sender == Sender::Server => {
            Err(protocol("MQTT-3.14.2-2", "session expiry interval in a disconnect from a server"))
        }
        Property::ServerReference(_) if sender == Sender::Client => {
            Err(protocol("3.14.2.2.5", "server reference in a disconnect from a client"))
        }
        Property::SessionExpiryInterval(value) => set(&mut found.session_expiry_interval, value),
        Property::ServerReference(value) => set(&mut found.server_reference, value),
        Property::ReasonString(value) => set(&mut found.reason_string, value),
        _ => Err(not_here()),
    })?;
    Ok(found)
}

pub(super) fn auth(body: &mut Reader, sender: Sender) -> Result<Auth, DecodeError> {
    let refused = protocol("MQTT-3.15.2-1", "reason code is not valid for auth from this side");
    // Success without properties may be encoded as an empty body (3.15.2.1).
    let whole = !body.is_empty();
    let code = if whole { body.u8()? } else { 0x00 };
    let known = match code {
        0x00 => sender == Sender::Server,
        0x18 => true,
        0x19 => sender == Sender::Client,
        _ => false,
    };
    let reason = if known { ReasonCode::try_from(code).map_err(|_| refused)? } else { return Err(refused) };
    let properties = if whole { auth_properties(body)? } else { AuthProperties::default() };
    Ok(Auth { reason, properties })
}

fn auth_properties(body: &mut Reader) -> Result<AuthProperties, DecodeError> {
    let mut found = AuthProperties::default();
    property::each(body, Users::Unread(&mut found.user_properties), |property| match property {
        Property::AuthenticationMethod(value) => set(&mut found.authentication_method, value),
        Property::AuthenticationData(value) => set(&mut found.authentication_data, value),
        Property::ReasonString(value) => set(&mut found.reason_string, value),
        _ => Err(not_here()),
    })?;
    if found.authentication_method.is_none() {
        return Err(protocol("3.15.2.2.2", "auth without an authentication method"));
    }
    Ok(found)
}
