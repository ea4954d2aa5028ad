//! Serves gRPC to clients of one role.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use covey_contract::proto::HelloRequest;
use futures::future::BoxFuture;
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

/// HTTP/2 streams that a peer may reset before they are accepted.
const PENDING_RESETS: usize = 4096;
/// TLS handshake timeout.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Concurrent handshakes. Further connections wait in the listener's queue.
const HANDSHAKES: usize = 64;
/// Pause after a failed accept, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time for requests in progress after shutdown began. Streams do not end by themselves.
const GRACE: Duration = Duration::from_secs(2);
/// Interval of HTTP/2 pings.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Time to wait for the reply to a ping before the connection is closed.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 receive window of a stream in bytes.
const STREAM_WINDOW: u32 = 4 << 20;
/// HTTP/2 receive window of the connection in bytes.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Path of the only call that is allowed before `Hello` was accepted.
const HELLO_PATH: &str = "/covey.v1.Peer/Hello";

/// The client of a connection, stored in the extensions of its requests.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Address of the client.
    address: SocketAddr,
    /// The accepted `Hello`; `None` before. Shared by all requests of the connection.
    hello: Arc<Mutex<Option<HelloRequest>>>,
}

impl Caller {
    fn new(address: SocketAddr) -> Self {
        Self { address, hello: Arc::new(Mutex::new(None)) }
    }

    /// Returns the client that sent the request.
    ///
    /// # Errors
    /// Fails if the request was not served by [`serve`].
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        request.extensions().get::<Self>().cloned().ok_or_else(|| Status::internal("connection is not known"))
    }

    /// Returns the address of the client.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Allows all calls on the connection. The service calls it when it accepts a `Hello`.
    pub fn accept(&self, hello: HelloRequest) {
        *self.hello.lock() = Some(hello);
    }

    /// Returns the accepted `Hello`; `None` if none was accepted.
    pub fn hello(&self) -> Option<HelloRequest> {
        self.hello.lock().clone()
    }
}

/// Serves `routes` until shutdown to clients whose certificate has `role`. For brokers, every call but `Hello` is
/// refused until the service has accepted a `Hello` on the connection by [`Caller::accept`].
///
/// # Errors
/// Fails if the server fails.
pub fn serve(
    listener: TcpListener,
    tls: Tls,
    role: Role,
    routes: Routes,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<(), tonic::transport::Error>> {
    Box::pin(async move {
        let routes = match role {
            Role::Broker => Routes::from(routes.into_axum_router().layer(middleware::from_fn(require_hello))),
            Role::Operator => routes,
        };
        let (sender, incoming) = mpsc::channel(HANDSHAKES);
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(accept(listener, tls, role, sender)));
        let serving = Server::builder()
            // Peers are trusted. A busy node cancels many calls at once, and the connection must survive that.
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
    })
}

/// Refuses every call but `Hello` until a `Hello` was accepted on the connection.
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

/// Accepts connections and sends them to the server after their handshake.
async fn accept(listener: TcpListener, tls: Tls, role: Role, sender: mpsc::Sender<Result<Incoming, io::Error>>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let (socket, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "failed to accept a connection, accepting pauses");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, sender) = (tls.clone(), sender.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE_TIMEOUT, handshake(socket, &tls, role)).await {
                Ok(Ok(io)) => {
                    // Fails only if the server has stopped.
                    sender.send(Ok(Stream { io, held: Caller::new(address) })).await.ok();
                }
                Ok(Err(error)) => warn!(%address, %error, ?role, "connection refused"),
                Err(_) => debug!(%address, "tls handshake timed out"),
            }
            drop(permit);
        });
    }
}

#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("tls handshake failed: {0}")]
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
