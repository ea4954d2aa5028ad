//! The [`Session`] of a connection: publishes in order, subscriptions and acknowledgements.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use covey_codec::{MqttStr, PacketId, QoS, ReasonCode};
use covey_core::retained;
use covey_core::shard::{self, End, Once, Operation, Outcome, Publication, Subscribed, WantRetained};
use covey_core::subscriptions::Options;
use covey_core::topic::Filter;
use covey_mqtt::session::{Close, Ended, Message, Published, Session, Subscription};
use covey_supervise::caught;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Node;
use super::channel::reply;
use super::message;
use super::publish::Pending;
use super::registry::{LocalSession, Registry, SessionState};
use super::wire::ToShard;

/// A session and the connection that holds it.
#[derive(Debug, Clone)]
pub struct NodeSession {
    /// The node.
    pub(super) node: Arc<Node>,
    /// State of the session on this node.
    pub(super) local: Arc<LocalSession>,
    /// Publishes that wait to be routed.
    pub(super) queue: Arc<Mutex<Queue>>,
}

/// Most bytes of QoS 0 messages of one session that wait behind a retained or QoS 2 message. Further ones are dropped
/// and counted; a message that finds the queue empty is always taken.
const QOS_0_BYTES: usize = 1 << 20;
/// Bytes that a message is charged besides its texts and payload.
const MESSAGE_OVERHEAD: usize = 256;
const USER_PROPERTY_OVERHEAD: usize = size_of::<(MqttStr, MqttStr)>();

/// Publishes that wait to be routed, in order. A message waits if it is retained or has QoS 2, if the lease is not
/// valid, or if another one waits before it.
///
/// QoS 1 and 2 are bounded by what the connection lets a client have unacknowledged, QoS 0 by [`QOS_0_BYTES`].
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Oldest first.
    waiting: VecDeque<Waiting>,
    /// Bytes of the QoS 0 messages in `waiting`.
    qos_0_bytes: usize,
    /// True while a task routes the waiting messages.
    draining: bool,
}

/// A publish that waits to be routed.
#[derive(Debug)]
struct Waiting {
    /// The publish.
    message: Message,
    /// Packet id of a QoS 2 publish; `None` for QoS 0 and 1.
    packet: Option<PacketId>,
    /// Receives the result.
    routed: oneshot::Sender<Routed>,
}

/// Result of routing a publish: its place in the order is fixed.
#[derive(Debug)]
enum Routed {
    /// Routed; waits for the receipts.
    Pending(Pending),
    /// The retained group is full.
    Refused,
    /// A QoS 2 packet id that was received before and not released.
    Repeated,
}

impl NodeSession {
    fn publication(&self, message: &Message, retained_index: Option<u64>, once: Option<Once>) -> Publication {
        Publication {
            topic: message.topic.as_str().into(),
            qos: message.qos,
            retain: message.retain,
            publisher: Some(self.local.client.clone()),
            expiry: message.properties.message_expiry_interval,
            retained_index,
            once,
            body: message::encode(message),
        }
    }

    /// Routes the message at once if nothing waits before it and it needs no commit; otherwise queues it and returns
    /// the receiver of the result. The receiver fails if the message is dropped or the epoch ends.
    fn begin(&self, message: Message, packet: Option<PacketId>) -> Result<Routed, oneshot::Receiver<Routed>> {
        let mut queue = self.queue.lock();
        let at_once = queue.waiting.is_empty() && !queue.draining && !message.retain && packet.is_none();
        if at_once && let Ok(pending) = self.node.route(&self.publication(&message, None, None), self.local.epoch) {
            return Ok(Routed::Pending(pending));
        }
        let (routed, receiver) = oneshot::channel();
        let qos_0_bytes = qos_0_bytes(&message);
        let is_qos_0 = message.qos == QoS::AtMostOnce;
        if is_qos_0 && queue.qos_0_bytes + qos_0_bytes > QOS_0_BYTES && !queue.waiting.is_empty() {
            self.node.metrics.dropped_unreachable();
            return Err(receiver);
        }
        queue.qos_0_bytes += qos_0_bytes;
        queue.waiting.push_back(Waiting { message, packet, routed });
        if !queue.draining {
            queue.draining = true;
            let session = self.clone();
            self.spawn("queued publishes", async move { session.drain().await });
        }
        Err(receiver)
    }

