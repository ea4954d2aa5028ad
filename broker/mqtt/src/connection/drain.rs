//! How the clients of a node are sent away: at a rate, and at once when the time is over.
//!
//! Every connection waits for a permit of one semaphore that has none while the node serves. The node's shutdown calls
//! [`Drain::run`] once; listeners and connections hold clones.

use std::time::Duration;

use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often clients are let go while draining.
const TICK: Duration = Duration::from_millis(50);

/// Ends listeners and connections.
#[derive(Debug, Clone)]
pub struct Drain {
    leave: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Default for Drain {
    fn default() -> Self {
        Self { leave: Arc::new(Semaphore::new(0)), stop: CancellationToken::new(), tasks: TaskTracker::new() }
    }
}

impl Drain {
    /// Stops accepting, then sends `rate` clients a second away with DISCONNECT 0x8B (MQTT 3.1.1: closes); what is left
    /// at `deadline` is sent away at once. Returns when every connection is over.
    pub async fn run(&self, rate: u32, deadline: Duration) {
        self.stop.cancel();
        self.tasks.close();
        let begin = Instant::now();
        let mut released: u64 = 0;
        let mut ticks = tokio::time::interval(TICK);
        let mut done = std::pin::pin!(self.tasks.wait());
        loop {
            tokio::select! {
                () = &mut done => return,
                _ = ticks.tick() => {}
            }
            let elapsed = begin.elapsed();
            if elapsed >= deadline {
                break;
            }
            let due = u64::from(rate).saturating_mul(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)) / 1000;
            self.leave.add_permits(usize::try_from(due.saturating_sub(released)).unwrap_or(0));
            released = due;
        }
        self.leave.close();
        done.await;
    }

    /// Cancelled when no further socket may be accepted.
    pub fn stopped(&self) -> &CancellationToken {
        &self.stop
    }

    /// Where connection tasks run.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Resolves when it is this caller's turn to go.
    pub(crate) async fn turn(&self) {
        if let Ok(permit) = self.leave.acquire().await {
            permit.forget();
        }
    }
}
