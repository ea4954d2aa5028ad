//! The [`Session`] of a connection: publishes in order, subscriptions and acknowledgements.

use std::future::Future;
use std::sync::Arc;

use covey_codec::{MqttStr, PacketId, ReasonCode};
use covey_core::retained;
use covey_core::shard::{End, Once, Operation, Outcome, Publication};
use covey_mqtt::session::{Close, Ended, Message, Published, Session, Subscription};
use covey_supervise::caught;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::context::SessionContext;
use super::local::{LocalSession, SessionState};
use super::publish_queue::{Overfull, PublishQueue, QueuedPublish, Routed};
use crate::channel::reply;
use crate::clock::whole_seconds;
use crate::publish::message;
use crate::shard::{Acknowledgement, ShardClient, ToShard};

/// A session and the connection that holds it.
#[derive(Debug, Clone)]
pub struct NodeSession {
    /// Parts of the node that sessions share.
    pub(super) context: Arc<SessionContext>,
    /// State of the session on this node.
    pub(super) local: Arc<LocalSession>,
    /// Publishes that wait to be routed.
    pub(super) queue: Arc<Mutex<PublishQueue>>,
}

impl NodeSession {
    fn publication(&self, message: &Message) -> Publication {
        Publication {
            topic: message.topic.as_str().into(),
            qos: message.qos,
            retain: message.retain,
            publisher: Some(self.local.client.clone()),
            expiry: message.properties.message_expiry_interval,
            retained_index: None,
            once: None,
            body: message::encode(message),
        }
    }

    /// Routes the message at once if nothing waits before it and it needs no commit; otherwise queues it and returns
    /// the receiver of the result. The receiver fails if the message is dropped or the epoch ends.
    fn begin(&self, message: Message, packet: Option<PacketId>) -> Result<Routed, oneshot::Receiver<Routed>> {
        let mut queue = self.queue.lock();
        let at_once = !queue.is_busy() && !message.retain && packet.is_none();
        if at_once && let Ok(pending) = self.context.router.route(&self.publication(&message), self.local.epoch) {
            return Ok(Routed::Pending(pending));
        }
        let (routed, receiver) = oneshot::channel();
        match queue.push(QueuedPublish { message, packet, routed }) {
            Ok(true) => {
                let session = self.clone();
                self.spawn("queued publishes", async move { session.route_queued().await });
            }
            Ok(false) => {}
            Err(Overfull) => self.context.observer.dropped_unreachable(),
        }
        Err(receiver)
    }

