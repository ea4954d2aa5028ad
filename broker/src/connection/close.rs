//! Reasons for closed connections and refused clients, for counters, logs and the reason code on the wire.
//!
//! Every path out of a connection yields an [`Ending`], every path out of a handshake a [`Refusal`]. Invariant: exactly
//! one of [`Observer::closed`](super::Observer::closed) and [`Observer::rejected`](super::Observer::rejected) is called
//! for every accepted socket.

use std::borrow::Cow;

use covey_codec::{DecodeError, ProtocolVersion, ReasonCode};

pub use crate::metrics::{Closed, Rejected};
use crate::session::{Close, Ended};

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
