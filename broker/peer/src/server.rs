//! Serves gRPC to holders of one role.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use covey_contract::proto::HelloRequest;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Server;
use tracing::{debug, warn};

use super::identity::{self, Role};
use super::stream::Stream;
use super::tls::Tls;

/// Calls that were given up before they were looked at.
const PENDING_RESETS: usize = 4096;
/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at the same time; more wait in the listener's queue.
const HANDSHAKES: usize = 64;
/// Pause after the system refused a connection, for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long requests may finish after shutdown began; streams never end by themselves.
const GRACE: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
const HELLO_PATH: &str = "/covey.v1.Peer/Hello";

/// The other end of a connection, found in a request's extensions.
#[derive(Debug, Clone)]
pub struct Caller {
    address: SocketAddr,
    hello: Arc<Mutex<Option<HelloRequest>>>,
}

impl Caller {
    fn new(address: SocketAddr) -> Self {
        Self { address, hello: Arc::new(Mutex::new(None)) }
    }

    /// Who sent a request that this module serves.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        request.extensions().get::<Self>().cloned().ok_or_else(|| Status::internal("connection is not known"))
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets the connection be used: the service calls it when it accepts a `Hello`.
    pub fn accept(&self, hello: HelloRequest) {
        *self.hello.lock() = Some(hello);
    }

    /// What the caller said of itself, once it was accepted.
    pub fn hello(&self) -> Option<HelloRequest> {
        self.hello.lock().clone()
    }
}

/// Serves until shutdown, on a connection only to holders of `role`. For brokers, everything but `Hello` is refused on a
/// connection whose `Hello` no service has accepted by [`Caller::accept`].
pub async fn serve(
    listener: TcpListener,
    tls: Tls,
    role: Role,
    routes: Routes,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let routes = match role {
        Role::Broker => Routes::from(routes.into_axum_router().layer(middleware::from_fn(require_hello))),
        Role::Operator => routes,
    };
    let (sender, incoming) = mpsc::channel(HANDSHAKES);
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(accept(listener, tls, role, sender)));
    let serving = Server::builder()
        // Peers are trusted; a busy machine gives up many calls at once, and the connection must outlive that.
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), shutdown.clone().cancelled_owned());
    tokio::select! {
        result = serving => result,
        () = async { shutdown.cancelled().await; tokio::time::sleep(GRACE).await } => Ok(()),
    }
}

async fn require_hello(request: Request, next: Next) -> Response {
    let greeted = request.extensions().get::<Caller>().is_some_and(|caller| caller.hello.lock().is_some());
    if greeted || request.uri().path() == HELLO_PATH {
        next.run(request).await
    } else {
        Status::failed_precondition("hello was not accepted on this connection")
            .into_http::<axum::body::Body>()
            .into_response()
    }
}

type Incoming = Stream<TlsStream<TcpStream>, Caller>;

async fn accept(listener: TcpListener, tls: Tls, role: Role, sender: mpsc::Sender<Result<Incoming, io::Error>>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let (socket, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, sender) = (tls.clone(), sender.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE, handshake(socket, &tls, role)).await {
                Ok(Ok(io)) => {
                    // Fails when the server has stopped: nobody to tell.
                    sender.send(Ok(Stream { io, held: Caller::new(address) })).await.ok();
                }
                Ok(Err(error)) => warn!(%address, %error, ?role, "refused a connection"),
                Err(_) => debug!(%address, "handshake timed out"),
            }
            drop(permit);
        });
    }
}

#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("failed to shake hands: {0}")]
    Tls(#[from] io::Error),
    #[error(transparent)]
    Identity(#[from] identity::Error),
}

async fn handshake(socket: TcpStream, tls: &Tls, role: Role) -> Result<TlsStream<TcpStream>, HandshakeError> {
    socket.set_nodelay(true)?;
    let io = TlsAcceptor::from(tls.server()).accept(socket).await?;
    let certificate = io.get_ref().1.peer_certificates().and_then(<[_]>::first);
    identity::check_uri(certificate, &tls.uri(role))?;
    Ok(io)
}
