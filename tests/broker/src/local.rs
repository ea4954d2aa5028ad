//! Runs `covey local` under test.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::Result;
use crate::wait::until;

const READY: Duration = Duration::from_mins(1);

/// Returns the path of the binary under test.
///
/// # Errors
/// Fails if `COVEY_BINARY` does not name a file.
#[expect(clippy::disallowed_methods, reason = "a test is configured by its environment")]
pub fn binary() -> Result<PathBuf> {
    let name = std::env::var("COVEY_BINARY").unwrap_or_default();
    ensure!(
        Path::new(&name).is_file(),
        "COVEY_BINARY must name the covey binary: run `cargo build -p covey`, then \
         `COVEY_BINARY=$PWD/target/debug/covey cargo test -p covey-tests`"
    );
    Ok(PathBuf::from(name))
}

/// Returns a port that is free together with the nine ports after it, below the range for outgoing connections.
///
/// # Errors
/// Fails if there is none.
pub fn free_port() -> Result<u16> {
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut candidates = (0..100).map(|_| rand::random_range(600..1900) * 10);
    let found = candidates.find(|port: &u16| (*port..port + 10).all(is_free));
    found.context("no ten free ports in a row")
}

/// One run of `covey local`. Dropping it kills the program, and its brokers end with it.
#[derive(Debug)]
pub struct Local {
    child: Child,
    data: PathBuf,
    /// JSON that the program printed when everything was ready.
    pub ready: Value,
}

impl Local {
    /// Starts the program and waits until everything is ready.
    ///
    /// # Errors
    /// Fails if the program ends or is not ready in time.
    pub async fn start(file: &Path, data: &Path, port: u16) -> Result<Self> {
        let mut child = Command::new(binary()?)
            .arg("local")
            .arg(file)
            .arg("--data")
            .arg(data)
            .args(["--port", &port.to_string(), "--output", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        let line =
            tokio::time::timeout(READY, lines.next_line()).await.context("covey local is not ready in time")??;
        let line = line.context("covey local ended before it was ready")?;
        Ok(Self { child, data: data.to_path_buf(), ready: serde_json::from_str(&line)? })
    }

    /// Reads `connect.json` from the data directory.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn connect(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&std::fs::read(self.data.join("connect.json"))?)?)
    }

    /// Returns the address of broker `ordinal`.
    pub fn address(&self, ordinal: usize) -> String {
        text(&self.ready, &format!("/clusters/0/brokers/{ordinal}/addresses/0"))
    }

    /// Returns the addresses of all brokers.
    pub fn addresses(&self) -> Vec<String> {
        let brokers = self.ready.pointer("/clusters/0/brokers").and_then(Value::as_array).map_or(0, Vec::len);
        (0..brokers).map(|ordinal| self.address(ordinal)).collect()
    }

    /// Returns the configuration file of broker `ordinal`.
    pub fn config(&self, ordinal: usize) -> PathBuf {
        PathBuf::from(text(&self.ready, &format!("/clusters/0/brokers/{ordinal}/config")))
    }

    /// Returns the current password of a user.
    ///
    /// # Errors
    /// Fails if there is no such user.
    pub fn password(&self, user: &str) -> Result<String> {
        let report = self.connect()?;
        let users = report.pointer("/clusters/0/users").and_then(Value::as_array).context("no users")?;
        let found = users.iter().find(|entry| text(entry, "/username") == user);
        found.map(|user| text(user, "/password")).with_context(|| format!("user {user} is not in connect.json"))
    }

    /// Returns the current process id of broker `ordinal`.
    ///
    /// # Errors
    /// Fails if the broker is not running.
    pub fn pid(&self, ordinal: usize) -> Result<u32> {
        let report = self.connect()?;
        let pid = report.pointer(&format!("/clusters/0/brokers/{ordinal}/pid")).and_then(Value::as_u64);
        Ok(u32::try_from(pid.context("the broker does not run")?)?)
    }

    /// Sends SIGKILL to broker `ordinal` and returns its process id.
    ///
    /// # Errors
    /// Fails if the broker is not running.
    pub fn kill_broker(&self, ordinal: usize) -> Result<u32> {
        let pid = self.pid(ordinal)?;
        signal(pid, Signal::KILL)?;
        Ok(pid)
    }

    /// Sends SIGTERM to the program and waits for its end.
    ///
    /// # Errors
    /// Fails if the program does not end in time or ends with a failure.
    pub async fn stop(mut self) -> Result<()> {
        signal(self.child.id().context("covey local has ended already")?, Signal::TERM)?;
        let status =
            tokio::time::timeout(Duration::from_mins(1), self.child.wait()).await.context("did not stop")??;
        ensure!(status.success(), "covey local ended with {status}");
        Ok(())
    }

    /// Sends SIGKILL to the program and to every broker at once, and waits until all are gone with their sockets.
    ///
    /// # Errors
    /// Fails if the program cannot be killed, or a process is not gone in time.
    pub async fn crash(mut self) -> Result<()> {
        let brokers: Vec<u32> = (0..self.addresses().len()).filter_map(|ordinal| self.pid(ordinal).ok()).collect();
        self.child.start_kill()?;
        for broker in &brokers {
            // Brokers end with the program, so that one may be gone already.
            signal(*broker, Signal::KILL).unwrap_or_default();
        }
        self.child.wait().await?;
        let all_gone = async || brokers.iter().all(|broker| is_gone(*broker)).then_some(());
        until("the killed brokers are gone", Duration::from_secs(10), all_gone).await
    }
}

/// Returns whether a process has ended: a zombie has closed its files.
fn is_gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with(['Z', 'X']))
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let Some(pid) = Pid::from_raw(i32::try_from(pid)?) else { bail!("not a process id") };
    Ok(kill_process(pid, signal)?)
}

/// Runs a command of `covey` and waits at most 30 s for its end.
///
/// # Errors
/// Fails if the command does not end in time.
pub async fn run(arguments: &[&str]) -> Result<Output> {
    let child = Command::new(binary()?)
        .args(arguments)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    tokio::time::timeout(Duration::from_secs(30), child.wait_with_output())
        .await
        .context("covey did not end by itself")?
        .map_err(Into::into)
}
