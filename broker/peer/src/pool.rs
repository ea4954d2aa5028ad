//! Keeps one greeted connection per peer and purpose.
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
use covey_raft::{ChannelError, Channels, NodeId, Purpose};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;
use tracing::{debug, info};

use super::client::{self, ConnectError};
use super::tls::Tls;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
const HELLO: Duration = Duration::from_secs(1);

/// Sends `Hello` to a peer over a connection that nothing else uses yet, and gives its answer.
pub type Greet = dyn Fn(u32, Channel) -> BoxFuture<'static, Result<HelloReply, Status>> + Send + Sync;

/// Why there is no channel to a peer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("failed to say hello: {0}")]
    Hello(Box<Status>),
    #[error("hello was not answered in time")]
    HelloTimedOut,
    /// The peer belongs elsewhere, or has seen a later incarnation of this node.
    #[error("peer refused: {0}")]
    Refused(String),
    /// The ordinal is there, with another disk.
    #[error("node {found:016x} answers in place of node {wanted:016x}")]
    OtherNode { wanted: u64, found: u64 },
    /// The last attempt failed a moment ago.
    #[error("waiting before the next attempt")]
    Pausing,
    #[error("connecting was interrupted")]
    Interrupted,
}

/// A cheap handle on all connections to peers.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    tls: Tls,
    peers: Peers,
    greet: Box<Greet>,
    slots: Mutex<HashMap<(u32, Purpose), Arc<Slot>>>,
}

#[derive(Default)]
struct Slot {
    ready: ArcSwapOption<Ready>,
    /// Held by the one that connects.
    pause: tokio::sync::Mutex<Pause>,
}

struct Ready {
    channel: Channel,
    node: u64,
    over: CancellationToken,
}

#[derive(Default)]
struct Pause {
    until: Option<Instant>,
    length: Duration,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("peers", &self.inner.peers).finish_non_exhaustive()
    }
}

impl Pool {
    pub fn new(
        tls: Tls,
        peers: Peers,
        greet: impl Fn(u32, Channel) -> BoxFuture<'static, Result<HelloReply, Status>> + Send + Sync + 'static,
    ) -> Self {
        Self { inner: Arc::new(Inner { tls, peers, greet: Box::new(greet), slots: Mutex::default() }) }
    }

    /// A greeted channel to the broker of that ordinal; at once when there is one. `node` is who it has to be, `None` takes
    /// whoever answers. Dropping the future does not interrupt the attempt.
    pub async fn channel(&self, node: Option<u64>, ordinal: u32, purpose: Purpose) -> Result<Channel, Error> {
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
    }

    /// Whether a connection to the ordinal stands that carries this purpose.
    pub fn is_connected(&self, ordinal: u32, purpose: Purpose) -> bool {
        self.inner.slots.lock().get(&(ordinal, purpose)).is_some_and(|slot| slot.ready().is_some())
    }
}

impl Channels for Pool {
    fn channel(&self, node: NodeId, ordinal: u32, purpose: Purpose) -> BoxFuture<'_, Result<Channel, ChannelError>> {
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
    async fn connect(&self, slot: &Slot, ordinal: u32, purpose: Purpose) -> Result<Arc<Ready>, Error> {
        let mut pause = slot.pause.lock().await;
        if let Some(ready) = slot.ready() {
            return Ok(ready);
        }
        if pause.until.is_some_and(|until| Instant::now() < until) {
            return Err(Error::Pausing);
        }
        match self.attempt(ordinal).await {
            Ok(ready) => {
                info!(ordinal, ?purpose, node = format_args!("{:016x}", ready.node), "connected to a peer");
                let ready = Arc::new(ready);
                slot.ready.store(Some(ready.clone()));
                // Also where a connection ends as soon as it stands.
                *pause = Pause { until: Some(Instant::now() + PAUSE_MIN), length: Duration::ZERO };
                Ok(ready)
            }
            Err(error) => {
                debug!(ordinal, ?purpose, %error, "failed to connect to a peer");
                pause.length = (pause.length * 2).clamp(PAUSE_MIN, PAUSE_MAX);
                pause.until = Some(Instant::now() + pause.length);
                Err(error)
            }
        }
    }

    async fn attempt(&self, ordinal: u32) -> Result<Ready, Error> {
        let host = self.peers.host_of(ordinal);
        let port = self.peers.port_of(self.peers.port, ordinal);
        let (channel, over) = client::connect(&self.tls, host, port).await?;
        let reply = timeout(HELLO, (self.greet)(ordinal, channel.clone())).await.map_err(|_| Error::HelloTimedOut)?;
        let reply = reply.map_err(|status| Error::Hello(Box::new(status)))?;
        if !reply.refused.is_empty() {
            return Err(Error::Refused(reply.refused));
        }
        Ok(Ready { channel, node: reply.node_id, over })
    }
}
