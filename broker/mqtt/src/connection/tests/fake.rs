//! An in-memory node with rules and counters that the test controls.

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use covey_codec::{MqttStr, Packet, PacketId, QoS, ReasonCode};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use crate::connection::{Closed, Guard, Observer, Principal, Rejected};
use crate::session::{ConnectRequest, Connected, Ended, Event, Message, Published, Session, Sessions, Subscription};

/// A call of a connection to its session.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Call {
    Publish(Box<Message>, Option<PacketId>),
    Release(PacketId),
    Subscribe(Vec<Subscription>),
    Unsubscribe(Vec<MqttStr>),
    Acknowledge(PacketId),
    Received(PacketId),
    End(Ended),
}

/// Recorded calls, and the replies that the test chose.
#[derive(Debug)]
pub(super) struct State {
    /// Requests for sessions, in order.
    pub(super) requests: Vec<ConnectRequest>,
    /// Calls of all sessions, in order.
    pub(super) calls: Vec<Call>,
    /// Whether replies wait for [`Fake::complete`].
    pub(super) hold: bool,
    /// Gates of the calls made while `hold` was set; `None` once completed.
    pub(super) held: Vec<Option<oneshot::Sender<()>>>,
    /// Reason code with which sessions are refused.
    pub(super) refuse: Option<ReasonCode>,
    /// Session Present of new sessions.
    pub(super) present: bool,
    /// Filters of a resumed session.
    pub(super) filters: Vec<MqttStr>,
    /// Outcome of publishes.
    pub(super) published: Published,
    /// Whether packet ids of PUBREC and PUBREL are in use.
    pub(super) known: bool,
    /// Event channels, one per session, the newest last.
    events: Vec<mpsc::Sender<Event>>,
}

#[derive(Debug)]
pub(super) struct Fake {
    state: Mutex<State>,
    serving: AtomicBool,
}

impl Default for Fake {
    fn default() -> Self {
        let state = State {
            requests: Vec::new(),
            calls: Vec::new(),
            hold: false,
            held: Vec::new(),
            refuse: None,
            present: false,
            filters: Vec::new(),
            published: Published::Accepted,
            known: true,
            events: Vec::new(),
        };
        Self { state: Mutex::new(state), serving: AtomicBool::new(true) }
    }
}

impl Fake {
    pub(super) fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock())
    }

    pub(super) fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::SeqCst);
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.state.lock().calls.clone()
    }

    pub(super) fn request(&self) -> ConnectRequest {
        self.state.lock().requests.last().cloned().unwrap()
    }

    pub(super) fn ended(&self) -> Vec<Ended> {
        let ended = |call| if let Call::End(ended) = call { Some(ended) } else { None };
        self.calls().into_iter().filter_map(ended).collect()
    }

    /// Releases the reply to the held call at index `number`.
    pub(super) fn complete(&self, number: usize) {
        self.state.lock().held[number].take().unwrap().send(()).unwrap();
    }

    pub(super) async fn tell(&self, event: Event) {
        let events = self.state.lock().events.last().cloned().unwrap();
        events.send(event).await.unwrap();
    }

    /// Returns the number of events that the connection has not received.
    pub(super) fn waiting_events(&self) -> usize {
        let state = self.state.lock();
        let events = state.events.last().unwrap();
        events.max_capacity() - events.capacity()
    }

    pub(super) fn drop_events(&self) {
        self.state.lock().events.clear();
    }

    fn answer<T: Send + 'static>(&self, call: Call, value: T) -> impl Future<Output = T> + Send + 'static + use<T> {
        let mut state = self.state.lock();
        state.calls.push(call);
        let gate = state.hold.then(|| {
            let (open, gate) = oneshot::channel();
            state.held.push(Some(open));
            gate
        });
        async move {
            if let Some(gate) = gate
                && gate.await.is_err()
            {
                std::future::pending::<()>().await;
            }
            value
        }
    }
}

/// Shared handle on the fake, which its sessions hold as well.
#[derive(Debug, Clone, Default)]
pub(super) struct Node(pub(super) Arc<Fake>);

impl Sessions for Node {
    type Session = FakeSession;

    fn is_serving(&self) -> bool {
        self.0.serving.load(Ordering::SeqCst)
    }

    async fn connect(&self, request: ConnectRequest) -> Result<Connected<FakeSession>, ReasonCode> {
        let mut state = self.0.state.lock();
        state.requests.push(request);
        if let Some(code) = state.refuse {
            return Err(code);
        }
        let (events, receiver) = mpsc::channel(16);
        state.events.push(events);
        let session = FakeSession(Arc::clone(&self.0));
        Ok(Connected { session_present: state.present, filters: state.filters.clone(), session, events: receiver })
    }
}

#[derive(Debug)]
pub(super) struct FakeSession(Arc<Fake>);