    /// Starts a task of this session. A panic closes the client's connection, whose requests would otherwise wait
    /// forever.
    pub(super) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let session = self.clone();
        self.context.tasks.spawn(name, async move {
            if caught(name, task).await.is_err() {
                session.context.registry.close(&session.local, Close::Failed);
            }
        });
    }

    /// Routes the waiting messages in order; stops when the epoch ends.
    async fn route_queued(self) {
        loop {
            let next = self.queue.lock().pop();
            let Some(waiting) = next else { return };
            let Some(routed) = self.route_in_turn(&waiting.message, waiting.packet).await else { return };
            reply(waiting.routed, routed);
        }
    }

    /// Commits what the message requires and routes it. Returns `None` if the epoch ended.
    async fn route_in_turn(&self, message: &Message, packet: Option<PacketId>) -> Option<Routed> {
        let (context, epoch) = (&self.context, self.local.epoch);
        context.lease.until_valid(epoch).await.ok()?;
        let mut publication = self.publication(message);
        if let Some(packet) = packet {
            match self.begin_qos2(packet).await? {
                Qos2Publish::Repeated => return Some(Routed::Repeated),
                Qos2Publish::New(once) => publication.once = once,
            }
        }
        if message.retain {
            match context.retained.store(epoch, &publication, message.payload.is_empty()).await.ok()? {
                (_, retained::Outcome::Full) => return Some(Routed::Refused),
                (index, _) => publication.retained_index = Some(index),
            }
        }
        loop {
            context.lease.until_valid(epoch).await.ok()?;
            if let Ok(pending) = context.router.route(&publication, epoch) {
                return Some(Routed::Pending(pending));
            }
        }
    }

    /// Reserves the packet id of a QoS 2 publish, in the shard for a durable session. Returns `None` if the outcome is
    /// unknown or the session is lost.
    async fn begin_qos2(&self, packet: PacketId) -> Option<Qos2Publish> {
        if let SessionState::Transient(session) = &mut *self.local.state.lock() {
            let is_new = session.begin_qos2(packet);
            return Some(if is_new { Qos2Publish::New(None) } else { Qos2Publish::Repeated });
        }
        let (client, owner) = (self.local.client.clone(), self.local.owner);
        match self.shard().call(Operation::BeginQos2 { client, owner, packet: packet.get() }).await.ok()? {
            Outcome::Qos2Begun { number, floor, created_by } => {
                let key = format!("q:{}:{created_by}", self.local.client).into_boxed_str();
                Some(Qos2Publish::New(Some(Once { key, number, floor })))
            }
            _ => None,
        }
    }

    pub(super) fn shard(&self) -> &ShardClient {
        self.context.shard_client_of(&self.local.client)
    }

    /// Waits for a valid lease and returns the value; pending forever if the epoch ended, so that nothing is
    /// acknowledged.
    async fn when_leased<T>(&self, value: T) -> T {
        match self.context.lease.until_valid(self.local.epoch).await {
            Ok(()) => value,
            Err(_) => std::future::pending().await,
        }
    }
}

/// Result of reserving a QoS 2 packet id.
enum Qos2Publish {
    /// The packet id was received before and not released.
    Repeated,
    /// A new publish, with its key for exactly-once delivery if the session is durable.
    New(Option<Once>),
}

impl Session for NodeSession {
    fn publish(
        &self,
        message: Message,
        packet_id: Option<PacketId>,
    ) -> impl Future<Output = Published> + Send + 'static {
        let begun = self.begin(message, packet_id);
        let session = self.clone();
        async move {
            let routed = match begun {
                Ok(routed) => Some(routed),
                Err(receiver) => receiver.await.ok(),
            };
            let published = match routed {
                Some(Routed::Pending(pending)) => pending.outcome().await,
                Some(Routed::Refused) => Some(Published::QuotaExceeded),
                Some(Routed::Repeated) => Some(Published::Accepted),
                None => None,
            };
            // A refused QoS 2 publish has ended ([MQTT-4.3.3-9]): the next PUBLISH with its packet id is another
            // message.
            if let (Some(Published::QuotaExceeded), Some(id)) = (&published, packet_id) {
                session.release(id).await;
            }
            // No answer without a lease, and none if the outcome is unknown.
            match published {
                Some(published) => session.when_leased(published).await,
                None => std::future::pending().await,
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
            SessionState::Durable(inflight) => {
                if let Some(sequence) = inflight.acknowledge(packet_id) {
                    drop(state);
                    let (client, owner) = (local.client.clone(), local.owner);
                    let acknowledgement = Acknowledgement { client, owner, sequences: vec![sequence] };
                    self.shard().tell(ToShard::from(acknowledgement));
                }
            }
            SessionState::Transient(transient) => {
                if let Some(events) = transient.acknowledge(packet_id) {
                    drop(state);
                    local.send(events);
                }
            }
        }
    }

    fn received(&self, packet_id: PacketId) -> impl Future<Output = bool> + Send + 'static {
        let session = self.clone();
        async move {
            let sequence = match &*session.local.state.lock() {
                SessionState::Durable(inflight) => inflight.sequence(packet_id).ok_or(false),
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
        if !self.context.registry.remove(local) {
            return;
        }
        let expiry = ended.expiry.map(whole_seconds);
        let end = End { client: local.client.clone(), owner: local.owner, expiry, drop_will: ended.drop_will };
        // Resent until it is answered; the answer is not needed.
        drop(shard.call(Operation::End(end)));
    }
}
