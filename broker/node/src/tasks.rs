//! Tasks of the node: started, supervised, and awaited at its end.

use covey_supervise::{Supervisor, contained};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Starts the tasks of a node; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    /// All tasks of the node, to wait for them at its end.
    tracker: TaskTracker,
    /// Ends the process if a task fails that the node cannot do without.
    supervisor: Supervisor,
    /// Cancelled when the node stops.
    shutdown: CancellationToken,
}

impl Tasks {
    pub(crate) fn new(supervisor: Supervisor, shutdown: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), supervisor, shutdown }
    }

    /// Starts the task of one client or one stream. It ends with the node; a panic affects only what the task owns.
    pub(crate) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        self.tracker.spawn(async move {
            shutdown.run_until_cancelled(contained(name, task)).await;
        });
    }

    /// Starts a task that the node cannot do without.
    pub(crate) fn spawn_lasting(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_lasting_until(name, self.shutdown.clone(), task);
    }

    /// Starts a task that the node cannot do without before `stop`.
    pub(crate) fn spawn_lasting_until(
        &self,
        name: &'static str,
        stop: CancellationToken,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.tracker.spawn(self.supervisor.clone().lasting(name, stop, task));
    }

    /// Starts a task that ends by itself, at the latest with the node. A panic ends the process.
    pub(crate) fn spawn_ending(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(self.supervisor.clone().ending(name, self.shutdown.clone(), task));
    }

    /// Returns the token that is cancelled when the node stops.
    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Waits until all tasks have ended. They do so when the node stops.
    pub(crate) async fn finish(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}
