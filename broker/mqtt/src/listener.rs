//! Accepts client sockets and spawns a connection task for each.
//!
//! There is one [`Listener`] per configured port. Invariants: every socket is either served by one task of the node's
//! [`Drain`](crate::connection::Drain), or closed at once and counted. Running out of file descriptors slows down
//! accepting but never ends it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::connection::{self, Context, Guard, Rejected};
use crate::session::Sessions;

/// Sockets allowed beyond `max_connections`: handshakes in progress, and clients being refused because of the limit.
const SPARE_SOCKETS: usize = 1000;
/// Pause after the first failed accept.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest pause after repeated failures.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A port on which clients are served.
#[derive(Debug)]
pub struct Listener<N, G> {
    /// The bound socket.
    socket: TcpListener,
    /// State shared by all connections of the node.
    context: Arc<Context<N, G>>,
    /// One permit per socket that may be open on this port.
    room: Arc<Semaphore>,
}

impl<N: Sessions, G: Guard> Listener<N, G> {
    /// Binds the port. Nothing is accepted before [`Listener::run`].
    ///
    /// # Errors
    /// Fails if the address cannot be bound.
    pub async fn bind(address: SocketAddr, context: Arc<Context<N, G>>) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let room = context.limits().max_connections.saturating_add(SPARE_SOCKETS).min(Semaphore::MAX_PERMITS);
        Ok(Self { socket, context, room: Arc::new(Semaphore::new(room)) })
    }

    /// Returns the bound address.
    ///
    /// # Errors
    /// Fails if the system cannot report the address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts until the node drains.
    pub async fn run(self) {
        let stopped = self.context.drain().stopped().clone();
        let mut backoff = BACKOFF_MIN;
        loop {
            let accepted = tokio::select! {
                () = stopped.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    backoff = BACKOFF_MIN;
                    self.serve(stream, peer);
                }
                Err(error) if is_of_one_peer(&error) => debug!(%error, "socket closed before it was accepted"),
                Err(error) => {
                    warn!(%error, pause = ?backoff, "failed to accept a client socket, accepting pauses");
                    tokio::select! {
                        () = stopped.cancelled() => return,
                        () = sleep(backoff) => {}
                    }
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    /// Spawns the connection task of a socket, or closes the socket if too many are open.
    fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            self.context.observer().rejected(Rejected::Overload);
            return;
        };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "failed to set TCP_NODELAY, small packets may be delayed");
        }
        let context = Arc::clone(&self.context);
        self.context.drain().tasks().spawn(async move {
            connection::serve(stream, peer.ip().to_canonical(), context).await;
            drop(room);
        });
    }
}

/// Returns whether the error concerns one socket only, so that the next accept may succeed at once.
fn is_of_one_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
