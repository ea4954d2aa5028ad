//! Reasons for closed connections and refused clients, for counters, logs and the reason code on the wire.
//!
//! Every path out of a connection yields an [`Ending`], every path out of a handshake a [`Refusal`]. Invariant: exactly
//! one of [`Observer::closed`](super::Observer::closed) and [`Observer::rejected`](super::Observer::rejected) is called
//! for every accepted socket.

use std::borrow::Cow;

use covey_codec::{DecodeError, ProtocolVersion, ReasonCode};

use crate::session::{Close, Ended};

/// Defines an enum of reasons with their texts.
macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)+
        }

        impl $name {
            /// Every reason, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the text of the reason for logs and metrics.
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

reasons! {
    /// Reason why a connection ended after its successful CONNACK.
    Closed {
        /// The client sent DISCONNECT.
        Client = "client",
        /// The network connection broke without DISCONNECT.
        Lost = "lost",
        /// No packet came for one and a half times the keep alive.
        KeepAliveTimeout = "keepalive_timeout",
        /// Another connection took the client id.
        TakenOver = "taken_over",
        /// The client violated the protocol.
        ProtocolError = "protocol_error",
        /// A publish was denied that could not be refused by an acknowledgement (MQTT 3.1.1, or QoS 0).
        Auth = "auth",
        /// The user was deleted, or may no longer use the client id.
        Revoked = "revoked",
        /// The node is stopping.
        Drain = "drain",
        /// The client read nothing for too long.
        WriteTimeout = "write_timeout",
        /// A packet exceeded the maximum packet size of its receiver.
        PacketTooLarge = "packet_too_large",
        /// The node was without a lease for too long.
        Fenced = "fenced",
        /// The queue of a transient session was full.
        QueueFull = "queue_full",
        /// An MQTT 3.1.1 client had more unacknowledged publishes than the server holds, or a publish was refused,
        /// which that version cannot express.
        PublishStalled = "publish_stalled",
        /// A task of the connection or of its session panicked.
        InternalError = "internal_error",
    }
}

reasons! {
    /// Reason why a socket was closed without a successful CONNACK.
    Rejected {
        /// Too many sockets are open, large CONNECTs exceed their memory budget, too many password checks are queued,
        /// or the address failed too often.
        Overload = "overload",
        /// The maximum number of connections is reached.
        ConnectionLimit = "connection_limit",
        /// The first packet was no usable CONNECT.
        BadProtocol = "bad_protocol",
        /// No complete CONNECT came in time.
        Timeout = "timeout",
        /// The client closed before it was answered.
        Lost = "lost",
        /// The node does not serve clients, or is stopping.
        Unavailable = "unavailable",
        /// Authentication failed, or the user may not use the client id or publish the will.
        Auth = "auth",
        /// The client id is invalid, or its session belongs to another user.
        ClientId = "client_id",
        /// The task of the handshake panicked.
        InternalError = "internal_error",
    }
}

impl From<ReasonCode> for Rejected {
    fn from(code: ReasonCode) -> Self {
        match code {
            ReasonCode::BadUserNameOrPassword
            | ReasonCode::NotAuthorized
            | ReasonCode::Banned
            | ReasonCode::BadAuthenticationMethod => Self::Auth,
            ReasonCode::ClientIdentifierNotValid => Self::ClientId,
            ReasonCode::ServerBusy | ReasonCode::ConnectionRateExceeded => Self::Overload,
            ReasonCode::QuotaExceeded => Self::ConnectionLimit,
            ReasonCode::MalformedPacket
            | ReasonCode::ProtocolError
            | ReasonCode::UnsupportedProtocolVersion
            | ReasonCode::PacketTooLarge
            | ReasonCode::TopicNameInvalid => Self::BadProtocol,
            _ => Self::Unavailable,
        }
    }
}

/// How one connection ended.
#[derive(Debug)]
pub(super) struct Ending {
    /// Reason for the counter and the log.
    pub(super) closed: Closed,
    /// Reason code of the DISCONNECT to an MQTT 5 client; `None` closes without DISCONNECT.
    pub(super) code: Option<ReasonCode>,
    /// What happens to the will and the session.
    pub(super) ended: Ended,
    /// Explanation for the log.
    pub(super) detail: Cow<'static, str>,
}

/// The will is published and the session keeps its expiry.
const WILL_STAYS: Ended = Ended { drop_will: false, expiry: None };

impl Ending {
    /// Ends the connection with a DISCONNECT that carries `code`.
    pub(super) fn told(closed: Closed, code: ReasonCode, detail: &'static str) -> Self {
        Self { closed, code: Some(code), ended: WILL_STAYS, detail: detail.into() }
    }

    /// Closes without DISCONNECT: the peer is gone, or its version has no packet for the reason.
    pub(super) fn silent(closed: Closed, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { closed, code: None, ended: WILL_STAYS, detail: detail.into() }
    }

    /// The client sent DISCONNECT.
    pub(super) fn client(ended: Ended) -> Self {
        Self { closed: Closed::Client, code: None, ended, detail: "".into() }
    }

    /// The client sent a packet that parses but is not allowed at this point.
    pub(super) fn protocol_error(detail: &'static str) -> Self {
        Self::told(Closed::ProtocolError, ReasonCode::ProtocolError, detail)
    }
}

impl From<DecodeError> for Ending {
    fn from(error: DecodeError) -> Self {
        let closed = match error {
            DecodeError::TooLarge { .. } => Closed::PacketTooLarge,
            _ => Closed::ProtocolError,
        };
        Self { closed, code: Some(error.reason()), ended: WILL_STAYS, detail: error.to_string().into() }
    }
}

impl From<std::io::Error> for Ending {
    fn from(error: std::io::Error) -> Self {
        Self::silent(Closed::Lost, error.to_string())
    }
}

impl From<Close> for Ending {
    fn from(close: Close) -> Self {
        match close {
            Close::TakenOver => Self::told(Closed::TakenOver, ReasonCode::SessionTakenOver, "session taken over"),
            Close::Fenced => Self::told(Closed::Fenced, ReasonCode::ServerBusy, "node has no lease from a majority"),
            Close::Failed => {
                Self::told(Closed::InternalError, ReasonCode::ImplementationSpecificError, "session failed")
            }
            Close::QueueFull => Self::told(Closed::QueueFull, ReasonCode::QuotaExceeded, "session queue is full"),
        }
    }
}

/// How one handshake was refused.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Reason for the counter and the log.
    pub(super) rejected: Rejected,
    /// Reason code of the CONNACK and the version to encode it in; `None` closes without CONNACK.
    pub(super) answer: Option<(ReasonCode, ProtocolVersion)>,
    /// Explanation for the log.
    pub(super) detail: Cow<'static, str>,
}

impl Refusal {
    /// Answers with a CONNACK that carries `code`.
    pub(super) fn answered(code: ReasonCode, version: ProtocolVersion, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { rejected: code.into(), answer: Some((code, version)), detail: detail.into() }
    }

    /// Closes the socket without CONNACK.
    pub(super) fn silent(rejected: Rejected, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { rejected, answer: None, detail: detail.into() }
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::silent(Rejected::Lost, error.to_string())
    }
}
