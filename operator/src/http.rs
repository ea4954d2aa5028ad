//! The operator's HTTP server: `/metrics`, `/healthz` (the process runs), `/readyz` (the API server has its CRDs).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// The state that `/readyz` reports.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Mutex<Vec<String>>>);

impl Readiness {
    /// Creates a state that is not ready for these reasons.
    pub fn waiting(reasons: Vec<String>) -> Self {
        Self(Arc::new(Mutex::new(reasons)))
    }

    /// Replaces the reasons. The operator is ready if there are none.
    pub fn set(&self, reasons: Vec<String>) {
        *self.0.lock() = reasons;
    }
}

#[derive(Debug, Clone)]
struct Shared {
    metrics: Metrics,
    readiness: Readiness,
}

/// Serves HTTP on `address` until `shutdown` is cancelled.
///
/// # Errors
/// If the address cannot be bound, or accepting connections fails.
pub async fn serve(
    address: SocketAddr,
    metrics: Metrics,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/metrics", get(render))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .with_state(Shared { metrics, readiness });
    let listener = TcpListener::bind(address).await?;
    axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn render(State(shared): State<Shared>) -> impl IntoResponse {
    match shared.metrics.render() {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text),
        Err(error) => {
            let text = error.to_string().into_bytes();
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], text)
        }
    }
}

async fn ready(State(shared): State<Shared>) -> (StatusCode, String) {
    let reasons = shared.readiness.0.lock().clone();
    if reasons.is_empty() {
        (StatusCode::OK, "ok\n".into())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", reasons.join("\n")))
    }
}
