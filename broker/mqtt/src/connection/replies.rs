//! Pending replies of a connection: one future per request that the session is processing.
//!
//! Invariants: all futures run concurrently. Within one [`Order`] the replies are returned in the order of their
//! requests, so that PUBACK and PUBREC follow the order of PUBLISH ([MQTT-4.6.0-2], [MQTT-4.6.0-3]) and PUBREL that of
//! PUBREC ([MQTT-4.6.0-4]). A queue that was never used allocates nothing.

use std::future::{Future, poll_fn};
use std::task::{Context, Poll};

use covey_codec::{PacketId, ReasonCode};
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};

/// A reply that may be sent now.
#[derive(Debug)]
pub(super) enum Reply {
    PubAck(PacketId, ReasonCode),
    PubRec(PacketId, ReasonCode),
    PubRel(PacketId, ReasonCode),
    PubComp(PacketId, ReasonCode),
    SubAck(PacketId, Vec<ReasonCode>),
    UnsubAck(PacketId, Vec<ReasonCode>),
    /// Subscriptions that the rules no longer allow were removed; nothing is sent.
    Revoked,
}

/// Queue whose order a reply has to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// PUBACK and PUBREC.
    Publish,
    /// PUBREL and PUBCOMP.
    Exchange,
    /// SUBACK and UNSUBACK.
    Subscription,
}

/// Size of one or more queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Number of pending replies.
    pub(super) count: usize,
    /// Total size of the packets to be answered, in bytes.
    pub(super) bytes: usize,
}

/// Pending replies of one order.
#[derive(Debug, Default)]
struct Queue {
    /// Replies with the size of the packet that each answers.
    replies: FuturesOrdered<BoxFuture<'static, (Reply, usize)>>,
    /// Total size of the packets to be answered, in bytes.
    bytes: usize,
}

/// The pending replies of one connection, by [`Order`]; `None` until the first one. The connection bounds them by not
/// reading further packets.
#[derive(Debug, Default)]
pub(super) struct Replies {
    publishes: Option<Queue>,
    exchanges: Option<Queue>,
    subscriptions: Option<Queue>,
}

impl Replies {
    /// Queues a reply behind the earlier ones of its order. `bytes` is the memory that the answered packet occupies
    /// until then.
    pub(super) fn push(&mut self, order: Order, bytes: usize, reply: impl Future<Output = Reply> + Send + 'static) {
        let queue = match order {
            Order::Publish => &mut self.publishes,
            Order::Exchange => &mut self.exchanges,
            Order::Subscription => &mut self.subscriptions,
        };
        let queue = queue.get_or_insert_default();
        queue.bytes += bytes;
        queue.replies.push_back(Box::pin(reply.map(move |reply| (reply, bytes))));
    }

    /// Returns the publishes that wait for their PUBACK or PUBREC.
    pub(super) fn held_publishes(&self) -> Waiting {
        waiting([&self.publishes])
    }

    /// Returns the other requests that wait for their reply.
    pub(super) fn held_requests(&self) -> Waiting {
        waiting([&self.exchanges, &self.subscriptions])
    }

    /// Returns the next reply that is ready; waits if there is none.
    pub(super) async fn next(&mut self) -> Reply {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Reply> {
        for queue in [&mut self.publishes, &mut self.exchanges, &mut self.subscriptions].into_iter().flatten() {
            if let Poll::Ready(Some((reply, bytes))) = queue.replies.poll_next_unpin(cx) {
                queue.bytes -= bytes;
                return Poll::Ready(reply);
            }
        }
        Poll::Pending
    }
}

fn waiting<const N: usize>(queues: [&Option<Queue>; N]) -> Waiting {
    queues.into_iter().flatten().fold(Waiting::default(), |sum, queue| Waiting {
        count: sum.count + queue.replies.len(),
        bytes: sum.bytes + queue.bytes,
    })
}
