//! Why connections end and why clients are refused: finite lists, for counters, logs and the reason on the wire.
//!
//! Every path out of a connection yields an [`Ending`], every path out of a handshake a [`Refusal`]. Invariant: exactly
//! one of [`Observer::closed`](super::Observer::closed) and [`Observer::rejected`](super::Observer::rejected) is called
//! for every accepted socket.

use std::borrow::Cow;

use covey_codec::{DecodeError, ProtocolVersion, ReasonCode};

use crate::session::{Close, Ended};

/// Why a connection that had received its CONNACK ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Closed {
    /// The client sent DISCONNECT.
    Client,
    /// The network connection broke without DISCONNECT.
    Lost,
    /// No packet for one and a half times the keep alive.
    KeepAliveTimeout,
    /// Another connection took the client id.
    TakenOver,
    /// The client broke the protocol.
    ProtocolError,
    /// The client did what its rights do not allow, or its rights were withdrawn.
    Auth,
    /// The node stops and sends its clients away.
    Drain,
    /// The client did not take what was written for too long.
    WriteTimeout,
    /// A packet exceeded the limit of its receiver.
    PacketTooLarge,
    /// The node left the cluster.
    Fenced,
    /// A transient session did not keep up with its messages.
    QueueFull,
    /// An MQTT 3.1.1 client has more publishes waiting for their acknowledgement than the server holds, or one that can
    /// only be refused, which that version has no words for.
    PublishStalled,
}

impl Closed {
    /// Every reason, so that counters can begin at zero.
    pub const ALL: [Self; 12] = [
        Self::Client,
        Self::Lost,
        Self::KeepAliveTimeout,
        Self::TakenOver,
        Self::ProtocolError,
        Self::Auth,
        Self::Drain,
        Self::WriteTimeout,
        Self::PacketTooLarge,
        Self::Fenced,
        Self::QueueFull,
        Self::PublishStalled,
    ];

    /// The value of the label `reason`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Lost => "lost",
            Self::KeepAliveTimeout => "keepalive_timeout",
            Self::TakenOver => "taken_over",
            Self::ProtocolError => "protocol_error",
            Self::Auth => "auth",
            Self::Drain => "drain",
            Self::WriteTimeout => "write_timeout",
            Self::PacketTooLarge => "packet_too_large",
            Self::Fenced => "fenced",
            Self::QueueFull => "queue_full",
            Self::PublishStalled => "publish_stalled",
        }
    }
}

/// Why a socket never became a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejected {
    /// Too many sockets, or the node is busy.
    Overload,
    /// The node has as many clients as it may have.
    ConnectionLimit,
    /// The first packet was no usable CONNECT.
    BadProtocol,
    /// No CONNECT in time.
    Timeout,
    /// The peer went away before it was answered.
    Lost,
    /// The node does not serve clients now.
    Unavailable,
    /// The client is not who it says, or may not do what it asks.
    Auth,
    /// The client id is not usable, or belongs to somebody else.
    ClientId,
}

impl Rejected {
    /// Every reason, so that counters can begin at zero.
    pub const ALL: [Self; 8] = [
        Self::Overload,
        Self::ConnectionLimit,
        Self::BadProtocol,
        Self::Timeout,
        Self::Lost,
        Self::Unavailable,
        Self::Auth,
        Self::ClientId,
    ];

    /// The value of the label `reason`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Overload => "overload",
            Self::ConnectionLimit => "connection_limit",
            Self::BadProtocol => "bad_protocol",
            Self::Timeout => "timeout",
            Self::Lost => "lost",
            Self::Unavailable => "unavailable",
            Self::Auth => "auth",
            Self::ClientId => "client_id",
        }
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
    pub(super) closed: Closed,
    /// What an MQTT 5 client is told in DISCONNECT; `None` sends nothing.
    pub(super) code: Option<ReasonCode>,
    pub(super) ended: Ended,
    pub(super) detail: Cow<'static, str>,
}

const WILL_STAYS: Ended = Ended { drop_will: false, expiry: None };

impl Ending {
    /// The server ends the connection and says why.
    pub(super) fn told(closed: Closed, code: ReasonCode, detail: &'static str) -> Self {
        Self { closed, code: Some(code), ended: WILL_STAYS, detail: detail.into() }
    }

    /// Nothing can be said any more.
    pub(super) fn silent(closed: Closed, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { closed, code: None, ended: WILL_STAYS, detail: detail.into() }
    }

    /// The client said that it goes.
    pub(super) fn client(ended: Ended) -> Self {
        Self { closed: Closed::Client, code: None, ended, detail: "".into() }
    }

    /// A packet that parses and may not be sent now.
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
            Close::Fenced => Self::told(Closed::Fenced, ReasonCode::ServerBusy, "node is outside the cluster"),
            Close::Revoked => Self::told(Closed::Auth, ReasonCode::NotAuthorized, "rights were withdrawn"),
            Close::QueueFull => Self::told(Closed::QueueFull, ReasonCode::QuotaExceeded, "session queue is full"),
            Close::ShuttingDown => Self::told(Closed::Drain, ReasonCode::ServerShuttingDown, "node is stopping"),
        }
    }
}

/// How one handshake was refused.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) rejected: Rejected,
    /// What CONNACK says, and the version to say it in; `None` closes without a word.
    pub(super) answer: Option<(ReasonCode, ProtocolVersion)>,
    pub(super) detail: Cow<'static, str>,
}

impl Refusal {
    /// CONNACK carries the code.
    pub(super) fn answered(code: ReasonCode, version: ProtocolVersion, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { rejected: code.into(), answer: Some((code, version)), detail: detail.into() }
    }

    /// The socket is closed without a word.
    pub(super) fn silent(rejected: Rejected, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { rejected, answer: None, detail: detail.into() }
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::silent(Rejected::Lost, error.to_string())
    }
}
