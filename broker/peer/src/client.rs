//! Establishes one connection to a broker.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use covey_contract::names;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

use super::identity::{self, Role};
use super::stream::Stream;
use super::tls::Tls;

/// Timeout of name resolution, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of HTTP/2 pings.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Time to wait for the reply to a ping before the connection is closed.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 receive window of a stream in bytes.
const STREAM_WINDOW: u32 = 4 << 20;
/// HTTP/2 receive window of the connection in bytes.
const CONNECTION_WINDOW: u32 = 32 << 20;

/// Error of [`connect`].
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("failed to resolve {host}: {source}")]
    Resolve { host: String, source: io::Error },
    #[error("{0} has no address")]
    NoAddress(String),
    #[error("failed to connect: {0}")]
    Connect(io::Error),
    #[error("tls handshake failed: {0}")]
    Tls(io::Error),
    #[error("peer has another identity: {0}")]
    Identity(#[from] identity::Error),
    #[error("connection timed out")]
    TimedOut,
    /// The connection of this channel has ended. The pool makes the next one.
    #[error("connection has ended")]
    Over,
    #[error("failed to start HTTP/2: {0}")]
    Http(#[from] tonic::transport::Error),
}

/// Returns a channel over exactly one connection, and a token that is cancelled when that connection ends.
///
/// tonic reconnects channels by itself. The [`Connector`] prevents that, since requests would run before a `Hello`.
pub(super) async fn connect(tls: &Tls, host: String, port: u16) -> Result<(Channel, CancellationToken), ConnectError> {
    let over = CancellationToken::new();
    let connector = Connector { tls: tls.clone(), host: host.into(), port, over: over.clone(), used: Arc::default() };
    let endpoint = Endpoint::from_static("http://peer")
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let connecting = endpoint.connect_with_connector(connector);
    let channel = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| ConnectError::TimedOut)??;
    Ok((channel, over))
}

/// Connects once; every further call fails.
struct Connector {
    tls: Tls,
    host: Arc<str>,
    port: u16,
    /// Cancelled when the connection has ended or a second one is asked for.
    over: CancellationToken,
    /// Whether the connector was called.
    used: Arc<AtomicBool>,
}

type Connection = TokioIo<Stream<TlsStream<TcpStream>, DropGuard>>;

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Connection, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let again = self.used.swap(true, Ordering::Relaxed);
        let (tls, host, port, over) = (self.tls.clone(), self.host.clone(), self.port, self.over.clone());
        Box::pin(async move {
            if again {
                // The connection accepts no more requests, although its streams may keep it open.
                over.cancel();
                return Err(ConnectError::Over);
            }
            let io = open(&tls, &host, port).await?;
            Ok(TokioIo::new(Stream { io, held: over.drop_guard() }))
        })
    }
}

/// Resolves the host, connects to its addresses in turn, and checks the identity of the peer.
async fn open(tls: &Tls, host: &str, port: u16) -> Result<TlsStream<TcpStream>, ConnectError> {
    let resolved = tokio::net::lookup_host((host, port)).await;
    let addresses = resolved.map_err(|source| ConnectError::Resolve { host: host.into(), source })?;
    let mut outcome = Err(ConnectError::NoAddress(host.into()));
    for address in addresses {
        outcome = TcpStream::connect(address).await.map_err(ConnectError::Connect);
        if outcome.is_ok() {
            break;
        }
    }
    let socket = outcome?;
    socket.set_nodelay(true).map_err(ConnectError::Connect)?;
    let name =
        ServerName::try_from(names::PEER_TLS_NAME).map_err(|error| ConnectError::Tls(io::Error::other(error)))?;
    let io = TlsConnector::from(tls.client()).connect(name, socket).await.map_err(ConnectError::Tls)?;
    let certificate = io.get_ref().1.peer_certificates().and_then(<[_]>::first);
    identity::check_uri(certificate, &tls.uri(Role::Broker))?;
    Ok(io)
}
