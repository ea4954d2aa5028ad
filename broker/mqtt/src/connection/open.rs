//! The loop of an accepted connection: waits for one event, handles everything that is ready, writes once.
//!
//! The handshake creates an [`Open`] and the connection task runs it to its [`Ending`]. Invariants: the session is
//! ended exactly once, also when the task is dropped. A connection with too many unanswered packets is not read, and
//! its keep alive does not run meanwhile.

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

/// Most events of the session that are handled in one turn.
const EVENTS_PER_TURN: usize = 64;
/// Unanswered requests other than publishes above which a client is not read.
const HELD_REQUESTS_MAX: usize = 256;
/// Duration of the timer while there is no deadline.
const NO_DEADLINE: Duration = Duration::from_hours(24);

/// Result of a successful handshake; [`Open`] documents the fields.
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

/// A session that is ended when this value is dropped, so that it ends with its connection in every case.
pub(super) struct Owned<S: Session> {
    session: S,
    /// How the session is ended; set before the drop if the connection ended regularly.
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

/// A connection whose client was admitted.
pub(super) struct Open<N: Sessions, G: Guard> {
    /// State shared by all connections.
    pub(super) context: Arc<Context<N, G>>,
    /// Client id, given or assigned.
    pub(super) client_id: MqttStr,
    /// Protocol version of the client.
    pub(super) version: ProtocolVersion,
    /// The user with its rights under the revision that was last seen.
    pub(super) principal: Arc<G::Principal>,
    /// Requests to the node; dropping it ends the session's use by this connection.
    pub(super) session: Owned<N::Session>,
    /// Effective session expiry; zero is a transient session.
    pub(super) expiry: Duration,
    /// Bytes to be written.
    pub(super) output: Output,
    /// Replies that the session has not finished.
    pub(super) replies: Replies,
    /// Topic aliases set by the client.
    pub(super) aliases: Aliases,
    /// Packet identifiers in use by the client.
    pub(super) packet_ids: PacketIds,
    /// Deliveries that the client has not acknowledged.
    pub(super) deliveries: Deliveries,
    /// Filters of the session with the QoS requested on this connection; QoS 0 for filters of a resumed session.
    pub(super) filters: HashMap<MqttStr, QoS>,
    /// Bytes read but not decoded.
    input: Input,
    /// Events from the node.
    events: mpsc::Receiver<Event>,
    /// Keep alive timer.
    keep_alive: KeepAlive,
    /// Time since which too many publishes are unacknowledged and none has been acknowledged; `None` if there are not.
    pub(super) stalled: Option<Instant>,
    /// Revision of the access rules.
    revision: watch::Receiver<u64>,
    /// Counts the client towards `max_connections`.
    _slot: OwnedSemaphorePermit,
}

/// What ended a wait of the loop.
enum Wake {
    /// The socket made progress.
    Stream(Progress),
    /// The node sent an event; `None` if it closed the channel.
    Event(Option<Event>),
    /// A reply is ready.
    Reply(Reply),
    /// The access rules changed.
    Rules,
    /// The drain asks this connection to end.
    Leave,
    /// A deadline may have passed.
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

    /// Serves the client until the connection ends.
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

