//! Ids of connections and of what is delivered to them.

use crate::{decimal, id};

id! {
    /// A client's connection to this process.
    ///
    /// The node counts its connections from 1, from the start of the process. With [`NodeId`](crate::NodeId) and
    /// [`NodeEpoch`](crate::NodeEpoch) it names a connection in the cluster.
    ConnectionId(u64)
}

id! {
    /// The holder of a session.
    ///
    /// A shard counts its claims, from 1: each CONNECT gets a higher one than any before in that shard. Every operation
    /// on a session carries the owner epoch of its connection, and is refused once another connection has claimed the
    /// session.
    OwnerEpoch(u64)
}

id! {
    /// The place of a message in the inbox of a durable session, counted from 0 and never reused.
    ///
    /// The shard assigns it when it stores the message. The packet id of the delivery follows from it.
    InboxSeq(u64)
}

decimal!(ConnectionId, OwnerEpoch, InboxSeq);

impl OwnerEpoch {
    /// Owner epoch of a shard's first claim.
    pub const FIRST: Self = Self(1);

    /// Returns the owner epoch of the next claim.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl InboxSeq {
    /// Sequence number of the first message.
    pub const FIRST: Self = Self(0);

    /// Returns the sequence number of the next message.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Returns how many numbers lie between this one and an earlier one; 0 if `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
