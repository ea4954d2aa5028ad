//! Bounded waits: a condition is polled until it holds or a timeout expires.

use std::time::Duration;

use tokio::time::Instant;

const PAUSE: Duration = Duration::from_millis(50);

/// Polls `look` until it returns a value.
///
/// # Errors
/// Fails with `what` after `limit`.
pub async fn until<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> crate::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}
