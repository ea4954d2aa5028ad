//! CONNECT and CONNACK (3.1, 3.2).

use std::fmt;

use bytes::Bytes;

use super::{PayloadFormat, ProtocolVersion, QoS, UserProperties};
use crate::reason::ReasonCode;
use crate::text::MqttStr;

/// CONNECT. Its `Debug` output hides the password and authentication data.
#[derive(Clone, PartialEq, Eq)]
pub struct Connect {
    /// Protocol version of the connection.
    pub protocol_version: ProtocolVersion,
    /// Clean Start; Clean Session in 3.1.1.
    pub clean_start: bool,
    /// Keep alive in seconds; 0 turns it off.
    pub keep_alive: u16,
    /// Client identifier; empty asks the server to assign one.
    pub client_id: MqttStr,
    /// Will message, which the server publishes if the connection ends without a normal DISCONNECT.
    pub will: Option<Will>,
    /// User name.
    pub username: Option<MqttStr>,
    /// Password; in 3.1.1 only with a user name (3.1.1: [MQTT-3.1.2-22]).
    pub password: Option<Bytes>,
    /// MQTT 5 properties.
    pub properties: ConnectProperties,
}

impl Connect {
    /// Creates a CONNECT with Clean Start and without keep alive, will, credentials and properties.
    pub fn new(protocol_version: ProtocolVersion, client_id: MqttStr) -> Self {
        Self {
            protocol_version,
            clean_start: true,
            keep_alive: 0,
            client_id,
            will: None,
            username: None,
            password: None,
            properties: ConnectProperties::default(),
        }
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("protocol_version", &self.protocol_version)
            .field("clean_start", &self.clean_start)
            .field("keep_alive", &self.keep_alive)
            .field("client_id", &self.client_id)
            .field("will", &self.will)
            .field("username", &self.username)
            .field("has_password", &self.password.is_some())
            .field("properties", &self.properties)
            .finish()
    }
}

/// The properties of a CONNECT (3.1.2.11).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ConnectProperties {
    /// Seconds that the session outlives the connection; `u32::MAX` means it does not expire, absent means 0.
    pub session_expiry_interval: Option<u32>,
    /// QoS 1 and 2 messages that the client accepts unacknowledged; never zero, absent means 65,535.
    pub receive_maximum: Option<u16>,
    /// Largest packet in bytes that the client accepts; never zero, absent means unlimited.
    pub maximum_packet_size: Option<u32>,
    /// Highest topic alias that the client accepts; absent means 0.
    pub topic_alias_maximum: Option<u16>,
    /// Whether the client requests response information; absent means no.
    pub request_response_information: Option<bool>,
    /// Whether the server may send reason strings and user properties on every packet; absent means yes.
    pub request_problem_information: Option<bool>,
    /// Name and value pairs.
    pub user_properties: UserProperties,
    /// Method of an extended authentication.
    pub authentication_method: Option<MqttStr>,
    /// First data of the method; only with a method.
    pub authentication_data: Option<Bytes>,
}

impl fmt::Debug for ConnectProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectProperties")
            .field("session_expiry_interval", &self.session_expiry_interval)
            .field("receive_maximum", &self.receive_maximum)
            .field("maximum_packet_size", &self.maximum_packet_size)
            .field("topic_alias_maximum", &self.topic_alias_maximum)
            .field("request_response_information", &self.request_response_information)
            .field("request_problem_information", &self.request_problem_information)
            .field("user_properties", &self.user_properties)
            .field("authentication_method", &self.authentication_method)
            .field("has_authentication_data", &self.authentication_data.is_some())
            .finish()
    }
}

/// Will message (3.1.2.5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Will {
    /// Topic name.
    pub topic: MqttStr,
    /// Payload.
    pub payload: Bytes,
    /// QoS of the publication.
    pub qos: QoS,
    /// Whether the will is published as a retained message.
    pub retain: bool,
    /// MQTT 5 properties.
    pub properties: WillProperties,
}

/// The properties of a will (3.1.3.2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WillProperties {
    /// Delay before the server publishes the will, in seconds; absent means 0.
    pub will_delay_interval: Option<u32>,
    /// Declared format of the payload.
    pub payload_format_indicator: Option<PayloadFormat>,
    /// Lifetime of the message in seconds, from its publication.
    pub message_expiry_interval: Option<u32>,
    /// Content type, defined by the application.
    pub content_type: Option<MqttStr>,
    /// Topic name for a response, without wildcards.
    pub response_topic: Option<MqttStr>,
    /// Data that a response repeats.
    pub correlation_data: Option<Bytes>,
    /// Name and value pairs.
    pub user_properties: UserProperties,
}

/// CONNACK, the server's reply to a CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnAck {
    /// Whether the server resumed a session; never set with an error [MQTT-3.2.2-6].
    pub session_present: bool,
    /// The result.
    pub reason: ReasonCode,
    /// MQTT 5 properties.
    pub properties: ConnAckProperties,
}

impl ConnAck {
    /// Creates a CONNACK without properties.
    pub fn new(session_present: bool, reason: ReasonCode) -> Self {
        Self { session_present, reason, properties: ConnAckProperties::default() }
    }
}

/// The properties of a CONNACK (3.2.2.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnAckProperties {
    /// Session expiry in seconds, if it differs from the requested one.
    pub session_expiry_interval: Option<u32>,
    /// QoS 1 and 2 messages that the server accepts unacknowledged; never zero, absent means 65,535.
    pub receive_maximum: Option<u16>,
    /// Highest QoS that the server accepts, QoS 0 or 1; absent means QoS 2.
    pub maximum_qos: Option<QoS>,
    /// Whether the server accepts retained messages; absent means yes.
    pub retain_available: Option<bool>,
    /// Largest packet in bytes that the server accepts; never zero, absent means unlimited.
    pub maximum_packet_size: Option<u32>,
    /// Client identifier that the server assigned.
    pub assigned_client_identifier: Option<MqttStr>,
    /// Highest topic alias that the server accepts; absent means 0.
    pub topic_alias_maximum: Option<u16>,
    /// Human-readable explanation.
    pub reason_string: Option<MqttStr>,
    /// Name and value pairs.
    pub user_properties: UserProperties,
    /// Whether filters may contain wildcards; absent means yes.
    pub wildcard_subscription_available: Option<bool>,
    /// Whether subscriptions may have identifiers; absent means yes.
    pub subscription_identifiers_available: Option<bool>,
    /// Whether shared subscriptions are supported; absent means yes.
    pub shared_subscription_available: Option<bool>,
    /// Keep alive in seconds that the client has to use; absent means that of the CONNECT.
    pub server_keep_alive: Option<u16>,
    /// Basis for response topics.
    pub response_information: Option<MqttStr>,
    /// Another server to use.
    pub server_reference: Option<MqttStr>,
    /// Method of an extended authentication.
    pub authentication_method: Option<MqttStr>,
    /// Data of the method.
    pub authentication_data: Option<Bytes>,
}
