//! `covey broker`: one broker. The operator or `covey local` writes its configuration file.

use std::path::PathBuf;

use covey_broker::Options;
use covey_contract::config::Config;
use covey_contract::names;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use tokio_util::sync::CancellationToken;

/// Arguments of `covey broker`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Configuration file.
    #[arg(long, default_value = names::PATH_CONFIG)]
    config: PathBuf,
    /// Name of the node, which ends in its ordinal, for example prod-0.
    #[arg(long, env = "POD_NAME")]
    name: String,
    /// Process id of the parent. The broker is killed when the parent ends.
    #[arg(long, hide = true)]
    parent: Option<i32>,
}

/// Runs the broker until shutdown.
pub(crate) async fn run(arguments: Arguments, shutdown: CancellationToken) -> anyhow::Result<()> {
    arguments.parent.map(end_with).transpose()?;
    let config = Config::load(&arguments.config)?;
    let commit = option_env!("COVEY_COMMIT").unwrap_or("unknown").to_owned();
    covey_broker::run(Options { config, name: arguments.name, commit }, shutdown).await?;
    Ok(())
}

fn end_with(parent: i32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have ended before the line above.
    let alive = getppid().is_some_and(|pid| pid.as_raw_nonzero().get() == parent);
    if alive { Ok(()) } else { anyhow::bail!("process {parent}, which started this broker, has ended") }
}
