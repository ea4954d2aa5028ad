//! The loop of an accepted connection: waits for one source, takes what the others have ready, writes once.
//!
//! The handshake makes an [`Open`] and the connection task runs it to its [`Ending`]. Invariants: the session is ended
//! exactly once, also when the task is dropped; a connection that owes more than it may is not read, and silence of the
//! client does not count meanwhile.

use std::collections::HashMap;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use covey_codec::packet::Disconnect;
use covey_codec::{MqttStr, Packet, ProtocolVersion, QoS, ReasonCode};
use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::Context;
use super::aliases::Aliases;
use super::close::{Closed, Ending};
use super::deliveries::Deliveries;
use super::guard::{Guard, Principal};
use super::keep_alive::KeepAlive;
use super::packet_ids::PacketIds;
use super::replies::{Order, Replies, Reply};
use super::wire::{Input, Output, Progress, offer, peek_read, progress, say_goodbye};
use crate::session::{Ended, Event, Session, Sessions};

/// Events taken in one turn.
const EVENTS_PER_TURN: usize = 64;
/// Requests other than publishes that a client may have unanswered before it is not read any more.
const HELD_REQUESTS_MAX: usize = 256;
/// A timer that has nothing to wait for.
const FAR: Duration = Duration::from_hours(24);

/// What the handshake found out.
pub(super) struct Parts<N: Sessions, G: Guard> {
    pub(super) session: Owned<N::Session>,
    pub(super) events: mpsc::Receiver<Event>,
    /// Filters of a resumed session.
    pub(super) filters: Vec<MqttStr>,
    pub(super) slot: OwnedSemaphorePermit,
    pub(super) client_id: MqttStr,
    pub(super) version: ProtocolVersion,
    pub(super) principal: Arc<G::Principal>,
    pub(super) revision: watch::Receiver<u64>,
    pub(super) expiry: Duration,
    pub(super) keep_alive: KeepAlive,
}

/// A session that is ended when its connection is, whichever way that goes.
pub(super) struct Owned<S: Session> {
    session: S,
    ended: Ended,
}

impl<S: Session> Owned<S> {
    pub(super) fn new(session: S) -> Self {
        Self { session, ended: Ended { drop_will: false, expiry: None } }
    }
}

impl<S: Session> std::ops::Deref for Owned<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.session
    }
}

impl<S: Session> Drop for Owned<S> {
    fn drop(&mut self) {
        self.session.end(self.ended);
    }
}

/// A connection whose CONNACK said success.
pub(super) struct Open<N: Sessions, G: Guard> {
    pub(super) context: Arc<Context<N, G>>,
    pub(super) client_id: MqttStr,
    pub(super) version: ProtocolVersion,
    pub(super) principal: Arc<G::Principal>,
    pub(super) session: Owned<N::Session>,
    pub(super) expiry: Duration,
    pub(super) output: Output,
    pub(super) replies: Replies,
    pub(super) aliases: Aliases,
    pub(super) packet_ids: PacketIds,
    pub(super) deliveries: Deliveries,
    /// The session's filters, with the QoS asked for on this connection; 0 for those of a resumed session.
    pub(super) filters: HashMap<MqttStr, QoS>,
    input: Input,
    events: mpsc::Receiver<Event>,
    keep_alive: KeepAlive,
    /// Since when more publishes are held than may be, and none was acknowledged.
    pub(super) stalled: Option<Instant>,
    revision: watch::Receiver<u64>,
    _slot: OwnedSemaphorePermit,
}

enum Wake {
    Stream(Progress),
    Event(Option<Event>),
    Reply(Reply),
    Rules,
    Leave,
    Timer,
}

impl<N: Sessions, G: Guard> Open<N, G> {
    pub(super) fn new(parts: Parts<N, G>, input: Input, output: Output, context: Arc<Context<N, G>>) -> Box<Self> {
        Box::new(Self {
            aliases: Aliases::new(context.limits.topic_alias_maximum),
            context,
            client_id: parts.client_id,
            version: parts.version,
            principal: parts.principal,
            session: parts.session,
            expiry: parts.expiry,
            output,
            replies: Replies::default(),
            packet_ids: PacketIds::default(),
            deliveries: Deliveries::default(),
            filters: parts.filters.into_iter().map(|filter| (filter, QoS::AtMostOnce)).collect(),
            input,
            events: parts.events,
            keep_alive: parts.keep_alive,
            stalled: None,
            revision: parts.revision,
            _slot: parts.slot,
        })
    }

