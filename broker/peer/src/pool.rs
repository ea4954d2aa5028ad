//! Keeps one connection per peer and purpose on which `Hello` was accepted.
//!
//! ```text
//!  idle --channel()--> connect, Hello --accepted--> ready --connection ends--> idle
//!                          +--failed--> pause (50 ms, doubled up to 1 s) --> idle
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use covey_contract::config::Peers;
use covey_contract::proto::HelloReply;
use covey_raft::{ChannelError, Channels, Purpose};
use covey_types::{NodeId, Ordinal};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;
use tracing::{debug, info};

use super::client::{self, ConnectError};
use super::tls::Tls;

/// Pause after the first failed attempt, and the least time between two connections.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause after repeated failures.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Timeout of `Hello`.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends `Hello` to the peer with the given ordinal over a new connection, and returns its reply.
pub type Greet = dyn Fn(Ordinal, Channel) -> BoxFuture<'static, Result<HelloReply, Status>> + Send + Sync;

/// Error of [`Pool::channel`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("hello failed: {0}")]
    Hello(Box<Status>),
    #[error("hello was not answered in time")]
    HelloTimedOut,
    /// The peer is of another cluster, or has seen a later incarnation of this node.
    #[error("peer refused: {0}")]
    Refused(String),
    /// The peer with the ordinal has another disk.
    #[error("node {found} answers in place of node {wanted}")]
    OtherNode { wanted: NodeId, found: NodeId },
    /// The pause after the last attempt is not over.
    #[error("waiting before the next attempt")]
    Pausing,
    #[error("connecting was interrupted")]
    Interrupted,
}

/// Handle on all connections to peers; cheap to clone.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    /// Certificates of this node.
    tls: Tls,
    /// Host names and ports of the peers.
    peers: Peers,
    /// Sends `Hello`.
    greet: Box<Greet>,
    /// Connections by ordinal and purpose.
    slots: Mutex<HashMap<(Ordinal, Purpose), Arc<Slot>>>,
}

/// The connection of one peer and purpose.
#[derive(Default)]
struct Slot {
    /// The last connection on which `Hello` was accepted; it may have ended.
    ready: ArcSwapOption<Ready>,
    /// Held while connecting, so that there is one attempt at a time.
    pause: tokio::sync::Mutex<Pause>,
}

/// A connection on which `Hello` was accepted.
struct Ready {
    channel: Channel,
    /// Node id from the reply to `Hello`.
    node: NodeId,
    /// Cancelled when the connection has ended.
    over: CancellationToken,
}

/// Pause before the next attempt.
#[derive(Default)]
struct Pause {
    /// End of the pause.
    until: Option<Instant>,
    /// Length of the pause after the last failure; zero after a success.
    length: Duration,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("peers", &self.inner.peers).finish_non_exhaustive()
    }
}

impl Pool {
    /// Creates a pool without connections. `greet` sends `Hello` on each new connection.
    pub fn new(
        tls: Tls,
        peers: Peers,
        greet: impl Fn(Ordinal, Channel) -> BoxFuture<'static, Result<HelloReply, Status>> + Send + Sync + 'static,
    ) -> Self {
        Self { inner: Arc::new(Inner { tls, peers, greet: Box::new(greet), slots: Mutex::default() }) }
    }

    /// Returns a channel to the broker with the given ordinal, and connects first if there is none. If `node` is set,
    /// the peer must have this node id. Dropping the future does not abort the attempt.
    ///
    /// # Errors
    /// Fails if the peer cannot be reached, refuses `Hello`, has another node id, or if the pause is not over.
    pub fn channel(
        &self,
        node: Option<NodeId>,
        ordinal: Ordinal,
        purpose: Purpose,
    ) -> BoxFuture<'_, Result<Channel, Error>> {
        Box::pin(async move {
            let slot = self.inner.slots.lock().entry((ordinal, purpose)).or_default().clone();
            let ready = if let Some(ready) = slot.ready() {
                ready
            } else {
                let inner = self.inner.clone();
                let attempt = tokio::spawn(async move { inner.connect(&slot, ordinal, purpose).await });
                attempt.await.map_err(|_| Error::Interrupted)??
            };
            match node {
                Some(wanted) if wanted != ready.node => Err(Error::OtherNode { wanted, found: ready.node }),
                _ => Ok(ready.channel.clone()),
            }
        })
    }

    /// Returns whether there is a connection to the ordinal for this purpose.
    pub fn is_connected(&self, ordinal: Ordinal, purpose: Purpose) -> bool {
        self.inner.slots.lock().get(&(ordinal, purpose)).is_some_and(|slot| slot.ready().is_some())
    }
}

impl Channels for Pool {
    fn channel(
        &self,
        node: NodeId,
        ordinal: Ordinal,
        purpose: Purpose,
    ) -> BoxFuture<'_, Result<Channel, ChannelError>> {
        // The inherent method, not this one.
        Box::pin(async move { self.channel(Some(node), ordinal, purpose).await.map_err(Into::into) })
    }
}

impl Slot {
    fn ready(&self) -> Option<Arc<Ready>> {
        self.ready.load_full().filter(|ready| !ready.over.is_cancelled())
    }
}

impl Inner {
    async fn connect(&self, slot: &Slot, ordinal: Ordinal, purpose: Purpose) -> Result<Arc<Ready>, Error> {
        let mut pause = slot.pause.lock().await;
        if let Some(ready) = slot.ready() {
            return Ok(ready);
        }
        if pause.until.is_some_and(|until| Instant::now() < until) {
            return Err(Error::Pausing);
        }
        match self.attempt(ordinal).await {
            Ok(ready) => {
                info!(ordinal = ordinal.get(), ?purpose, node = %ready.node, "connected to a peer");
                let ready = Arc::new(ready);
                slot.ready.store(Some(ready.clone()));
                // A pause after a success as well, in case the connection ends immediately.
                *pause = Pause { until: Some(Instant::now() + PAUSE_MIN), length: Duration::ZERO };
                Ok(ready)
            }
            Err(error) => {
                debug!(ordinal = ordinal.get(), ?purpose, %error, "failed to connect to a peer");
                pause.length = (pause.length * 2).clamp(PAUSE_MIN, PAUSE_MAX);
                pause.until = Some(Instant::now() + pause.length);
                Err(error)
            }
        }
    }

    async fn attempt(&self, ordinal: Ordinal) -> Result<Ready, Error> {
        let host = self.peers.host_of(ordinal.get());
        let port = self.peers.port_of(self.peers.port, ordinal.get());
        let (channel, over) = client::connect(&self.tls, host, port).await?;
        let reply =
            timeout(HELLO_TIMEOUT, (self.greet)(ordinal, channel.clone())).await.map_err(|_| Error::HelloTimedOut)?;
        let reply = reply.map_err(|status| Error::Hello(Box::new(status)))?;
        if !reply.refused.is_empty() {
            return Err(Error::Refused(reply.refused));
        }
        Ok(Ready { channel, node: NodeId::new(reply.node_id), over })
    }
}