    /// Starts a task of this session. A panic closes the client's connection, whose requests would otherwise wait
    /// forever.
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let session = self.clone();
        self.node.spawn(name, async move {
            if caught(name, task).await.is_err() {
                session.node.registry.close(&session.local, Close::Failed);
            }
        });
    }

    /// Routes the waiting messages in order; stops when the epoch ends.
    async fn drain(self) {
        loop {
            let next = {
                let mut queue = self.queue.lock();
                let next = queue.waiting.pop_front();
                queue.qos_0_bytes -= next.as_ref().map_or(0, |next| qos_0_bytes(&next.message));
                queue.draining = next.is_some();
                next
            };
            let Some(waiting) = next else { return };
            let Some(routed) = self.route_in_turn(&waiting.message, waiting.packet).await else { return };
            reply(waiting.routed, routed);
        }
    }

    /// Commits what the message requires and routes it. Returns `None` if the epoch ended.
    async fn route_in_turn(&self, message: &Message, packet: Option<PacketId>) -> Option<Routed> {
        let epoch = self.local.epoch;
        self.node.lease.held(epoch).await.ok()?;
        let once = match packet {
            None => None,
            Some(packet) => match self.begin_qos2(packet).await? {
                Qos2Publish::Again => return Some(Routed::Repeated),
                Qos2Publish::Once(once) => once,
            },
        };
        let mut index = None;
        if message.retain {
            match self.retain(message).await? {
                (_, retained::Outcome::Full) => return Some(Routed::Refused),
                (stored, _) => index = Some(stored),
            }
        }
        let publication = self.publication(message, index, once);
        loop {
            self.node.lease.held(epoch).await.ok()?;
            if let Ok(pending) = self.node.route(&publication, epoch) {
                return Some(Routed::Pending(pending));
            }
        }
    }

    /// Reserves the packet id of a QoS 2 publish, in the shard for a durable session. Returns `None` if the outcome is
    /// unknown or the session is lost.
    async fn begin_qos2(&self, packet: PacketId) -> Option<Qos2Publish> {
        if let SessionState::Transient(session) = &mut *self.local.state.lock() {
            return Some(if session.receive(packet) { Qos2Publish::Once(None) } else { Qos2Publish::Again });
        }
        let operation =
            Operation::BeginQos2 { client: self.local.client.clone(), owner: self.local.owner, packet: packet.get() };
        match self.shard().call(operation).await.ok()? {
            Outcome::Qos2Begun { number, floor, created_by } => {
                let key = format!("q:{}:{created_by}", self.local.client).into_boxed_str();
                Some(Qos2Publish::Once(Some(Once { key, number, floor })))
            }
            _ => None,
        }
    }

    /// Commits a retained message and returns its log index and outcome; `None` if the epoch ended.
    async fn retain(&self, message: &Message) -> Option<(u64, retained::Outcome)> {
        let write = retained::Write {
            node: self.node.id,
            epoch: self.local.epoch,
            number: 0,
            topic: message.topic.as_str().into(),
            qos: message.qos,
            expiry: message.properties.message_expiry_interval,
            empty: message.payload.is_empty(),
            body: message::encode(message),
        };
        self.node.writer.store(write).await.ok()
    }

    fn shard(&self) -> &super::shard::Client {
        self.node.shard_of(&self.local.client)
    }

    async fn subscribe_durable(&self, wanted: Vec<Subscription>) -> Vec<ReasonCode> {
        let subscriptions = wanted.iter().map(to_shard).collect();
        let (client, owner) = (self.local.client.clone(), self.local.owner);
        let count = wanted.len();
        match self.shard().call(Operation::Subscribe { client, owner, subscriptions }).await {
            Ok(Outcome::Subscribed(granted)) => granted
                .into_iter()
                .map(|granted| match granted {
                    Subscribed::Granted { qos, .. } => granted_qos(qos),
                    Subscribed::LimitReached => ReasonCode::QuotaExceeded,
                })
                .collect(),
            Ok(_) => vec![ReasonCode::UnspecifiedError; count],
            // The epoch ended: the connection is being closed and must not be answered.
            Err(_) => std::future::pending().await,
        }
    }

    async fn subscribe_transient(&self, wanted: Vec<Subscription>) -> Vec<ReasonCode> {
        let (mut codes, mut change, mut awaited) = (Vec::new(), 0, Vec::new());
        let limit = self.node.config.sessions.max_subscriptions as usize;
        for wanted in &wanted {
            let Ok(filter) = Filter::new(wanted.filter.clone()) else {
                codes.push(ReasonCode::TopicFilterInvalid);
                continue;
            };
            let SessionState::Transient(session) = &mut *self.local.state.lock() else { continue };
            let granted = session.subscribe(&self.node.filters, &wanted.filter, &filter, options(wanted), limit);
            let Some(granted) = granted else {
                codes.push(ReasonCode::QuotaExceeded);
                continue;
            };
            if wanted.retain_handling == 0 || (wanted.retain_handling == 1 && granted.is_new) {
                session.await_retained(&wanted.filter, filter);
                awaited.push(wanted.clone());
            }
            change = change.max(granted.change);
            codes.push(granted_qos(wanted.qos));
        }
        let known = self.node.known_everywhere(self.local.epoch, change).await;
        if known.is_err() {
            return std::future::pending().await;
        }
        if !awaited.is_empty() {
            let session = self.clone();
            self.spawn("retained messages", async move { session.send_retained(awaited).await });
        }
        codes
    }

    /// Sends retained messages for new subscriptions of a transient session, except copies that are not newer than a
    /// live one.
    async fn send_retained(&self, wanted: Vec<Subscription>) {
        for wanted in wanted {
            let found = self.node.retained_for(wanted.filter.as_str()).await;
            // Locked until they are sent: a newer live copy is either queued before and recorded, or queued behind
            // them.
            let mut state = self.local.state.lock();
            let SessionState::Transient(session) = &mut *state else { return };
            let fresh = session.take_retained(&wanted.filter, found);
            for delivery in fresh.iter().filter_map(|found| super::services::retained_delivery(found, &wanted)) {
                Registry::send_retained(&self.local, session, delivery);
            }
        }
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

/// Result of reserving a QoS 2 packet id.
enum Qos2Publish {
    /// The packet id was received before and not released.
    Again,
    /// A new publish, with its key for exactly-once delivery if the session is durable.
    Once(Option<Once>),
}

impl Session for NodeSession {
    fn publish(
        &self,
        message: Message,
        packet_id: Option<PacketId>,
    ) -> impl Future<Output = Published> + Send + 'static {
        let begun = self.begin(message, packet_id);
        let (session, lease, epoch) = (self.clone(), self.node.lease.clone(), self.local.epoch);
        async move {
            let routed = match begun {
                Ok(routed) => Some(routed),
                Err(receiver) => receiver.await.ok(),
            };
            let published = match routed {
                Some(Routed::Pending(pending)) => pending.outcome().await,
                Some(Routed::Refused) => Some(Published::QuotaExceeded),
                Some(Routed::Repeated) => Some(Published::Delivered),
                None => None,
            };
            // A refused QoS 2 publish has ended ([MQTT-4.3.3-9]): the next PUBLISH with its packet id is another
            // message.
            if let (Some(Published::QuotaExceeded), Some(id)) = (&published, packet_id) {
                session.release(id).await;
            }
            // No answer without a lease, and none if the outcome is unknown.
            match (published, lease.held(epoch).await) {
                (Some(published), Ok(())) => published,
                _ => std::future::pending().await,
            }
        }
    }

    fn release(&self, packet_id: PacketId) -> impl Future<Output = bool> + Send + 'static {
        let session = self.clone();
        async move {
            let here = match &mut *session.local.state.lock() {
                SessionState::Transient(transient) => Some(transient.release(packet_id)),
                SessionState::Durable(_) => None,
            };
            let known = if let Some(known) = here {
                known
            } else {
                let (client, owner) = (session.local.client.clone(), session.local.owner);
                let operation = Operation::Release { client, owner, packet: packet_id.get() };
                match session.shard().call(operation).await {
                    Ok(outcome) => outcome == Outcome::Known(true),
                    Err(_) => std::future::pending().await,
                }
            };
            session.when_leased(known).await
        }
    }

    fn subscribe(&self, subscriptions: Vec<Subscription>) -> impl Future<Output = Vec<ReasonCode>> + Send + 'static {
        let session = self.clone();
        async move {
            let codes = if session.local.is_durable() {
                session.subscribe_durable(subscriptions).await
            } else {
                session.subscribe_transient(subscriptions).await
            };
            session.when_leased(codes).await
        }
    }

    fn unsubscribe(&self, filters: Vec<MqttStr>) -> impl Future<Output = Vec<ReasonCode>> + Send + 'static {
        let session = self.clone();
        async move {
            let code = |existed| if existed { ReasonCode::Success } else { ReasonCode::NoSubscriptionExisted };
            let here = session.unsubscribe_transient(&filters);
            let existed = if let Some(existed) = here {
                existed
            } else {
                let (client, owner) = (session.local.client.clone(), session.local.owner);
                let filters: Vec<Box<str>> = filters.iter().map(|filter| filter.as_str().into()).collect();
                match session.shard().call(Operation::Unsubscribe { client, owner, filters }).await {
                    Ok(Outcome::Unsubscribed(existed)) => existed,
                    _ => std::future::pending().await,
                }
            };
            session.when_leased(existed.into_iter().map(code).collect()).await
        }
    }

    fn acknowledge(&self, packet_id: PacketId) {
        let local = &self.local;
        let mut state = local.state.lock();
        match &mut *state {
            SessionState::Durable(durable) => {
                if let Some(sequence) = durable.acknowledge(packet_id) {
                    drop(state);
                    let (client, owner) = (local.client.clone(), local.owner);
                    self.shard().tell(ToShard::Acknowledge { client, owner, sequences: vec![sequence] });
                }
            }
            SessionState::Transient(session) => {
                if let Some(events) = session.acknowledge(packet_id) {
                    drop(state);
                    Registry::send(local, events);
                }
            }
        }
    }

    fn received(&self, packet_id: PacketId) -> impl Future<Output = bool> + Send + 'static {
        let session = self.clone();
        async move {
            let sequence = match &*session.local.state.lock() {
                SessionState::Durable(durable) => durable.sequence(packet_id).ok_or(false),
                SessionState::Transient(transient) => Err(transient.is_unacknowledged(packet_id)),
            };
            match sequence {
                Err(known) => known,
                Ok(sequence) => {
                    let (client, owner) = (session.local.client.clone(), session.local.owner);
                    match session.shard().call(Operation::Pubrec { client, owner, sequence }).await {
                        Ok(Outcome::Known(known)) => session.when_leased(known).await,
                        _ => std::future::pending().await,
                    }
                }
            }
        }
    }

    fn end(&self, ended: Ended) {
        let local = &self.local;
        let shard = self.shard();
        shard.let_go(&local.client, local.owner);
        // A session that was taken over or closed by the node has been removed already.
        if !self.node.registry.remove(local) {
            return;
        }
        let expiry = ended.expiry.map(|expiry| u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX));
        let end = End { client: local.client.clone(), owner: local.owner, expiry, drop_will: ended.drop_will };
        // Resent until it is answered; the answer is not needed.
        drop(shard.call(Operation::End(end)));
    }
}

