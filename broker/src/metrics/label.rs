//! Labels with finitely many values, and families that have a metric for each value from the start.
//!
//! `increase()` of Prometheus does not see the first increment of a series that did not exist before. Therefore every
//! combination of values exists at zero.

use std::fmt;
use std::marker::PhantomData;

use covey_mqtt::connection::{Closed, Rejected};

use crate::access::{AuthMethod, AuthResult};

/// A label with a fixed set of values.
pub trait Label: Copy + 'static {
    /// The name of the label.
    const NAME: &'static str;
    /// Every value, in the order of [`Label::position`].
    const ALL: &'static [Self];

    /// Returns the value as text.
    fn text(self) -> &'static str;

    /// Returns the index of the value in [`Label::ALL`].
    fn position(self) -> usize;
}

/// One metric for each value of a label.
pub struct Family<L, M> {
    /// Metrics in the order of [`Label::ALL`].
    metrics: Vec<M>,
    label: PhantomData<L>,
}

impl<L: Label, M> Family<L, M> {
    /// Creates the metric of each value with `make`.
    pub(super) fn new(make: impl Fn(&'static str) -> M) -> Self {
        Self { metrics: L::ALL.iter().map(|label| make(label.text())).collect(), label: PhantomData }
    }

    /// Returns the metric of a value.
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
    /// A session that ends with its connection.
    Transient = "transient",
    /// A session that outlives its connection.
    Durable = "durable",
});

label!(
    /// Reason why the server ended a connection on behalf of another client or of the rules.
    Kicked, "reason", {
    /// Another connection took the client id.
    TakenOver = "taken_over",
    /// The user was deleted, or may no longer use the client id.
    AclRevoked = "acl_revoked",
});

label!(
    /// Change of a session. Not updated yet.
    SessionEvent, "event", {
    Created = "created",
    Resumed = "resumed",
    Discarded = "discarded",
});

label!(
    /// Kind of a subscription. Shared subscriptions are not supported yet.
    SubscriptionKind, "kind", {
    Plain = "plain",
    Shared = "shared",
});

label!(
    /// Type of a control packet.
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
    /// Direction of a message: from or to a client.
    Direction, "direction", {
    In = "in",
    Out = "out",
});

label!(
    /// Reason why a message was not delivered. Only `QueueFull`, `TooLarge`, `PeerUnreachable` and `Qos0Slow` are
    /// updated yet.
    DropReason, "reason", {
    /// The queue of the session was full.
    QueueFull = "queue_full",
    /// The message expired in the queue.
    Expired = "expired",
    /// No session matched the message.
    NoSubscribers = "no_subscribers",
    /// The subscription excludes messages of its own client.
    NoLocal = "no_local",
    /// The message exceeded the client's maximum packet size.
    TooLarge = "too_large",
    /// A rate limit was exceeded.
    RateLimit = "rate_limit",
    /// The rules no longer allow the subscription.
    AclRevoked = "acl_revoked",
    /// The message could not be stored.
    StorageError = "storage_error",
    /// The session was lost with its node.
    SessionLost = "session_lost",
    /// A QoS 0 message was for a node that cannot be reached.
    PeerUnreachable = "peer_unreachable",
    /// A QoS 0 message was for a connection that reads too slowly.
    Qos0Slow = "qos0_slow",
});

label!(
    /// Part of a delivery that is measured.
    Stage, "stage", {
    /// From receiving the PUBLISH to sending it to the subscriber.
    Internal = "internal",
    /// From sending it to the subscriber's acknowledgement.
    Response = "response",
});

label!(
    /// Action on a slow consumer.
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
    /// Decision of access rules.
    AclResult, "result", {
    /// An allow rule matched and no deny rule did.
    Allow = "allow",
    /// A deny rule matched.
    Deny = "deny",
    /// No rule matched, which denies.
    NoMatch = "no_match",
});

label!(
    /// Kind of files on the data volume. Only `Wal` is updated yet.
    StorageKind, "kind", {
    /// The log.
    Wal = "wal",
    Snapshot = "snapshot",
    Sessions = "sessions",
});

label!(
    /// Operation on the data volume.
    StorageOp, "op", {
    Read = "read",
    Write = "write",
    Fsync = "fsync",
});

label!(
    /// A readiness check.
    Check, "check", {
    /// The log is replayed and the state is loaded.
    Disk = "disk",
    /// The node is a member of a cluster.
    Joined = "joined",
    /// The node holds a lease from a majority.
    Lease = "lease",
    /// An access document is enforced.
    Access = "access",
    /// The peer certificate was loaded. A broker does not start without one, and expiry does not make the check fail.
    Certificate = "certificate",
    /// The broker is not stopping.
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
