//! The plain HTTP port: `/metrics` for Prometheus, `/livez` and `/readyz` for the kubelet.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::{self, Label as _, Metrics};
use crate::readiness::Readiness;

/// Time for responses in progress after shutdown began.
const GRACE: Duration = Duration::from_secs(1);

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
    use crate::metrics::Check;

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
