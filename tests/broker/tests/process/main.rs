//! Process tests of the whole program: `covey local` and the brokers that it runs.

mod access;
mod crash;
mod disk;
mod memory;
mod quickstart;

use std::path::{Path, PathBuf};

use covey_tests::Result;
use tempfile::TempDir;

/// Returns the path of the example in the README.
fn quickstart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart.yaml")
}

/// Directory for a test's manifests and data. Only one exists at a time, because clusters of parallel tests would slow
/// each other down.
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

/// Writes the example with `replicas` brokers to a file that the test may change.
fn manifest(folder: &Bench, replicas: u32) -> Result<PathBuf> {
    let text = std::fs::read_to_string(quickstart())?;
    anyhow::ensure!(text.contains("replicas: 3"), "the example has no line `replicas: 3`");
    let path = folder.path().join("cluster.yaml");
    std::fs::write(&path, text.replace("replicas: 3", &format!("replicas: {replicas}")))?;
    Ok(path)
}
