//! Publishes of one session that wait to be routed, in order.

use std::collections::VecDeque;

use covey_codec::{MqttStr, PacketId, QoS};
use covey_mqtt::session::Message;
use tokio::sync::oneshot;

use crate::publish::PendingAck;

/// Most bytes of QoS 0 messages of one session that wait behind a retained or QoS 2 message. Further ones are dropped
/// and counted; a message that finds the queue empty is always taken.
const MAX_QOS_0_BYTES: usize = 1 << 20;
/// Bytes that a message is charged besides its texts and payload.
const MESSAGE_OVERHEAD: usize = 256;
const USER_PROPERTY_OVERHEAD: usize = size_of::<(MqttStr, MqttStr)>();

/// Publishes that wait to be routed, in order. A message waits if it is retained or has QoS 2, if the lease is not
/// valid, or if another one waits before it.
///
/// QoS 1 and 2 are bounded by what the connection lets a client have unacknowledged, QoS 0 by [`MAX_QOS_0_BYTES`].
#[derive(Debug, Default)]
pub(super) struct PublishQueue {
    /// Oldest first.
    waiting: VecDeque<QueuedPublish>,
    /// Bytes of the QoS 0 messages in `waiting`.
    qos_0_bytes: usize,
    /// True while a task routes the waiting messages.
    routing: bool,
}

/// A publish that waits to be routed.
#[derive(Debug)]
pub(super) struct QueuedPublish {
    /// The publish.
    pub(super) message: Message,
    /// Packet id of a QoS 2 publish; `None` for QoS 0 and 1.
    pub(super) packet: Option<PacketId>,
    /// Receives the result.
    pub(super) routed: oneshot::Sender<Routed>,
}

/// Result of routing a publish: its place in the order is fixed.
#[derive(Debug)]
pub(super) enum Routed {
    /// Routed; waits for the receipts.
    Pending(PendingAck),
    /// The retained group is full.
    Refused,
    /// A QoS 2 packet id that was received before and not released.
    Repeated,
}

/// The queue has no room for a QoS 0 message.
#[derive(Debug)]
pub(super) struct Overfull;

impl PublishQueue {
    /// Returns whether a publish must wait for those before it.
    pub(super) fn is_busy(&self) -> bool {
        self.routing || !self.waiting.is_empty()
    }

    /// Queues a publish. Returns whether a task that routes the queue must be started.
    ///
    /// # Errors
    /// Returns [`Overfull`] if a QoS 0 message does not fit.
    pub(super) fn push(&mut self, publish: QueuedPublish) -> Result<bool, Overfull> {
        let bytes = qos_0_bytes(&publish.message);
        let is_qos_0 = publish.message.qos == QoS::AtMostOnce;
        if is_qos_0 && self.qos_0_bytes + bytes > MAX_QOS_0_BYTES && !self.waiting.is_empty() {
            return Err(Overfull);
        }
        self.qos_0_bytes += bytes;
        self.waiting.push_back(publish);
        Ok(!std::mem::replace(&mut self.routing, true))
    }

    /// Takes the oldest publish. After `None` the task that routes the queue must end.
    pub(super) fn pop(&mut self) -> Option<QueuedPublish> {
        let next = self.waiting.pop_front();
        self.qos_0_bytes -= next.as_ref().map_or(0, |next| qos_0_bytes(&next.message));
        self.routing = next.is_some();
        next
    }
}

/// Returns the bytes that a waiting QoS 0 message is charged; 0 for QoS 1 and 2.
fn qos_0_bytes(message: &Message) -> usize {
    if message.qos != QoS::AtMostOnce {
        return 0;
    }
    let properties = &message.properties;
    let texts = [&properties.response_topic, &properties.content_type].into_iter().flatten().map(MqttStr::len);
    let user = properties.user_properties.iter().map(|(name, value)| name.len() + value.len() + USER_PROPERTY_OVERHEAD);
    let data = properties.correlation_data.as_ref().map_or(0, bytes::Bytes::len);
    let sum = texts.chain(user).sum::<usize>() + data;
    MESSAGE_OVERHEAD + message.topic.len() + message.payload.len() + sum
}