impl NodeSession {
    /// Waits for a valid lease and returns the value; pending forever if the epoch ended, so that nothing is
    /// acknowledged.
    async fn when_leased<T>(&self, value: T) -> T {
        match self.node.lease.held(self.local.epoch).await {
            Ok(()) => value,
            Err(_) => std::future::pending().await,
        }
    }

    /// Removes subscriptions of a transient session and returns whether each existed; `None` for a durable session.
    fn unsubscribe_transient(&self, filters: &[MqttStr]) -> Option<Vec<bool>> {
        let SessionState::Transient(session) = &mut *self.local.state.lock() else { return None };
        Some(filters.iter().map(|filter| session.unsubscribe(&self.node.filters, filter)).collect())
    }
}

fn to_shard(wanted: &Subscription) -> shard::Subscription {
    shard::Subscription {
        filter: wanted.filter.as_str().into(),
        options: options(wanted),
        retained: match wanted.retain_handling {
            0 => WantRetained::Always,
            1 => WantRetained::IfNew,
            _ => WantRetained::Never,
        },
    }
}

fn options(wanted: &Subscription) -> Options {
    Options {
        qos: wanted.qos,
        no_local: wanted.no_local,
        retain_as_published: wanted.retain_as_published,
        identifier: wanted.identifier,
    }
}

fn granted_qos(qos: QoS) -> ReasonCode {
    match qos {
        QoS::AtMostOnce => ReasonCode::Success,
        QoS::AtLeastOnce => ReasonCode::GrantedQos1,
        QoS::ExactlyOnce => ReasonCode::GrantedQos2,
    }
}
