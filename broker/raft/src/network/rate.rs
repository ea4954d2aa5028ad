//! A limit on bytes per second, shared by everything that may use up a node's network.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Bytes per second with no burst beyond what is asked for at once.
#[derive(Debug)]
pub(crate) struct Rate {
    per_second: Option<u64>,
    /// When the bytes taken so far are paid for.
    paid_at: Mutex<Instant>,
}

impl Rate {
    /// No limit where `per_second` is `None`.
    pub(crate) fn new(per_second: Option<u64>) -> Self {
        Self { per_second: per_second.filter(|rate| *rate > 0), paid_at: Mutex::new(Instant::now()) }
    }

    /// Waits until the bytes may go.
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
