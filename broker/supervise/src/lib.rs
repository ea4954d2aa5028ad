//! Supervision of tasks: essential tasks end the process when they fail, others only end themselves.
//!
//! The runtime catches the panic of a task and goes on. A shard whose leader task is gone would be led by a node that
//! answers no request, and no other node would be elected. Therefore every long-lived task runs under a [`Supervisor`],
//! which ends the process if one panics or ends. The groups then elect other leaders, and the process restarts from its
//! disk. The task of one client or one stream is only [`contained`].
//!
//! This crate catches panics and reports them. It does not end the process itself: the broker gives the function that
//! does. Start reading at [`Supervisor`].

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// Ends the process if an essential task fails; cheap to clone.
#[derive(Clone)]
pub struct Supervisor {
    /// Called with the reason why the process must end.
    fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").finish_non_exhaustive()
    }
}

impl Supervisor {
    /// Creates a supervisor. `fatal` is called with the reason why the process must end, possibly more than once and by
    /// several tasks at the same time.
    pub fn new(fatal: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { fatal: Arc::new(fatal) }
    }

    /// Runs a task until `stop`. A panic or an earlier end of the task is fatal.
    pub async fn lasting(self, name: &'static str, stop: CancellationToken, task: impl Future<Output = ()>) {
        match stop.run_until_cancelled(caught(name, task)).await {
            Some(Err(reason)) => (self.fatal)(&format!("task {name} panicked: {reason}")),
            Some(Ok(())) if !stop.is_cancelled() => {
                error!(task = name, "an essential task ended, the process ends");
                (self.fatal)(&format!("task {name} ended"));
            }
            Some(Ok(())) | None => {}
        }
    }

    /// Runs a task until `stop` or until it ends by itself. A panic is fatal.
    pub async fn ending(self, name: &'static str, stop: CancellationToken, task: impl Future<Output = ()>) {
        if let Some(Err(reason)) = stop.run_until_cancelled(caught(name, task)).await {
            (self.fatal)(&format!("task {name} panicked: {reason}"));
        }
    }
}

/// Runs the task of one client or one stream. A panic ends this task only.
pub async fn contained(name: &'static str, task: impl Future<Output = ()>) {
    drop(caught(name, task).await);
}

/// Runs a task and catches its panic, which is logged with the task's name.
///
/// # Errors
/// Returns the message of the panic.
pub fn caught<T, F: Future<Output = T>>(
    name: &'static str,
    task: F,
) -> impl Future<Output = Result<T, String>> + use<T, F> {
    // Unwind safe: the state of the task is dropped with it, or the process ends.
    let done = AssertUnwindSafe(task).catch_unwind();
    done.map(move |done| {
        done.map_err(|panic| {
            let reason = text(&*panic);
            error!(task = name, reason, "a task panicked");
            reason
        })
    })
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// Counts every panic of the process from now on, in any task or thread. The former panic hook runs after the counting.
pub fn count_panics(count: impl Fn() + Send + Sync + 'static) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        count();
        before(panic);
    }));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use parking_lot::Mutex;

    use super::*;

    /// Returns a supervisor and the reasons that it reported as fatal.
    fn supervisor() -> (Supervisor, Arc<Mutex<Vec<String>>>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = told.clone();
        (Supervisor::new(move |reason| telling.lock().push(reason.to_owned())), told)
    }

    #[tokio::test]
    async fn a_task_that_panics_ends_the_process() {
        let (supervisor, told) = supervisor();
        supervisor.clone().lasting("leader", CancellationToken::new(), async { panic!("broken") }).await;
        supervisor.ending("formation", CancellationToken::new(), async { panic!("at {}", 7) }).await;
        assert_eq!(*told.lock(), ["task leader panicked: broken", "task formation panicked: at 7"]);
    }

    #[tokio::test]
    async fn a_task_that_ends_unasked_ends_the_process_unless_it_may() {
        let (supervisor, told) = supervisor();
        supervisor.clone().ending("formation", CancellationToken::new(), async {}).await;
        assert_eq!(*told.lock(), [""; 0]);
        supervisor.lasting("keeper", CancellationToken::new(), async {}).await;
        assert_eq!(*told.lock(), ["task keeper ended"]);
    }

    #[tokio::test]
    async fn a_task_that_is_stopped_is_no_fault() {
        let (supervisor, told) = supervisor();
        let stop = CancellationToken::new();
        let until_stopped = stop.clone();
        let task = tokio::spawn(supervisor.clone().lasting("http", stop.clone(), async move {
            until_stopped.cancelled().await;
        }));
        let endless = tokio::spawn(supervisor.lasting("holder", stop.clone(), std::future::pending()));
        stop.cancel();
        task.await.unwrap();
        endless.await.unwrap();
        assert_eq!(*told.lock(), [""; 0]);
    }

    #[tokio::test]
    async fn a_contained_panic_is_counted_and_ends_nothing_else() {
        let panics = Arc::new(AtomicU64::new(0));
        let counted = panics.clone();
        count_panics(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        contained("connection", async { panic!("of one client") }).await;
        tokio::task::spawn_blocking(|| panic!("of a worker")).await.unwrap_err();
        assert!(panics.load(Ordering::Relaxed) >= 2);
    }
}