impl Session for FakeSession {
    fn publish(
        &self,
        message: Message,
        packet_id: Option<PacketId>,
    ) -> impl Future<Output = Published> + Send + 'static {
        assert_ne!(message.topic, "panic", "requested by the test");
        let published = self.0.state.lock().published;
        self.0.answer(Call::Publish(Box::new(message), packet_id), published)
    }

    fn release(&self, packet_id: PacketId) -> impl Future<Output = bool> + Send + 'static {
        let known = self.0.state.lock().known;
        self.0.answer(Call::Release(packet_id), known)
    }

    fn subscribe(&self, subscriptions: Vec<Subscription>) -> impl Future<Output = Vec<ReasonCode>> + Send + 'static {
        let granted = |wanted: &Subscription| ReasonCode::try_from(u8::from(wanted.qos)).unwrap();
        let grants = subscriptions.iter().map(granted).collect();
        self.0.answer(Call::Subscribe(subscriptions), grants)
    }

    fn unsubscribe(&self, filters: Vec<MqttStr>) -> impl Future<Output = Vec<ReasonCode>> + Send + 'static {
        let reasons = filters.iter().map(|_| ReasonCode::Success).collect();
        self.0.answer(Call::Unsubscribe(filters), reasons)
    }

    fn acknowledge(&self, packet_id: PacketId) {
        self.0.state.lock().calls.push(Call::Acknowledge(packet_id));
    }

    fn received(&self, packet_id: PacketId) -> impl Future<Output = bool> + Send + 'static {
        let known = self.0.state.lock().known;
        self.0.answer(Call::Received(packet_id), known)
    }

    fn end(&self, ended: Ended) {
        self.0.state.lock().calls.push(Call::End(ended));
    }
}

/// Users with passwords, and topics and filters that are denied to all of them.
#[derive(Debug)]
pub(super) struct Rules {
    users: Mutex<HashMap<String, Vec<u8>>>,
    denied: Mutex<Vec<String>>,
    revision: watch::Sender<u64>,
}

impl Default for Rules {
    fn default() -> Self {
        let users = HashMap::from([("ann".to_owned(), b"secret".to_vec())]);
        Self { users: Mutex::new(users), denied: Mutex::new(vec!["denied".into()]), revision: watch::Sender::new(1) }
    }
}

impl Rules {
    pub(super) fn remove_user(&self, name: &str) {
        self.users.lock().remove(name);
        self.revision.send_modify(|revision| *revision += 1);
    }

    pub(super) fn deny(&self, topic: &str) {
        self.denied.lock().push(topic.to_owned());
        self.revision.send_modify(|revision| *revision += 1);
    }

    fn user(&self, name: &str) -> Arc<User> {
        Arc::new(User { name: name.to_owned(), denied: self.denied.lock().clone() })
    }
}

#[derive(Debug)]
pub(super) struct User {
    name: String,
    denied: Vec<String>,
}

impl Principal for User {
    fn name(&self) -> &str {
        &self.name
    }

    fn may_publish(&self, _client_id: &str, topic: &str, _qos: QoS, _retain: bool) -> bool {
        !self.denied.iter().any(|denied| denied == topic)
    }

    fn may_subscribe(&self, _client_id: &str, filter: &str, _qos: QoS) -> bool {
        !self.denied.iter().any(|denied| denied == filter)
    }
}

impl Guard for Rules {
    type Principal = User;

    async fn authenticate(
        &self,
        username: Option<&str>,
        password: Option<&[u8]>,
        client_id: &str,
        _peer: IpAddr,
    ) -> Result<Arc<User>, ReasonCode> {
        let Some(name) = username else { return Ok(self.user("")) };
        assert_ne!(client_id, "panic", "requested by the test");
        if client_id == "not-yours" {
            return Err(ReasonCode::NotAuthorized);
        }
        let matches = self.users.lock().get(name).is_some_and(|known| Some(known.as_slice()) == password);
        if matches { Ok(self.user(name)) } else { Err(ReasonCode::BadUserNameOrPassword) }
    }

    fn refresh(&self, principal: &User, _client_id: &str) -> Option<Arc<User>> {
        let is_known = principal.name.is_empty() || self.users.lock().contains_key(&principal.name);
        is_known.then(|| self.user(&principal.name))
    }

    fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}

/// An event that was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    Opened,
    Closed(Closed),
    Rejected(Rejected),
    PublishDenied,
    SubscribeDenied,
    Revoked,
    TooLarge(QoS),
}

#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<Vec<Count>>);

impl Counts {
    pub(super) fn all(&self) -> Vec<Count> {
        self.0.lock().clone()
    }

    pub(super) fn has(&self, count: Count) -> bool {
        self.0.lock().contains(&count)
    }

    fn add(&self, count: Count) {
        self.0.lock().push(count);
    }
}

impl Observer for Counts {
    fn opened(&self) {
        self.add(Count::Opened);
    }

    fn closed(&self, reason: Closed) {
        self.add(Count::Closed(reason));
    }

    fn rejected(&self, reason: Rejected) {
        self.add(Count::Rejected(reason));
    }

    fn received(&self, _packet: &Packet) {}

    fn sent(&self, _packet: &Packet) {}

    fn bytes_received(&self, _bytes: usize) {}

    fn bytes_sent(&self, _bytes: usize) {}

    fn publish_denied(&self) {
        self.add(Count::PublishDenied);
    }

    fn subscribe_denied(&self) {
        self.add(Count::SubscribeDenied);
    }

    fn subscription_revoked(&self) {
        self.add(Count::Revoked);
    }

    fn dropped_too_large(&self, qos: QoS) {
        self.add(Count::TooLarge(qos));
    }
}
