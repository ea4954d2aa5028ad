//! What a connection still has to say: one future per request that the session works on.
//!
//! Invariants: the futures of all kinds run at once; within a kind the replies come out in the order of their requests,
//! so that PUBACK and PUBREC follow the order of PUBLISH ([MQTT-4.6.0-2], [MQTT-4.6.0-3]) and PUBREL that of PUBREC
//! ([MQTT-4.6.0-4]). A kind that was never used takes no memory.

use std::future::{Future, poll_fn};
use std::task::{Context, Poll};

use covey_codec::{PacketId, ReasonCode};
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};

/// Something that may be told to the client now.
#[derive(Debug)]
pub(super) enum Reply {
    PubAck(PacketId, ReasonCode),
    PubRec(PacketId, ReasonCode),
    PubRel(PacketId, ReasonCode),
    PubComp(PacketId, ReasonCode),
    SubAck(PacketId, Vec<ReasonCode>),
    UnsubAck(PacketId, Vec<ReasonCode>),
    /// Subscriptions that the rules no longer allow are gone; the client is not told.
    Revoked,
}

/// Whose order a reply has to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// PUBACK and PUBREC.
    Publish,
    /// PUBREL and PUBCOMP.
    Exchange,
    /// SUBACK and UNSUBACK.
    Subscription,
}

/// What waits in some queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) count: usize,
    /// Sizes of the packets that are to be answered.
    pub(super) bytes: usize,
}

#[derive(Debug, Default)]
struct Queue {
    replies: FuturesOrdered<BoxFuture<'static, (Reply, usize)>>,
    bytes: usize,
}

/// The replies of one connection that are on their way.
#[derive(Debug, Default)]
pub(super) struct Replies {
    publishes: Option<Queue>,
    exchanges: Option<Queue>,
    subscriptions: Option<Queue>,
}

impl Replies {
    /// Queues a reply behind the earlier ones of its order. `bytes` is what the packet that is answered takes meanwhile.
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

    /// Publishes that wait for their PUBACK or PUBREC.
    pub(super) fn held_publishes(&self) -> Waiting {
        waiting([&self.publishes])
    }

    /// Everything else that waits.
    pub(super) fn held_requests(&self) -> Waiting {
        waiting([&self.exchanges, &self.subscriptions])
    }

    /// The next reply that is due; pending while there is none.
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
