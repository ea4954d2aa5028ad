//! DISCONNECT and AUTH (3.14, 3.15).

use std::fmt;

use bytes::Bytes;

use super::UserProperties;
use crate::reason::ReasonCode;
use crate::text::MqttStr;

/// DISCONNECT, the last packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disconnect {
    /// Reason of the end; in 3.1.1 always [`ReasonCode::NORMAL_DISCONNECTION`].
    pub reason: ReasonCode,
    /// MQTT 5 properties.
    pub properties: DisconnectProperties,
}

impl Disconnect {
    /// Creates a DISCONNECT without properties.
    pub fn new(reason: ReasonCode) -> Self {
        Self { reason, properties: DisconnectProperties::default() }
    }
}

/// The properties of a DISCONNECT (3.14.2.2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DisconnectProperties {
    /// New session expiry in seconds; only from a client [MQTT-3.14.2-2].
    pub session_expiry_interval: Option<u32>,
    /// Human-readable explanation.
    pub reason_string: Option<MqttStr>,
    /// Name and value pairs.
    pub user_properties: UserProperties,
    /// Another server to use; only from a server.
    pub server_reference: Option<MqttStr>,
}

/// AUTH, a step of an extended authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// Success, Continue authentication or Re-authenticate.
    pub reason: ReasonCode,
    /// MQTT 5 properties.
    pub properties: AuthProperties,
}

/// The properties of an AUTH (3.15.2.2). Its `Debug` output hides the authentication data.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AuthProperties {
    /// Authentication method.
    pub authentication_method: Option<MqttStr>,
    /// Data of the method.
    pub authentication_data: Option<Bytes>,
    /// Human-readable explanation.
    pub reason_string: Option<MqttStr>,
    /// Name and value pairs.
    pub user_properties: UserProperties,
}

impl fmt::Debug for AuthProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthProperties")
            .field("authentication_method", &self.authentication_method)
            .field("has_authentication_data", &self.authentication_data.is_some())
            .field("reason_string", &self.reason_string)
            .field("user_properties", &self.user_properties)
            .finish()
    }
}
