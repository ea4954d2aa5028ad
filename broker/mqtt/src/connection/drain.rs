//! Disconnects the clients of a stopping node: at a limited rate, and all at once when the deadline has passed.
//!
//! Every connection waits for a permit of a semaphore that has none while the node serves. The shutdown calls
//! [`Drain::run`] once; listeners and connections hold clones.

use std::time::Duration;

use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Interval at which permits are added while draining.
const DRAIN_TICK: Duration = Duration::from_millis(50);

/// Handle that ends listeners and connections; cheap to clone.
#[derive(Debug, Clone)]
pub struct Drain {
    /// One permit per connection that has to end; closed when all of them have to.
    leave: Arc<Semaphore>,
    /// Cancelled when listeners have to stop.
    stop: CancellationToken,
    /// Tasks of all connections.
    tasks: TaskTracker,
}

impl Default for Drain {
    fn default() -> Self {
        Self { leave: Arc::new(Semaphore::new(0)), stop: CancellationToken::new(), tasks: TaskTracker::new() }
    }
}

impl Drain {
    /// Stops accepting, then disconnects `rate` clients per second with DISCONNECT 0x8B (MQTT 3.1.1: without a packet).
    /// The clients that are left after `deadline` are disconnected at once. Returns when every connection has ended.
    pub async fn run(&self, rate: u32, deadline: Duration) {
        self.stop.cancel();
        self.tasks.close();
        let begin = Instant::now();
        let mut released: u64 = 0;
        let mut ticks = tokio::time::interval(DRAIN_TICK);
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

    /// Returns the token that is cancelled when no further socket may be accepted.
    pub fn stopped(&self) -> &CancellationToken {
        &self.stop
    }

    /// Returns the tracker that runs the connection tasks.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Resolves when the calling connection has to end.
    pub(crate) async fn turn(&self) {
        if let Ok(permit) = self.leave.acquire().await {
            permit.forget();
        }
    }
}
