//! Accepts client sockets and gives each its connection task.
//!
//! One [`Listener`] per configured port, run by the node. Invariants: every socket is served by one task of the node's
//! [`Drain`](crate::connection::Drain), or closed at once and counted; running out of files slows accepting down and
//! never ends it.

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

/// Sockets beyond the limit of clients: those that are not yet connected, and those that are told about the limit.
const SPARE_SOCKETS: usize = 1000;
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A port on which clients are served.
#[derive(Debug)]
pub struct Listener<N, G> {
    socket: TcpListener,
    context: Arc<Context<N, G>>,
    room: Arc<Semaphore>,
}

impl<N: Sessions, G: Guard> Listener<N, G> {
    /// Binds the port; nothing is accepted before [`Listener::run`].
    pub async fn bind(address: SocketAddr, context: Arc<Context<N, G>>) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let room = context.limits().max_connections.saturating_add(SPARE_SOCKETS).min(Semaphore::MAX_PERMITS);
        Ok(Self { socket, context, room: Arc::new(Semaphore::new(room)) })
    }

    /// The address that was bound.
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
                Err(error) if is_of_one_peer(&error) => debug!(%error, "socket was gone before it was accepted"),
                Err(error) => {
                    warn!(%error, pause = ?backoff, "failed to accept a socket");
                    tokio::select! {
                        () = stopped.cancelled() => return,
                        () = sleep(backoff) => {}
                    }
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            self.context.observer().rejected(Rejected::Overload);
            return;
        };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "failed to turn off delayed sending");
        }
        let context = Arc::clone(&self.context);
        self.context.drain().tasks().spawn(async move {
            connection::serve(stream, peer.ip().to_canonical(), context).await;
            drop(room);
        });
    }
}

/// Errors that say nothing about the next socket.
fn is_of_one_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
