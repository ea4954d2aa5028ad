//! The plain HTTP port: `/metrics` for Prometheus, `/livez` and `/readyz` for the kubelet.
//!
//! Invariant: the broker is ready only while every check holds. All checks fail until they are set.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::metrics::{self, Check, Label as _, Metrics};

/// Time for responses in progress after shutdown began.
const GRACE: Duration = Duration::from_secs(1);

/// Handle on the readiness checks; cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// Checks that fail, in the order of [`Check::ALL`].
    failing: Arc<watch::Sender<Vec<Check>>>,
    /// Gauges that mirror the checks.
    metrics: Arc<Metrics>,
}

impl Readiness {
    /// Returns a handle with every check failing.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { failing: Arc::new(watch::Sender::new(Check::ALL.to_vec())), metrics }
    }

    /// Sets whether a check holds.
    pub fn set(&self, check: Check, holds: bool) {
        self.failing.send_if_modified(|failing| {
            let before = failing.len();
            failing.retain(|other| *other != check);
            if !holds {
                failing.push(check);
                failing.sort_unstable_by_key(|check| check.position());
            }
            // Under the lock of the channel, so that the gauges always agree with it.
            self.metrics.node.readiness.get(check).set(i64::from(holds));
            self.metrics.node.ready.set(i64::from(failing.is_empty()));
            let changed = failing.len() != before;
            if changed {
                info!(check = check.text(), holds, ready = failing.is_empty(), "readiness changed");
            }
            changed
        });
    }

    /// Returns the checks that fail.
    pub fn failing(&self) -> Vec<Check> {
        self.failing.borrow().clone()
    }

    /// Returns whether every check holds.
    pub fn is_ready(&self) -> bool {
        self.failing.borrow().is_empty()
    }

    /// Returns a receiver of the failing checks.
    pub fn subscribe(&self) -> watch::Receiver<Vec<Check>> {
        self.failing.subscribe()
    }
}

/// Serves the HTTP port until shutdown.
///
/// # Errors
/// Fails if the listener fails.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(show_metrics).with_state(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(show_readiness).with_state(readiness));
    let serving = axum::serve(listener, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    tokio::select! {
        result = serving => result,
        () = async { shutdown.cancelled().await; tokio::time::sleep(GRACE).await } => Ok(()),
    }
}

async fn show_metrics(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn show_readiness(State(readiness): State<Readiness>) -> Response {
    let failing = readiness.failing();
    if failing.is_empty() {
        return "ready\n".into_response();
    }
    let text: String = failing.iter().flat_map(|check| [check.text(), "\n"]).collect();
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio_util::sync::DropGuard;

    use super::*;

    struct Server {
        address: std::net::SocketAddr,
        readiness: Readiness,
        _stop: DropGuard,
    }

    async fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Metrics::new("0", "0").unwrap();
        let readiness = Readiness::new(metrics.clone());
        let shutdown = CancellationToken::new();
        tokio::spawn(serve(listener, metrics, readiness.clone(), shutdown.clone()));
        Server { address, readiness, _stop: shutdown.drop_guard() }
    }

    /// Returns the HTTP status and the body.
    async fn get(server: &Server, path: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn readiness_names_what_fails() {
        let server = start().await;
        assert_eq!(get(&server, "/livez").await, (200, "ok\n".into()));
        let all = "disk\njoined\nlease\naccess\ncertificate\nnot_draining\n";
        assert_eq!(get(&server, "/readyz").await, (503, all.into()));
        for check in Check::ALL {
            assert!(!server.readiness.is_ready());
            server.readiness.set(*check, true);
        }
        assert_eq!(get(&server, "/readyz").await, (200, "ready\n".into()));
        server.readiness.set(Check::Lease, false);
        server.readiness.set(Check::Lease, false);
        assert_eq!(get(&server, "/readyz").await, (503, "lease\n".into()));
        assert_eq!(server.readiness.failing(), [Check::Lease]);
    }

    #[tokio::test]
    async fn metrics_follow_readiness() {
        let server = start().await;
        let (status, text) = get(&server, "/metrics").await;
        assert_eq!(status, 200);
        assert!(text.contains("mqtt_broker_ready 0\n"), "{text}");
        for check in Check::ALL {
            server.readiness.set(*check, true);
        }
        let (_, text) = get(&server, "/metrics").await;
        assert!(text.contains("mqtt_broker_ready 1\n"), "{text}");
        assert!(text.contains("mqtt_broker_readiness_check{check=\"lease\"} 1\n"), "{text}");
        assert_eq!(get(&server, "/elsewhere").await.0, 404);
    }
}
