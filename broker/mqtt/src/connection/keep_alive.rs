//! The keep alive of one connection (3.1.2.10): when a silent client counts as gone.
//!
//! Invariant: only time in which the connection was read counts.

use std::time::Duration;

use tokio::time::Instant;

/// Watches for silence.
#[derive(Debug)]
pub(super) struct KeepAlive {
    /// `None` where the client turned it off.
    patience: Option<Duration>,
    heard: Instant,
}

impl KeepAlive {
    /// Begins now; `seconds` is the negotiated keep alive and 0 is off.
    pub(super) fn new(seconds: u16) -> Self {
        let patience = (seconds > 0).then(|| Duration::from_millis(u64::from(seconds) * 1500));
        Self { patience, heard: Instant::now() }
    }

    /// The client was heard, or could not have been.
    pub(super) fn touch(&mut self) {
        if self.patience.is_some() {
            self.heard = Instant::now();
        }
    }

    /// When silence becomes too long: one and a half times the keep alive [MQTT-3.1.2-22].
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.patience.map(|patience| self.heard + patience)
    }
}
