//! `covey local`: runs the clusters of manifests without Kubernetes, as broker processes on loopback.
//!
//! ```text
//!  files -> manifest (checked) -> cluster (one per MqttCluster) -> process (one per broker)
//!    ^ read every second              ^ one pass per second: form, project access, apply it
//! ```
//! Owns the main loop. Invariant: a file that cannot be used changes nothing; the running clusters go on.

mod cluster;
mod directory;
mod identity;
mod manifest;
mod output;
mod ports;
mod process;
mod record;
mod users;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use self::cluster::Cluster;
use self::directory::Directory;
use self::manifest::{Key, Manifests};
use self::output::{Format, Report};

/// Interval of passes while something is not ready.
const PASS_SOON: Duration = Duration::from_millis(250);
/// Interval of passes, and of reading the files, while everything is ready.
const PASS: Duration = Duration::from_secs(1);

/// Arguments of `covey local`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Files with MqttCluster, MqttUser and Secret manifests.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Directory for data, certificates and passwords.
    #[arg(long, default_value = "./.covey")]
    data: PathBuf,
    /// Port of the first broker; broker n listens on port + n.
    #[arg(long, default_value_t = covey_contract::names::PORT_MQTT)]
    port: u16,
    /// Format of the output that is printed when everything is ready.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// State of the program.
struct Local {
    arguments: Arguments,
    /// The locked data directory.
    directory: Directory,
    /// Content of the files as they were last read.
    texts: Vec<String>,
    /// Running clusters.
    clusters: BTreeMap<Key, Cluster>,
    /// Report that was last written to `connect.json`.
    written: Report,
    /// Report that was last printed, without process ids.
    printed: Report,
    shutdown: CancellationToken,
}

/// Runs the brokers until shutdown.
pub(crate) async fn run(arguments: Arguments, shutdown: CancellationToken) -> anyhow::Result<()> {
    let texts = manifest::texts(&arguments.files)?;
    let manifests = manifest::read(&arguments.files, &texts)?;
    let directory = Directory::open(&arguments.data)?;
    let mut local = Local {
        arguments,
        directory,
        texts,
        clusters: BTreeMap::new(),
        written: Report::default(),
        printed: Report::default(),
        shutdown: shutdown.clone(),
    };
    let result = local.serve(&manifests).await;
    shutdown.cancel();
    join_all(local.clusters.into_values().map(Cluster::ended)).await;
    result
}

impl Local {
    async fn serve(&mut self, manifests: &Manifests) -> anyhow::Result<()> {
        tell_orphans(manifests);
        for (key, manifest) in &manifests.clusters {
            self.start(key, manifests, manifest)?;
        }
        let mut pause = PASS_SOON;
        while self.shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            self.follow_files();
            let shutdown = self.shutdown.clone();
            let passes = join_all(self.clusters.values_mut().map(Cluster::pass));
            let Some(passes) = shutdown.run_until_cancelled(passes).await else { break };
            for error in passes.into_iter().filter_map(Result::err) {
                tracing::error!(%error, "pass failed, it is retried");
            }
            pause = if self.publish()? { PASS } else { PASS_SOON };
        }
        Ok(())
    }

    fn start(
        &mut self,
        key: &Key,
        manifests: &Manifests,
        manifest: &covey_crds::MqttCluster,
    ) -> Result<(), cluster::Error> {
        let shutdown = self.shutdown.child_token();
        let cluster = Cluster::start(&self.directory, key, manifests, manifest, self.arguments.port, shutdown)?;
        self.clusters.insert(key.clone(), cluster);
        Ok(())
    }

    /// Reads the files and applies them if they changed and are valid as a whole.
    fn follow_files(&mut self) {
        let texts = match manifest::texts(&self.arguments.files) {
            Ok(texts) if texts != self.texts => texts,
            // An editor may remove a file before it writes the new one.
            Ok(_) | Err(_) => return,
        };
        match manifest::read(&self.arguments.files, &texts) {
            Ok(manifests) => self.take(&manifests),
            Err(error) => tracing::error!(%error, "changed files are invalid, the running clusters are not changed"),
        }
        self.texts = texts;
    }

    fn take(&mut self, manifests: &Manifests) {
        tracing::info!("files changed");
        tell_orphans(manifests);
        for (key, manifest) in &manifests.clusters {
            let taken = match self.clusters.get_mut(key) {
                Some(cluster) => cluster.update(key, manifests, manifest),
                None => self.start(key, manifests, manifest),
            };
            if let Err(error) = taken {
                tracing::error!(cluster = key.1, %error, "change is not applied, the cluster runs as before");
            }
        }
        for (_, name) in self.clusters.keys().filter(|key| !manifests.clusters.contains_key(*key)) {
            tracing::warn!(cluster = name, "cluster is gone from the files, it runs until this program ends");
        }
    }

    /// Writes and prints how to connect if everything is ready. Returns whether it is.
    fn publish(&mut self) -> anyhow::Result<bool> {
        let reports: Option<Vec<_>> = self.clusters.values().map(Cluster::report).collect();
        let Some(clusters) = reports else { return Ok(false) };
        let report = Report { clusters };
        if report == self.written {
            return Ok(true);
        }
        directory::write(&self.directory.connect_file(), report.json()?.as_bytes())?;
        let printed = without_pids(&report);
        if printed != self.printed {
            self.print(&report)?;
            self.printed = printed;
        }
        self.written = report;
        Ok(true)
    }

    fn print(&self, report: &Report) -> anyhow::Result<()> {
        let text = match self.arguments.output {
            Format::Text => report.text(),
            Format::Json if self.printed == Report::default() => format!("{}\n", report.json()?),
            Format::Json => return Ok(()),
        };
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }
}

fn without_pids(report: &Report) -> Report {
    let mut report = report.clone();
    for broker in report.clusters.iter_mut().flat_map(|cluster| &mut cluster.brokers) {
        broker.pid = None;
    }
    report
}

fn tell_orphans(manifests: &Manifests) {
    for user in manifests.orphans() {
        tracing::warn!(user, "cluster of the MqttUser is not in the files, the user cannot connect");
    }
}
