//! What a connection still has to say: one future per request that the session works on.
//!
//! Invariants: the futures of all kinds run at once; within a kind the replies come out in the order of their requests,
//! so that PUBACK and PUBREC follow the order of PUBLISH ([MQTT-4.6.0-2], [MQTT-4.6.0-3]) and PUBREL that of PUBREC
//! ([MQTT-4.6.0-4]). A kind that was never used takes no memory.

use std::future::{Future, poll_fn};
use std::task::{Context, Poll};

use covey_codec::{PacketId, ReasonCode};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;

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

type Queue = FuturesOrdered<BoxFuture<'static, Reply>>;

/// The replies of one connection that are on their way.
#[derive(Debug, Default)]
pub(super) struct Replies {
    publishes: Option<Queue>,
    exchanges: Option<Queue>,
    subscriptions: Option<Queue>,
}

impl Replies {
    /// Queues a reply behind the earlier ones of its order.
    pub(super) fn push(&mut self, order: Order, reply: impl Future<Output = Reply> + Send + 'static) {
        let queue = match order {
            Order::Publish => &mut self.publishes,
            Order::Exchange => &mut self.exchanges,
            Order::Subscription => &mut self.subscriptions,
        };
        queue.get_or_insert_default().push_back(Box::pin(reply));
    }

    /// Publishes that wait for their PUBACK or PUBREC.
    pub(super) fn held_publishes(&self) -> usize {
        self.publishes.as_ref().map_or(0, FuturesOrdered::len)
    }

    /// Everything else that waits.
    pub(super) fn held_requests(&self) -> usize {
        [&self.exchanges, &self.subscriptions].into_iter().flatten().map(FuturesOrdered::len).sum()
    }

    /// The next reply that is due; pending while there is none.
    pub(super) async fn next(&mut self) -> Reply {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Reply> {
        for queue in [&mut self.publishes, &mut self.exchanges, &mut self.subscriptions].into_iter().flatten() {
            if let Poll::Ready(Some(reply)) = queue.poll_next_unpin(cx) {
                return Poll::Ready(reply);
            }
        }
        Poll::Pending
    }
}
