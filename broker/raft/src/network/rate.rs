//! A limit on bytes per second, shared by all snapshots that a node sends.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Limits bytes per second. A single request may exceed the limit; later ones wait for it.
#[derive(Debug)]
pub(crate) struct Rate {
    /// Limit; `None` for no limit.
    per_second: Option<u64>,
    /// Time from which the next bytes may be sent.
    paid_at: Mutex<Instant>,
}

impl Rate {
    /// Returns a limit of `per_second` bytes; `None` and 0 mean no limit.
    pub(crate) fn new(per_second: Option<u64>) -> Self {
        Self { per_second: per_second.filter(|rate| *rate > 0), paid_at: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` more bytes may be sent.
    pub(crate) async fn take(&self, bytes: usize) {
        let Some(per_second) = self.per_second else { return };
        let nanos = u128::try_from(bytes).unwrap_or(u128::MAX).saturating_mul(1_000_000_000) / u128::from(per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let wait_until = {
            let mut paid_at = self.paid_at.lock();
            let begin = (*paid_at).max(Instant::now());
            *paid_at = begin + cost;
            begin
        };
        tokio::time::sleep_until(wait_until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_leave_no_faster_than_the_limit() {
        let rate = Rate::new(Some(1000));
        let start = Instant::now();
        for _ in 0..5 {
            rate.take(500).await;
        }
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }
}
