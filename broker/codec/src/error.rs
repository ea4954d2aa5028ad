//! Errors of decoding and encoding.
//!
//! A connection answers a [`DecodeError`] with a CONNACK or DISCONNECT that carries [`DecodeError::reason`] (MQTT 5),
//! or by closing (3.1.1) [MQTT-4.13.1-1].

use crate::reason::ReasonCode;
use crate::text::TextError;
use crate::topic;

/// Reason why bytes are no packet that the peer may send now.
///
/// `clause` is the violated statement or section of MQTT 5, or of MQTT 3.1.1 if it begins with `3.1.1:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes do not parse by the standard.
    #[error("malformed packet: {what} [{clause}]")]
    Malformed {
        /// The problem.
        what: &'static str,
        /// The violated clause.
        clause: &'static str,
    },
    /// The packet parses, but it may not be sent here or not with this content.
    #[error("protocol error: {what} [{clause}]")]
    Protocol {
        /// The problem.
        what: &'static str,
        /// The violated clause.
        clause: &'static str,
    },
    /// A CONNECT is for a protocol that is neither MQTT 5 nor MQTT 3.1.1.
    #[error("unsupported protocol version: {what} [{clause}]")]
    UnsupportedVersion {
        /// The problem.
        what: &'static str,
        /// The violated clause.
        clause: &'static str,
    },
    /// A PUBLISH has topic alias 0.
    #[error("topic alias is zero [MQTT-3.3.2-8]")]
    TopicAliasZero,
    /// A message has more user properties than the decoder accepts.
    #[error("message has more than {max} user properties (4.13.2)")]
    TooManyUserProperties {
        /// The limit.
        max: usize,
    },
    /// The packet is larger than the decoder's limit.
    #[error("packet of {size} bytes exceeds the limit of {limit} bytes [MQTT-3.2.2-15]")]
    TooLarge {
        /// Size of the packet in bytes, including the fixed header.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

impl DecodeError {
    /// Returns the reason code for the peer.
    pub fn reason(&self) -> ReasonCode {
        match self {
            Self::Malformed { .. } => ReasonCode::MalformedPacket,
            Self::Protocol { .. } => ReasonCode::ProtocolError,
            Self::UnsupportedVersion { .. } => ReasonCode::UnsupportedProtocolVersion,
            Self::TopicAliasZero => ReasonCode::TopicAliasInvalid,
            Self::TooManyUserProperties { .. } => ReasonCode::QuotaExceeded,
            Self::TooLarge { .. } => ReasonCode::PacketTooLarge,
        }
    }

    /// Returns the violated statement or section of the standard.
    pub fn clause(&self) -> &'static str {
        match self {
            Self::Malformed { clause, .. }
            | Self::Protocol { clause, .. }
            | Self::UnsupportedVersion { clause, .. } => clause,
            Self::TopicAliasZero => "MQTT-3.3.2-8",
            Self::TooManyUserProperties { .. } => "4.13.2",
            Self::TooLarge { .. } => "MQTT-3.2.2-15",
        }
    }
}

pub(crate) fn malformed(clause: &'static str, what: &'static str) -> DecodeError {
    DecodeError::Malformed { what, clause }
}

pub(crate) fn protocol(clause: &'static str, what: &'static str) -> DecodeError {
    DecodeError::Protocol { what, clause }
}

impl From<TextError> for DecodeError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::NotUtf8 => malformed("MQTT-1.5.4-1", "text is not well-formed utf-8"),
            TextError::Null => malformed("MQTT-1.5.4-2", "text contains the null character"),
            TextError::TooLong => malformed("1.5.4", "text is longer than 65535 bytes"),
        }
    }
}

impl From<topic::Error> for DecodeError {
    fn from(error: topic::Error) -> Self {
        match error {
            topic::Error::Empty => malformed("MQTT-4.7.3-1", "topic is empty"),
            topic::Error::Null => malformed("MQTT-4.7.3-2", "topic contains the null character"),
            topic::Error::TooLong => malformed("MQTT-4.7.3-3", "topic is longer than 65535 bytes"),
            topic::Error::WildcardInName => malformed("MQTT-4.7.0-1", "topic name contains a wildcard"),
            topic::Error::MultiLevelWildcard => {
                malformed("MQTT-4.7.1-1", "# is not the whole last level of the filter")
            }
            topic::Error::SingleLevelWildcard => malformed("MQTT-4.7.1-2", "+ is not a whole level of the filter"),
            topic::Error::ShareNameEmpty => malformed("MQTT-4.8.2-1", "share name is empty"),
            topic::Error::ShareNameWildcard => malformed("MQTT-4.8.2-2", "share name contains a wildcard"),
            topic::Error::ShareFilter => malformed("MQTT-4.8.2-2", "shared subscription has no filter"),
        }
    }
}

/// Reason why a packet cannot be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// MQTT 3.1.1 has no such packet, or no such return code in a CONNACK.
    #[error("failed to encode: the packet does not exist in mqtt 3.1.1")]
    NotInVersion,
    /// A binary field exceeds 65,535 bytes, or the packet 268,435,455.
    #[error("failed to encode: a field or the packet is longer than the wire format allows")]
    TooLong,
    /// A PUBLISH has a packet identifier at QoS 0, or none above it.
    #[error("failed to encode: packet identifier and qos do not agree [MQTT-2.2.1-2]")]
    PacketId,
}
