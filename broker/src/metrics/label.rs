//! Labels with finitely many values, and families that have a metric for each of them from the start.
//!
//! A counter that is born above zero is invisible to `increase()`, therefore every combination exists at zero.

use std::fmt;
use std::marker::PhantomData;

use covey_mqtt::connection::{Closed, Rejected};

use crate::access::{AuthMethod, AuthResult};

/// A label whose values are known.
pub trait Label: Copy + 'static {
    /// The name of the label.
    const NAME: &'static str;
    /// Every value, in the order of [`Label::position`].
    const ALL: &'static [Self];

    /// The value as text.
    fn text(self) -> &'static str;

    /// The value's place in [`Label::ALL`].
    fn position(self) -> usize;
}

/// One metric for each value of a label.
pub struct Family<L, M> {
    metrics: Vec<M>,
    label: PhantomData<L>,
}

impl<L: Label, M> Family<L, M> {
    /// Makes the metric of each value.
    pub(super) fn new(make: impl Fn(&'static str) -> M) -> Self {
        Self { metrics: L::ALL.iter().map(|label| make(label.text())).collect(), label: PhantomData }
    }

    /// The metric of a value.
    #[expect(clippy::indexing_slicing, reason = "there is a metric for each value of the label")]
    pub fn get(&self, label: L) -> &M {
        &self.metrics[label.position()]
    }
}

impl<L, M> fmt::Debug for Family<L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family").finish_non_exhaustive()
    }
}

/// Makes a label of an enum. The texts stand here, or are those of the enum.
macro_rules! label_of {
    ($name:ident, $label:literal) => {
        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = <$name>::ALL;

            fn text(self) -> &'static str {
                <$name>::text(self)
            }

            fn position(self) -> usize {
                self as usize
            }
        }
    };
    ($name:ident, $label:literal, { $($variant:ident = $text:literal,)+ }) => {
        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            fn position(self) -> usize {
                self as usize
            }
        }
    };
}

/// Defines an enum whose variants are the values of a label.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $label:literal, { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)+
        }

        label_of!($name, $label, { $($variant = $text,)+ });
    };
}

label_of!(Closed, "reason");
label_of!(Rejected, "reason");

label_of!(AuthResult, "result", {
    Success = "success",
    BadCredentials = "bad_credentials",
    NotAuthorized = "not_authorized",
    Busy = "busy",
    RateLimit = "rate_limit",
});

label_of!(AuthMethod, "method", {
    Cache = "cache",
    HmacSha256 = "hmac_sha256",
    Argon2id = "argon2id",
});

label!(
    /// Whether a session has a connection.
    SessionState, "state", {
    Online = "online",
    Offline = "offline",
});

label!(
    /// Whether a session outlives its connection.
    SessionKind, "kind", {
    Clean = "clean",
    Persistent = "persistent",
});

label!(
    /// Why a connection was ended against its client's will.
    Kicked, "reason", {
    /// Another connection took the client id.
    TakenOver = "taken_over",
    /// The client's user was deleted, or may not have the client id any more.
    AclRevoked = "acl_revoked",
});

label!(
    /// What became of a session.
    SessionEvent, "event", {
    Created = "created",
    Resumed = "resumed",
    Discarded = "discarded",
});

label!(
    SubscriptionKind, "kind", {
    Plain = "plain",
    Shared = "shared",
});

label!(
    /// The type of a control packet.
    PacketType, "type", {
    Connect = "connect",
    Connack = "connack",
    Publish = "publish",
    Puback = "puback",
    Pubrec = "pubrec",
    Pubrel = "pubrel",
    Pubcomp = "pubcomp",
    Subscribe = "subscribe",
    Suback = "suback",
    Unsubscribe = "unsubscribe",
    Unsuback = "unsuback",
    Pingreq = "pingreq",
    Pingresp = "pingresp",
    Disconnect = "disconnect",
    Auth = "auth",
});

label!(
    Direction, "direction", {
    In = "in",
    Out = "out",
});

label!(
    /// Why a message did not reach a session that it matched, or that it did not match any.
    DropReason, "reason", {
    QueueFull = "queue_full",
    Expired = "expired",
    NoSubscribers = "no_subscribers",
    NoLocal = "no_local",
    TooLarge = "too_large",
    RateLimit = "rate_limit",
    AclRevoked = "acl_revoked",
    StorageError = "storage_error",
    SessionLost = "session_lost",
    PeerUnreachable = "peer_unreachable",
    Qos0Slow = "qos0_slow",
});

label!(
    /// Which part of a delivery was measured.
    Stage, "stage", {
    /// From the arrival of the PUBLISH to the moment it is written for the subscriber.
    Internal = "internal",
    /// From then to the subscriber's acknowledgement.
    Response = "response",
});

label!(
    SlowAction, "action", {
    Flag = "flag",
    Throttle = "throttle",
    Disconnect = "disconnect",
});

label!(
    AclAction, "action", {
    Publish = "publish",
    Subscribe = "subscribe",
});

label!(
    AclResult, "result", {
    Allow = "allow",
    Deny = "deny",
    NoMatch = "no_match",
});

label!(
    StorageKind, "kind", {
    Wal = "wal",
    Snapshot = "snapshot",
    Sessions = "sessions",
});

label!(
    StorageOp, "op", {
    Read = "read",
    Write = "write",
    Fsync = "fsync",
});

label!(
    /// What readiness consists of.
    Check, "check", {
    /// The log is replayed and the state is loaded.
    Disk = "disk",
    /// A member of a cluster.
    Joined = "joined",
    /// In touch with a majority.
    Lease = "lease",
    /// Access rules are loaded.
    Access = "access",
    /// The certificates are loaded and valid.
    Certificate = "certificate",
    NotDraining = "not_draining",
});

/// The label `qos` of [`covey_codec::QoS`].
impl Label for covey_codec::QoS {
    const NAME: &'static str = "qos";
    const ALL: &'static [Self] = &[Self::AtMostOnce, Self::AtLeastOnce, Self::ExactlyOnce];

    fn text(self) -> &'static str {
        match self {
            Self::AtMostOnce => "0",
            Self::AtLeastOnce => "1",
            Self::ExactlyOnce => "2",
        }
    }

    fn position(self) -> usize {
        self as usize
    }
}

/// One metric for each pair of values.
pub type Family2<A, B, M> = Family<A, Family<B, M>>;
