//! One client's connection: the protocols MQTT 5 and MQTT 3.1.1 between a byte stream and a
//! [`Session`](crate::session::Session).
//!
//! The listener runs [`serve`] in one task per socket; that task spawns no other. Invariants:
//!
//! - Packets of a client are handled in the order in which they arrive.
//! - Acknowledgements are sent in the order of their PUBLISH.
//! - Work of the session starts when its packet is read and is not awaited in line, so a delayed acknowledgement stops
//!   neither the client's own acknowledgements nor its pings.
//! - Every buffer and queue that a client can grow has a bound.
//!
//! ```text
//! socket -> Input -> on_packet --(calls)--> Session --(futures)--> Replies -> Output -> socket
//!                                  Session --(Event)-----------> on_event -> Output
//!
//! handshake --CONNECT accepted--> Open --Ending--> closed
//!          \--Refusal--> closed
//! ```
//!
//! Each turn of the loop handles one event, then everything else that is ready, and then writes once.

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

/// Bytes of unanswered packets of one client, unless a single packet may be larger.
const HELD_BYTES_MAX: usize = 1 << 20;

/// Largest CONNECT in bytes.
const CONNECT_SIZE_MAX: usize = 128 << 10;
/// Total bytes of the CONNECTs whose clients are not admitted yet.
const CONNECT_BYTES_MAX: usize = 16 << 20;

/// Bounds of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Clients that may be connected at once.
    pub max_connections: usize,
    /// Largest packet in bytes that a client may send.
    pub max_packet_size: u32,
    /// Largest CONNECT in bytes. It is bounded separately, because its sender is not authenticated yet.
    pub connect_size_max: usize,
    /// Total bytes of the CONNECTs of clients that are not admitted yet, beyond the first KiB of each.
    pub connect_bytes_max: usize,
    /// Publishes at QoS 1 and 2 that a client may have unacknowledged; never zero.
    pub receive_maximum: u16,
    /// Highest topic alias that a client may use; 0 means none.
    pub topic_alias_maximum: u16,
    /// Bytes of unanswered packets of a client, for publishes and for other requests each. Above it the connection is
    /// not read. At least `max_packet_size`, so that one packet is always accepted.
    pub held_bytes_max: usize,
    /// Filters that one connection may subscribe to.
    pub max_subscriptions: usize,
    /// Session expiry of an MQTT 5 client with Clean Start 0, a client id of its own and no Session Expiry Interval.
    pub expiry_when_unset: Duration,
    /// Upper bound of every session expiry, and the expiry of an MQTT 3.1.1 client with Clean Session 0.
    pub expiry_max: Duration,
    /// Upper bound of the keep alive of MQTT 5 clients, in seconds; `None` accepts any, including 0 (off).
    pub keep_alive_max: Option<u16>,
    /// Time from the accepted socket to the complete CONNECT.
    pub connect_timeout: Duration,
    /// Time after which a client that reads nothing is closed.
    pub write_timeout: Duration,
    /// Time after which an MQTT 3.1.1 client is closed that has more publishes unacknowledged than the server holds.
    pub stall_timeout: Duration,
}

impl Limits {
    /// Returns the bounds of a configuration. The timeouts are fixed.
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

/// State shared by all connections of a node.
pub struct Context<N, G> {
    /// The node.
    sessions: Arc<N>,
    /// Access control.
    guard: Arc<G>,
    /// Counters.
    observer: Arc<dyn Observer>,
    /// Bounds of each connection.
    limits: Limits,
    /// One permit per client that may still connect.
    slots: Arc<Semaphore>,
    /// One permit per byte that CONNECTs of clients that are not admitted may still occupy.
    connect_bytes: Arc<Semaphore>,
    /// Ends the connections when the node stops.
    drain: Drain,
}

impl<N, G> std::fmt::Debug for Context<N, G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("limits", &self.limits).field("drain", &self.drain).finish_non_exhaustive()
    }
}

impl<N: Sessions, G: Guard> Context<N, G> {
    /// Creates the state for all listeners of a node. `drain` ends their connections.
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

    /// Returns the number of clients that are connected or being admitted.
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

/// Serves one client until its connection ends. Aborting the task ends the session as if the connection had broken.
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
    // Boxed, so that an idle connection does not keep the memory of its handshake.
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
            let handshake::RefusedClient { refusal, output } = *refused;
            context.observer.rejected(refusal.rejected);
            info!(reason = refusal.rejected.text(), detail = %refusal.detail, "connection refused");
            wire::say_goodbye(io, output).await;
        }
    }
}
