//! `covey local`: the same manifests without Kubernetes, as broker processes on loopback.
//!
//! ```text
//!  files -> manifest (checked) -> cluster (one per MqttCluster) -> process (one per broker)
//!    ^ looked at every second         ^ a pass a second: form, project access, hand it over
//! ```
//! Owns the main loop. Invariant: a file that cannot be used changes nothing; what ran goes on.

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

/// Between two passes while something is not ready.
const PASS_SOON: Duration = Duration::from_millis(250);
/// Between two passes, and two looks at the files, when all is well.
const PASS: Duration = Duration::from_secs(1);

/// Arguments of `covey local`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Manifests: MqttCluster, MqttUser and Secret documents.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where data, certificates and passwords are kept.
    #[arg(long, default_value = "./.covey")]
    data: PathBuf,
    /// Port of the first broker; broker n listens on port + n.
    #[arg(long, default_value_t = covey_contract::names::PORT_MQTT)]
    port: u16,
    /// What is printed when everything is ready.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Everything that runs.
struct Local {
    arguments: Arguments,
    directory: Directory,
    texts: Vec<String>,
    clusters: BTreeMap<Key, Cluster>,
    /// What was last written to `connect.json`.
    written: Report,
    /// What was last printed, without process ids.
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
                tracing::error!(%error, "a pass failed; it is tried again");
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

    /// Looks whether the files changed, and takes what they say where they can be used as a whole.
    fn follow_files(&mut self) {
        let texts = match manifest::texts(&self.arguments.files) {
            Ok(texts) if texts != self.texts => texts,
            // An editor may replace a file by removing it first.
            Ok(_) | Err(_) => return,
        };
        match manifest::read(&self.arguments.files, &texts) {
            Ok(manifests) => self.take(&manifests),
            Err(error) => tracing::error!(%error, "the changed files are not used; what ran goes on"),
        }
        self.texts = texts;
    }

    fn take(&mut self, manifests: &Manifests) {
        tracing::info!("the files changed");
        tell_orphans(manifests);
        for (key, manifest) in &manifests.clusters {
            let taken = match self.clusters.get_mut(key) {
                Some(cluster) => cluster.update(key, manifests, manifest),
                None => self.start(key, manifests, manifest),
            };
            if let Err(error) = taken {
                tracing::error!(cluster = key.1, %error, "this change is not taken; what ran goes on");
            }
        }
        for (_, name) in self.clusters.keys().filter(|key| !manifests.clusters.contains_key(*key)) {
            tracing::warn!(cluster = name, "no longer in the files; it runs until this program ends");
        }
    }

    /// Says how to connect, where all is ready; returns whether it is.
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
        tracing::warn!(user, "the MqttUser's cluster is not in the files");
    }
}
