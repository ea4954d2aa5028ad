//! CONNECT and CONNACK: how a connection begins (3.1, 3.2).

use std::fmt;

use bytes::Bytes;

use super::{PayloadFormat, ProtocolVersion, QoS, UserProperties};
use crate::reason::ReasonCode;
use crate::text::MqttStr;

/// A client's wish to connect. Its `Debug` output hides the password and authentication data.
#[derive(Clone, PartialEq, Eq)]
pub struct Connect {
    /// The version of this connection.
    pub protocol_version: ProtocolVersion,
    /// Clean Start, in 3.1.1 Clean Session.
    pub clean_start: bool,
    /// The keep alive in seconds; 0 turns it off.
    pub keep_alive: u16,
    /// The client identifier; empty asks the server to choose one.
    pub client_id: MqttStr,
    /// The message to publish when the connection ends badly.
    pub will: Option<Will>,
    /// The user name.
    pub username: Option<MqttStr>,
    /// The password; in 3.1.1 only with a user name [MQTT-3.1.2-22].
    pub password: Option<Bytes>,
    /// MQTT 5 properties.
    pub properties: ConnectProperties,
}

impl Connect {
    /// A CONNECT with Clean Start, without keep alive, will, credentials and properties.
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
    /// How many seconds the session outlives the connection; `u32::MAX` is for ever, absent is 0.
    pub session_expiry_interval: Option<u32>,
    /// How many QoS 1 and 2 messages the client takes unacknowledged; never zero, absent is 65,535.
    pub receive_maximum: Option<u16>,
    /// The largest packet in bytes that the client takes; never zero, absent is unlimited.
    pub maximum_packet_size: Option<u32>,
    /// The highest topic alias that the client takes; absent is 0.
    pub topic_alias_maximum: Option<u16>,
    /// Whether the client asks for response information; absent is no.
    pub request_response_information: Option<bool>,
    /// Whether the client takes reason strings on every packet; absent is yes.
    pub request_problem_information: Option<bool>,
    /// Name and value pairs.
    pub user_properties: UserProperties,
    /// The method of an extended authentication.
    pub authentication_method: Option<MqttStr>,
    /// The method's first data; only with a method.
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

/// The message that the server publishes for a client that is gone (3.1.2.5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Will {
    /// The topic name.
    pub topic: MqttStr,
    /// The message.
    pub payload: Bytes,
    /// Its QoS.
    pub qos: QoS,
    /// Whether it is retained.
    pub retain: bool,
    /// MQTT 5 properties.
    pub properties: WillProperties,
}

/// The properties of a will (3.1.3.2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WillProperties {
    /// How many seconds the server waits before it publishes; absent is 0.
    pub will_delay_interval: Option<u32>,
    /// What the payload claims to be.
    pub payload_format_indicator: Option<PayloadFormat>,
    /// The message's lifetime in seconds from its publication.
    pub message_expiry_interval: Option<u32>,
    /// The kind of the payload in the application's words.
    pub content_type: Option<MqttStr>,
    /// Where a response is wanted; a topic name without wildcards.
    pub response_topic: Option<MqttStr>,
    /// What a response must repeat.
    pub correlation_data: Option<Bytes>,
    /// Name and value pairs.
    pub user_properties: UserProperties,
}

/// The server's answer to a CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnAck {
    /// Whether the server had a session for the client; never with an error [MQTT-3.2.2-6].
    pub session_present: bool,
    /// The result.
    pub reason: ReasonCode,
    /// MQTT 5 properties.
    pub properties: ConnAckProperties,
}

impl ConnAck {
    /// An answer without properties.
    pub fn new(session_present: bool, reason: ReasonCode) -> Self {
        Self { session_present, reason, properties: ConnAckProperties::default() }
    }
}

/// The properties of a CONNACK (3.2.2.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnAckProperties {
    /// The session expiry in seconds, where it differs from what the client asked.
    pub session_expiry_interval: Option<u32>,
    /// How many QoS 1 and 2 messages the server takes unacknowledged; never zero.
    pub receive_maximum: Option<u16>,
    /// The highest QoS that the server takes, at most QoS 1; absent is QoS 2.
    pub maximum_qos: Option<QoS>,
    /// Whether the server takes retained messages; absent is yes.
    pub retain_available: Option<bool>,
    /// The largest packet in bytes that the server takes; never zero.
    pub maximum_packet_size: Option<u32>,
    /// The identifier that the server chose for a client without one.
    pub assigned_client_identifier: Option<MqttStr>,
    /// The highest topic alias that the server takes; absent is 0.
    pub topic_alias_maximum: Option<u16>,
    /// A sentence for people, not to be parsed.
    pub reason_string: Option<MqttStr>,
    /// Name and value pairs.
    pub user_properties: UserProperties,
    /// Whether filters may have wildcards; absent is yes.
    pub wildcard_subscription_available: Option<bool>,
    /// Whether subscriptions may have identifiers; absent is yes.
    pub subscription_identifiers_available: Option<bool>,
    /// Whether shared subscriptions are supported; absent is yes.
    pub shared_subscription_available: Option<bool>,
    /// The keep alive in seconds that the client has to use.
    pub server_keep_alive: Option<u16>,
    /// A hint for response topics.
    pub response_information: Option<MqttStr>,
    /// Another server to use.
    pub server_reference: Option<MqttStr>,
    /// The method of an extended authentication.
    pub authentication_method: Option<MqttStr>,
    /// The method's data.
    pub authentication_data: Option<Bytes>,
}
