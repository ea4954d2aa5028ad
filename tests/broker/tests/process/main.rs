//! Promises of the whole program, shown on processes: `covey local` and the brokers that it runs.

mod access;
mod crash;
mod disk;
mod memory;
mod quickstart;

use std::path::{Path, PathBuf};

use covey_tests::Result;
use tempfile::TempDir;

/// The example of the README.
fn quickstart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart.yaml")
}

/// A folder for a test's manifests and data, and the machine to itself: clusters beside each other would measure the
/// machine, not the program.
struct Bench {
    folder: TempDir,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl Bench {
    fn path(&self) -> &Path {
        self.folder.path()
    }
}

async fn folder() -> Result<Bench> {
    let alone = ALONE.lock().await;
    Ok(Bench { folder: tempfile::Builder::new().prefix("covey-test-").tempdir()?, _alone: alone })
}

/// The example with `replicas` brokers, in a file that a test may change.
fn manifest(folder: &Bench, replicas: u32) -> Result<PathBuf> {
    let text = std::fs::read_to_string(quickstart())?;
    anyhow::ensure!(text.contains("replicas: 3"), "the example says how many brokers it wants");
    let path = folder.path().join("cluster.yaml");
    std::fs::write(&path, text.replace("replicas: 3", &format!("replicas: {replicas}")))?;
    Ok(path)
}
