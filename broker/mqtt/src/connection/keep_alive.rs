//! The keep alive of one connection (MQTT 5, 3.1.2.10): the time after which a silent client counts as gone.
//!
//! Invariant: time in which the connection was not read does not count.

use std::time::Duration;

use tokio::time::Instant;

/// Keep alive timer.
#[derive(Debug)]
pub(super) struct KeepAlive {
    /// Longest silence; `None` if the client turned the keep alive off.
    patience: Option<Duration>,
    /// Time of the last packet, or the last time at which the connection was not read.
    heard: Instant,
}

impl KeepAlive {
    /// Starts the timer. `seconds` is the negotiated keep alive; 0 turns it off.
    pub(super) fn new(seconds: u16) -> Self {
        let patience = (seconds > 0).then(|| Duration::from_millis(u64::from(seconds) * 1500));
        Self { patience, heard: Instant::now() }
    }

    /// Restarts the timer: a packet came, or the connection was not read.
    pub(super) fn touch(&mut self) {
        if self.patience.is_some() {
            self.heard = Instant::now();
        }
    }

    /// Returns the time at which the client counts as gone: after one and a half times the keep alive [MQTT-3.1.2-22].
    /// `None` if the keep alive is off.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.patience.map(|patience| self.heard + patience)
    }
}
