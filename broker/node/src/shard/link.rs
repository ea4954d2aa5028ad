//! A link between a node and the leader of a shard: its two ends, and what the leader receives over it.

use tokio::sync::mpsc;

use super::wire::{FromShard, ToShard};
use crate::channel::tell;

/// Number of a link, unique within the leader's process.
pub(crate) type LinkId = u64;

/// Input of a leader.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// A link was opened; `replies` goes to the node and is dropped if this node does not lead.
    Opened { link: LinkId, replies: mpsc::UnboundedSender<FromShard> },
    /// A frame arrived on a link, in the order in which it was sent.
    Frame { link: LinkId, frame: ToShard },
    /// A link has ended, by either side.
    Closed { link: LinkId },
}

/// An open link at the node that opened it. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Link {
    /// To the leader.
    pub(crate) to: mpsc::UnboundedSender<ToShard>,
    /// From the leader; ends when the leader or the connection is gone.
    pub(crate) from: mpsc::UnboundedReceiver<FromShard>,
}

/// A link at the node of the leader. The leader is told that the link is closed when this is dropped.
#[derive(Debug)]
pub(crate) struct LeaderEnd {
    link: LinkId,
    leader: mpsc::UnboundedSender<Inbound>,
}

impl LeaderEnd {
    /// Opens the link at the leader; `None` if its task has ended.
    pub(crate) fn open(
        link: LinkId,
        leader: mpsc::UnboundedSender<Inbound>,
        replies: mpsc::UnboundedSender<FromShard>,
    ) -> Option<Self> {
        leader.send(Inbound::Opened { link, replies }).ok()?;
        Some(Self { link, leader })
    }

    /// Passes a frame of the node to the leader. Returns `false` if the leader's task has ended.
    pub(crate) fn send(&self, frame: ToShard) -> bool {
        self.leader.send(Inbound::Frame { link: self.link, frame }).is_ok()
    }
}

impl Drop for LeaderEnd {
    fn drop(&mut self) {
        tell(&self.leader, Inbound::Closed { link: self.link });
    }
}
