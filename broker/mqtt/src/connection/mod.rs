//! One client's connection, from its first byte to its last: the protocol of MQTT 5 and MQTT 3.1.1 between a byte stream
//! and a [`Session`](crate::session::Session).
//!
//! The listener runs [`serve`] in one task per socket; that task spawns no other. Invariants: packets of a client are
//! handled in the order they came; acknowledgements leave in the order of their PUBLISH; what the session does is begun
//! when its packet is read and never waited for in line, so a held acknowledgement stops neither the client's own
//! acknowledgements nor its pings; everything that a client can make grow has a bound.
//!
//! ```text
//! socket -> Input -> on_packet --(calls)--> Session --(futures)--> Replies -> Output -> socket
//!                                  Session --(Event)-----------> on_event -> Output
//!
//! handshake: Connecting --CONNECT accepted--> Open --Ending--> closed
//!                  \--Refusal--> closed
//! ```
//!
//! One turn of the loop takes what is there from one source, then whatever the others have ready, and then writes once.

mod aliases;
mod close;
mod deliveries;
mod drain;
mod guard;
mod handshake;
mod inbound;
mod keep_alive;
mod open;
mod outbound;
mod packet_ids;
mod replies;
mod subscribe;
#[cfg(test)]
mod tests;
mod wire;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use covey_contract::config::Config;
use covey_supervise::caught;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tracing::{Instrument, info, info_span};

pub use close::{Closed, Rejected};
pub use drain::Drain;
pub use guard::{Guard, Observer, Principal};

use crate::session::Sessions;

/// Bytes of unanswered packets of one client, as long as its packets are not larger.
const HELD_BYTES_MAX: usize = 1 << 20;

/// Largest CONNECT in bytes: a will and a password of 64 KiB at most.
const CONNECT_SIZE_MAX: usize = 128 << 10;
/// Bytes of all CONNECTs whose clients are not admitted yet.
const CONNECT_BYTES_MAX: usize = 16 << 20;

/// Bounds of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Clients that may be connected at once.
    pub max_connections: usize,
    /// Largest packet in bytes that a client may send.
    pub max_packet_size: u32,
    /// Largest CONNECT in bytes: its sender is not known yet.
    pub connect_size_max: usize,
    /// Bytes that the CONNECTs of all clients may take that are not admitted yet, beyond the first KiB of each.
    pub connect_bytes_max: usize,
    /// Publishes at QoS 1 and 2 that a client may have unacknowledged; never zero.
    pub receive_maximum: u16,
    /// Highest topic alias that a client may use.
    pub topic_alias_maximum: u16,
    /// Bytes of packets that a client may have unanswered, publishes and requests each; above it is not read. At least
    /// `max_packet_size`, so that one packet is always taken.
    pub held_bytes_max: usize,
    /// Filters that one connection may subscribe to.
    pub max_subscriptions: usize,
    /// Session expiry of an MQTT 5 client with CleanStart 0, a client id of its own and no interval.
    pub expiry_when_unset: Duration,
    /// Upper bound of every session expiry, and that of an MQTT 3.1.1 client with CleanSession 0.
    pub expiry_max: Duration,
    /// Upper bound of the keep alive of MQTT 5 clients, in seconds; `None` takes every one, 0 (off) included.
    pub keep_alive_max: Option<u16>,
    /// How long a client has from the first byte it could send to the end of its CONNECT.
    pub connect_timeout: Duration,
    /// How long a client may take nothing of what is written for it.
    pub write_timeout: Duration,
    /// How long a connection that holds too many publishes is left unread before it is closed.
    pub stall_timeout: Duration,
}

impl Limits {
    /// The bounds that a configuration sets; the timeouts are fixed.
    pub fn from_config(config: &Config) -> Self {
        Self {
            max_connections: usize::try_from(config.mqtt.max_connections).unwrap_or(usize::MAX),
            max_packet_size: config.mqtt.max_packet_size,
            connect_size_max: CONNECT_SIZE_MAX,
            connect_bytes_max: CONNECT_BYTES_MAX,
            receive_maximum: config.mqtt.receive_maximum.max(1),
            topic_alias_maximum: config.mqtt.topic_alias_maximum,
            held_bytes_max: HELD_BYTES_MAX.max(usize::try_from(config.mqtt.max_packet_size).unwrap_or(usize::MAX)),
            max_subscriptions: usize::try_from(config.sessions.max_subscriptions).unwrap_or(usize::MAX),
            expiry_when_unset: config.sessions.expiry_when_unset,
            expiry_max: config.sessions.expiry_max,
            keep_alive_max: None,
            connect_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(5),
        }
    }
}

/// What all connections of a node share.
pub struct Context<N, G> {
    sessions: Arc<N>,
    guard: Arc<G>,
    observer: Arc<dyn Observer>,
    limits: Limits,
    slots: Arc<Semaphore>,
    /// Bytes that CONNECTs of clients that are not admitted may still take.
    connect_bytes: Arc<Semaphore>,
    drain: Drain,
}

impl<N, G> std::fmt::Debug for Context<N, G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("limits", &self.limits).field("drain", &self.drain).finish_non_exhaustive()
    }
}

impl<N: Sessions, G: Guard> Context<N, G> {
    /// Puts the node, its rules and its counters behind all listeners; `drain` ends their connections.
    pub fn new(
        sessions: Arc<N>,
        guard: Arc<G>,
        observer: Arc<dyn Observer>,
        limits: Limits,
        drain: Drain,
    ) -> Arc<Self> {
        let slots = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
        let connect_bytes = Arc::new(Semaphore::new(limits.connect_bytes_max.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { sessions, guard, observer, limits, slots, connect_bytes, drain })
    }

    /// Clients that hold a slot, connected or about to be.
    pub fn connections(&self) -> usize {
        self.limits.max_connections.saturating_sub(self.slots.available_permits())
    }

    pub(crate) fn observer(&self) -> &dyn Observer {
        self.observer.as_ref()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn drain(&self) -> &Drain {
        &self.drain
    }
}

/// Serves one client until its connection is over. Ends by itself; aborting it ends the session as a broken connection.
pub async fn serve<IO, N, G>(io: IO, peer: IpAddr, context: Arc<Context<N, G>>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
    N: Sessions,
    G: Guard,
{
    let span = info_span!("connection", %peer, client_id = tracing::field::Empty);
    connection(io, peer, context).instrument(span).await;
}

async fn connection<IO, N, G>(mut io: IO, peer: IpAddr, context: Arc<Context<N, G>>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
    N: Sessions,
    G: Guard,
{
    // Boxed, so that an idle connection does not keep the room that its handshake needed.
    let accepted = caught("handshake", Box::pin(handshake::accept(&mut io, peer, &context))).await;
    match accepted {
        Err(_) => context.observer.rejected(Rejected::InternalError),
        Ok(Ok(open)) => {
            let observer = Arc::clone(&context.observer);
            if caught("connection", open.run(io)).await.is_err() {
                observer.closed(Closed::InternalError);
            }
        }
        Ok(Err(refused)) => {
            let handshake::Refused { refusal, output } = *refused;
            context.observer.rejected(refusal.rejected);
            info!(reason = refusal.rejected.text(), detail = %refusal.detail, "connection refused");
            wire::say_goodbye(io, output).await;
        }
    }
}
