//! One broker as a child process: it is started, restarted when it ends, and stopped with the program.
//!
//! ```text
//!  start -> running -- ends by itself --> pause (200 ms, doubled up to 10 s) -> start
//!              '------ shutdown: SIGTERM -> deadline -> SIGKILL
//! ```
//! Invariant: a broker does not outlive this program, even if it is killed (`--parent` sets the parent death signal).

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Pause before the first restart.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause before a restart.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Run time after which the next restart uses the shortest pause again.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// Time to stop in addition to the drain deadline, for the transfer of leaderships and for closing the log.
const STOP_MARGIN: Duration = Duration::from_secs(10);
/// Size in bytes above which a log file is rotated when its broker starts.
const LOG_MAX: u64 = 16 << 20;

/// Parameters of a broker process.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// `<cluster>-<ordinal>`.
    pub(super) name: String,
    /// Configuration file.
    pub(super) config: PathBuf,
    /// Log file.
    pub(super) log: PathBuf,
    /// Drain deadline of the broker.
    pub(super) drain: Duration,
}

/// A broker process that is restarted when it ends.
#[derive(Debug)]
pub(super) struct Process {
    /// Process id; 0 means that it is not running.
    pid: Arc<AtomicU32>,
    /// Task that starts the process and waits for it.
    task: tokio::task::JoinHandle<()>,
}

impl Process {
    /// Starts the broker and keeps it running until `shutdown`.
    pub(super) fn start(plan: Plan, shutdown: CancellationToken) -> Self {
        let pid = Arc::new(AtomicU32::new(0));
        let task = tokio::spawn(keep(plan, pid.clone(), shutdown));
        Self { pid, task }
    }

    /// Returns the process id; `None` if the broker is not running.
    pub(super) fn pid(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// Waits until the broker has ended after the shutdown.
    pub(super) async fn ended(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "task of a broker process failed");
        }
    }
}

async fn keep(plan: Plan, pid: Arc<AtomicU32>, shutdown: CancellationToken) {
    let mut pause = PAUSE_MIN;
    while !shutdown.is_cancelled() {
        let started = Instant::now();
        match spawn(&plan) {
            Ok(child) => run(&plan, child, &pid, &shutdown).await,
            Err(error) => tracing::error!(broker = plan.name, %error, "failed to start a broker, it is retried"),
        }
        pid.store(0, Ordering::Relaxed);
        if started.elapsed() > STABLE_AFTER {
            pause = PAUSE_MIN;
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = PAUSE_MAX.min(pause * 2);
    }
}

fn spawn(plan: &Plan) -> std::io::Result<Child> {
    if std::fs::metadata(&plan.log).is_ok_and(|log| log.len() > LOG_MAX) {
        std::fs::rename(&plan.log, plan.log.with_extension("log.1"))?;
    }
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&plan.log)?;
    // Own process group: Ctrl-C is sent to this program only, which then stops its brokers.
    Command::new(std::env::current_exe()?)
        .arg("broker")
        .arg("--config")
        .arg(&plan.config)
        .args(["--name", &plan.name, "--parent", &std::process::id().to_string()])
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

async fn run(plan: &Plan, mut child: Child, pid: &AtomicU32, shutdown: &CancellationToken) {
    pid.store(child.id().unwrap_or(0), Ordering::Relaxed);
    tracing::info!(broker = plan.name, pid = child.id(), "broker started");
    match shutdown.run_until_cancelled(child.wait()).await {
        Some(Ok(status)) => report(plan, status),
        Some(Err(error)) => tracing::error!(broker = plan.name, %error, "failed to wait for a broker, it is restarted"),
        None => stop(plan, &mut child).await,
    }
}

fn report(plan: &Plan, status: ExitStatus) {
    let said = last_word(&plan.log).unwrap_or_default();
    let log = plan.log.display();
    tracing::warn!(broker = plan.name, %status, said, %log, "broker ended, it is restarted");
}

/// Returns the error in the last line of the log of a broker that refused to start.
fn last_word(log: &Path) -> Option<String> {
    let text = std::fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().next_back()?.strip_prefix("covey: ").map(str::to_owned)
}

async fn stop(plan: &Plan, child: &mut Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(Err(error)) = pid.map(|pid| kill_process(pid, Signal::TERM)) {
        tracing::warn!(broker = plan.name, %error, "failed to send sigterm to a broker");
    }
    let deadline = plan.drain + STOP_MARGIN;
    if tokio::time::timeout(deadline, child.wait()).await.is_err() {
        tracing::warn!(broker = plan.name, "broker did not stop in time, it is killed");
        if let Err(error) = child.kill().await {
            tracing::error!(broker = plan.name, %error, "failed to kill a broker");
        }
    }
}