    /// Runs the loop and returns how the connection ends.
    async fn serve<IO: AsyncRead + AsyncWrite + Unpin>(&mut self, io: &mut IO) -> Ending {
        let context = Arc::clone(&self.context);
        self.revoke_subscriptions();
        let mut leave = pin!(context.drain.turn());
        let mut rules = pin!(changed(self.revision.clone()));
        let mut timer = pin!(sleep_until(Instant::now() + NO_DEADLINE));
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

    /// Handles everything that is ready without waiting, then writes as much as the socket accepts.
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
                return Err(Ending::told(Closed::Drain, code, "node closed the session's event channel"));
            }
            Wake::Reply(reply) => return self.on_reply(reply),
            Wake::Rules => return self.on_rules(),
            Wake::Leave => {
                return Err(Ending::told(Closed::Drain, ReasonCode::ServerShuttingDown, "node is stopping"));
            }
        }
        Ok(())
    }

    /// Handles the buffered packets while the client may be read.
    fn decode(&mut self) -> Result<(), Ending> {
        while self.is_readable() {
            let Some((packet, size)) = self.input.decode()? else { break };
            self.keep_alive.touch();
            self.context.observer.received(&packet);
            self.on_packet(packet, size)?;
        }
        Ok(())
    }

    /// Returns whether further packets may be read: the output and the queues of replies have room.
    fn is_readable(&self) -> bool {
        let requests = self.replies.held_requests();
        let has_room = requests.count < HELD_REQUESTS_MAX && requests.bytes <= self.context.limits.held_bytes_max;
        self.output.has_room() && has_room && !self.holds_too_much()
    }

    /// Returns whether the client's unacknowledged publishes exceed their bounds. They are bounded in number as well as
    /// in bytes, since MQTT 3.1.1 has no receive maximum.
    fn holds_too_much(&self) -> bool {
        let (limits, held) = (&self.context.limits, self.replies.held_publishes());
        held.count > usize::from(limits.receive_maximum) || held.bytes > limits.held_bytes_max
    }

    /// Starts or clears the stall timer of an MQTT 3.1.1 client. MQTT 5 clients have none: the receive maximum bounds
    /// them.
    fn watch_held_publishes(&mut self) {
        if self.version == ProtocolVersion::V5 || !self.holds_too_much() {
            self.stalled = None;
        } else if self.stalled.is_none() {
            self.stalled = Some(Instant::now());
        }
    }

    /// Returns the earliest deadline: write timeout, stall timeout or keep alive.
    fn deadline(&self) -> Instant {
        let limits = &self.context.limits;
        let write = self.output.stalled().map(|since| since + limits.write_timeout);
        let stall = self.stalled.map(|since| since + limits.stall_timeout);
        let silence = self.keep_alive.deadline().filter(|_| self.is_readable());
        let earliest = [write, stall, silence].into_iter().flatten().min();
        earliest.unwrap_or_else(|| Instant::now() + NO_DEADLINE)
    }

    /// Ends the connection if a deadline has passed.
    async fn on_timer<IO: AsyncRead + Unpin>(&mut self, io: &mut IO) -> Result<(), Ending> {
        let now = Instant::now();
        let over = |since: Option<Instant>, bound: Duration| since.is_some_and(|since| now >= since + bound);
        if over(self.output.stalled(), self.context.limits.write_timeout) {
            return Err(Ending::silent(Closed::WriteTimeout, "client reads nothing"));
        }
        if over(self.stalled, self.context.limits.stall_timeout) {
            let detail = "too many publishes are unacknowledged";
            return Err(Ending::silent(Closed::PublishStalled, detail));
        }
        if self.keep_alive.deadline().is_none_or(|deadline| now < deadline) || !self.is_readable() {
            return Ok(());
        }
        // Bytes that arrived while this task did not run count as activity of the client.
        let read = peek_read(io, &mut self.input).await?;
        self.context.observer.bytes_received(read);
        self.decode()?;
        if self.keep_alive.deadline().is_some_and(|deadline| now >= deadline) {
            return Err(Ending::told(Closed::KeepAliveTimeout, ReasonCode::KeepAliveTimeout, "keep alive timed out"));
        }
        Ok(())
    }

    /// Refreshes the principal and its subscriptions under the new rules.
    fn on_rules(&mut self) -> Result<(), Ending> {
        let fresh = self.context.guard.refresh(&self.principal, &self.client_id);
        let Some(principal) = fresh else {
            return Err(Ending::told(
                Closed::Revoked,
                ReasonCode::NotAuthorized,
                "user was removed or may no longer use the client id",
            ));
        };
        self.principal = principal;
        self.revoke_subscriptions();
        Ok(())
    }

    /// Removes the subscriptions that the rules do not allow.
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

/// Resolves when the revision of the rules changes; never if it can no longer change.
async fn changed(mut revision: watch::Receiver<u64>) -> watch::Receiver<u64> {
    if revision.changed().await.is_err() {
        pending::<()>().await;
    }
    revision
}
