//! Readiness: the checks, and the evaluation of those that depend on the node. The start and the drain set the others.
//!
//! Invariant: the broker is ready only while every check holds. All checks fail until they are set.

use std::sync::Arc;
use std::time::Duration;

use covey_node::Node;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::access::Access;
use crate::metrics::{Check, Label as _, Metrics};

/// Interval between evaluations of the checks.
const JUDGE: Duration = Duration::from_millis(200);

/// Handle on the readiness checks; cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// Checks that fail, in the order of [`Check::ALL`].
    failing: Arc<watch::Sender<Vec<Check>>>,
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

/// Evaluates the checks that depend on the node, at intervals.
pub(crate) struct Judge {
    pub(crate) node: Arc<Node>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) readiness: Readiness,
    pub(crate) access: Access,
}

impl Judge {
    /// Runs until shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(JUDGE)).await.is_some() {
            self.judge();
        }
    }

    fn judge(&self) {
        let leased = self.node.has_lease();
        let member = self.node.is_member();
        self.readiness.set(Check::Joined, member);
        self.readiness.set(Check::Lease, leased);
        self.readiness.set(Check::Access, self.access.is_loaded());
        self.metrics.node.fenced.set(i64::from(member && !leased));
    }
}
