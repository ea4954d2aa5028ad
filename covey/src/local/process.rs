//! One broker as a child process: started, restarted when it dies, stopped with the program.
//!
//! ```text
//!  start -> running -- ends by itself --> pause (200 ms, doubled up to 10 s) -> start
//!              '------ shutdown: SIGTERM -> deadline -> SIGKILL -> gone
//! ```
//! Invariant: a broker does not outlive this program, however it ends (`--parent` asks the kernel for that).

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

const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A broker that ran this long is given the short pause again.
const SETTLED: Duration = Duration::from_secs(30);
/// On top of the drain deadline: leaderships move, logs close.
const STOP_MARGIN: Duration = Duration::from_secs(10);
/// A log beyond this many bytes is put aside when its broker starts.
const LOG_MAX: u64 = 16 << 20;

/// What a broker is started with.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// `<cluster>-<ordinal>`.
    pub(super) name: String,
    pub(super) config: PathBuf,
    pub(super) log: PathBuf,
    /// How long clients may take to leave when it stops.
    pub(super) drain: Duration,
}

/// A broker that is kept running.
#[derive(Debug)]
pub(super) struct Process {
    pid: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

impl Process {
    /// Starts the broker and keeps it running until `shutdown`.
    pub(super) fn start(plan: Plan, shutdown: CancellationToken) -> Self {
        let pid = Arc::new(AtomicU32::new(0));
        let task = tokio::spawn(keep(plan, pid.clone(), shutdown));
        Self { pid, task }
    }

    /// Process id; absent: it is not running now.
    pub(super) fn pid(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// Waits until it has ended after the shutdown.
    pub(super) async fn ended(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "failed to watch a broker");
        }
    }
}

async fn keep(plan: Plan, pid: Arc<AtomicU32>, shutdown: CancellationToken) {
    let mut pause = PAUSE_MIN;
    while !shutdown.is_cancelled() {
        let started = Instant::now();
        match spawn(&plan) {
            Ok(child) => run(&plan, child, &pid, &shutdown).await,
            Err(error) => tracing::error!(broker = plan.name, %error, "failed to start a broker"),
        }
        pid.store(0, Ordering::Relaxed);
        if started.elapsed() > SETTLED {
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
    // A group of its own: Ctrl-C reaches this program alone, which then stops its brokers in order.
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
        Some(Err(error)) => tracing::error!(broker = plan.name, %error, "failed to wait for a broker"),
        None => stop(plan, &mut child).await,
    }
}

fn report(plan: &Plan, status: ExitStatus) {
    let said = last_word(&plan.log).unwrap_or_default();
    let log = plan.log.display();
    tracing::warn!(broker = plan.name, %status, said, %log, "broker ended; it is started again");
}

/// The sentence with which a broker that refused to start ended its log.
fn last_word(log: &Path) -> Option<String> {
    let text = std::fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().next_back()?.strip_prefix("covey: ").map(str::to_owned)
}

async fn stop(plan: &Plan, child: &mut Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(Err(error)) = pid.map(|pid| kill_process(pid, Signal::TERM)) {
        tracing::warn!(broker = plan.name, %error, "failed to ask a broker to stop");
    }
    let deadline = plan.drain + STOP_MARGIN;
    if tokio::time::timeout(deadline, child.wait()).await.is_err() {
        tracing::warn!(broker = plan.name, "broker did not stop in time; it is killed");
        if let Err(error) = child.kill().await {
            tracing::error!(broker = plan.name, %error, "failed to kill a broker");
        }
    }
}