    /// Serves the client until the connection is over.
    pub(super) async fn run<IO: AsyncRead + AsyncWrite + Unpin>(mut self: Box<Self>, mut io: IO) {
        info!(principal = self.principal.name(), "connection opened");
        let ending = self.serve(&mut io).await;
        let Self { context, version, mut session, mut output, .. } = *self;
        session.ended = ending.ended;
        drop(session);
        context.observer.closed(ending.closed);
        let code = ending.code.map(u8::from);
        info!(reason = ending.closed.text(), code, detail = %ending.detail, "connection closed");
        if let Some(code) = ending.code.filter(|_| version == ProtocolVersion::V5) {
            let packet = Packet::Disconnect(Disconnect::new(code));
            if output.push(&packet).is_ok() {
                context.observer.sent(&packet);
            }
        }
        if ending.closed != Closed::WriteTimeout {
            say_goodbye(io, output).await;
        }
    }

    async fn serve<IO: AsyncRead + AsyncWrite + Unpin>(&mut self, io: &mut IO) -> Ending {
        let context = Arc::clone(&self.context);
        self.revoke_subscriptions();
        let mut leave = pin!(context.drain.turn());
        let mut rules = pin!(changed(self.revision.clone()));
        let mut timer = pin!(sleep_until(Instant::now() + FAR));
        loop {
            if let Err(ending) = self.turn(io).await {
                return ending;
            }
            let due = self.deadline();
            if due < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(due);
            }
            let readable = self.is_readable();
            let wake = tokio::select! {
                stream = progress(io, &mut self.input, &mut self.output, readable) => stream.map(Wake::Stream),
                event = self.events.recv(), if self.output.has_room() => Ok(Wake::Event(event)),
                reply = self.replies.next() => Ok(Wake::Reply(reply)),
                revision = &mut rules => { rules.set(changed(revision)); Ok(Wake::Rules) }
                () = &mut leave => Ok(Wake::Leave),
                () = &mut timer => Ok(Wake::Timer),
            };
            if !readable {
                self.keep_alive.touch();
            }
            let done = match wake {
                Ok(Wake::Timer) => self.on_timer(io).await,
                Ok(wake) => self.on_wake(wake),
                Err(error) => Err(error.into()),
            };
            if let Err(ending) = done {
                return ending;
            }
        }
    }

    /// Takes what is ready without waiting, then offers everything that is to be sent.
    async fn turn<IO: AsyncRead + AsyncWrite + Unpin>(&mut self, io: &mut IO) -> Result<(), Ending> {
        while let Some(reply) = self.replies.next().now_or_never() {
            self.on_reply(reply)?;
        }
        self.decode()?;
        for _ in 0..EVENTS_PER_TURN {
            if !self.output.has_room() {
                break;
            }
            let Ok(event) = self.events.try_recv() else { break };
            self.on_event(event)?;
        }
        offer(io, &mut self.output).await?;
        match self.output.take_sent() {
            0 => {}
            sent => self.context.observer.bytes_sent(sent),
        }
        self.watch_held_publishes();
        Ok(())
    }

    fn on_wake(&mut self, wake: Wake) -> Result<(), Ending> {
        match wake {
            Wake::Stream(Progress::Read(bytes)) => self.context.observer.bytes_received(bytes),
            Wake::Stream(Progress::Written) | Wake::Timer => {}
            Wake::Stream(Progress::Ended) => return Err(Ending::silent(Closed::Lost, "stream ended")),
            Wake::Event(Some(event)) => return self.on_event(event),
            Wake::Event(None) => {
                let code = ReasonCode::ServerShuttingDown;
                return Err(Ending::told(Closed::Drain, code, "node let go of the session"));
            }
            Wake::Reply(reply) => return self.on_reply(reply),
            Wake::Rules => return self.on_rules(),
            Wake::Leave => {
                return Err(Ending::told(Closed::Drain, ReasonCode::ServerShuttingDown, "node sends its clients away"));
            }
        }
        Ok(())
    }

    /// Handles the packets that have come, as long as more may be taken.
    fn decode(&mut self) -> Result<(), Ending> {
        while self.is_readable() {
            let Some((packet, size)) = self.input.decode()? else { break };
            self.keep_alive.touch();
            self.context.observer.received(&packet);
            self.on_packet(packet, size)?;
        }
        Ok(())
    }

    fn is_readable(&self) -> bool {
        let requests = self.replies.held_requests();
        let has_room = requests.count < HELD_REQUESTS_MAX && requests.bytes <= self.context.limits.held_bytes_max;
        self.output.has_room() && has_room && !self.holds_too_much()
    }

    /// Bounds what a client may publish ahead, in bytes; in number too, as MQTT 3.1.1 has no receive maximum.
    fn holds_too_much(&self) -> bool {
        let (limits, held) = (&self.context.limits, self.replies.held_publishes());
        held.count > usize::from(limits.receive_maximum) || held.bytes > limits.held_bytes_max
    }

    /// Only MQTT 3.1.1 clients are closed for it: those of MQTT 5 keep to the receive maximum and wait.
    fn watch_held_publishes(&mut self) {
        if self.version == ProtocolVersion::V5 || !self.holds_too_much() {
            self.stalled = None;
        } else if self.stalled.is_none() {
            self.stalled = Some(Instant::now());
        }
    }

    fn deadline(&self) -> Instant {
        let limits = &self.context.limits;
        let write = self.output.stalled().map(|since| since + limits.write_timeout);
        let stall = self.stalled.map(|since| since + limits.stall_timeout);
        let silence = self.keep_alive.deadline().filter(|_| self.is_readable());
        let earliest = [write, stall, silence].into_iter().flatten().min();
        earliest.unwrap_or_else(|| Instant::now() + FAR)
    }

    async fn on_timer<IO: AsyncRead + Unpin>(&mut self, io: &mut IO) -> Result<(), Ending> {
        let now = Instant::now();
        let over = |since: Option<Instant>, bound: Duration| since.is_some_and(|since| now >= since + bound);
        if over(self.output.stalled(), self.context.limits.write_timeout) {
            return Err(Ending::silent(Closed::WriteTimeout, "client takes nothing"));
        }
        if over(self.stalled, self.context.limits.stall_timeout) {
            let detail = "too many publishes wait for their acknowledgement";
            return Err(Ending::silent(Closed::PublishStalled, detail));
        }
        if self.keep_alive.deadline().is_none_or(|deadline| now < deadline) || !self.is_readable() {
            return Ok(());
        }
        // Bytes that came while this task did not run speak for the client.
        let read = peek_read(io, &mut self.input).await?;
        self.context.observer.bytes_received(read);
        self.decode()?;
        if self.keep_alive.deadline().is_some_and(|deadline| now >= deadline) {
            return Err(Ending::told(Closed::KeepAliveTimeout, ReasonCode::KeepAliveTimeout, "keep alive timed out"));
        }
        Ok(())
    }

    /// Looks at the client again under new rules.
    fn on_rules(&mut self) -> Result<(), Ending> {
        let fresh = self.context.guard.refresh(&self.principal, &self.client_id);
        let Some(principal) = fresh else {
            return Err(Ending::told(Closed::Revoked, ReasonCode::NotAuthorized, "user is gone"));
        };
        self.principal = principal;
        self.revoke_subscriptions();
        Ok(())
    }

    /// Ends the subscriptions that the rules do not allow.
    fn revoke_subscriptions(&mut self) {
        let (principal, client_id) = (&self.principal, &self.client_id);
        let revoked: Vec<MqttStr> = self
            .filters
            .extract_if(|filter, qos| !principal.may_subscribe(client_id, filter, *qos))
            .map(|(filter, _)| filter)
            .collect();
        if revoked.is_empty() {
            return;
        }
        info!(count = revoked.len(), "subscriptions revoked");
        for _ in &revoked {
            self.context.observer.subscription_revoked();
        }
        let done = self.session.unsubscribe(revoked);
        self.replies.push(Order::Subscription, 0, done.map(|_| Reply::Revoked));
    }
}

/// Resolves with the next revision of the rules; never when there will be none.
async fn changed(mut revision: watch::Receiver<u64>) -> watch::Receiver<u64> {
    if revision.changed().await.is_err() {
        pending::<()>().await;
    }
    revision
}
