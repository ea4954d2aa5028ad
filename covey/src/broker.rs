//! `covey broker`: one broker, configured by the file that the operator or `covey local` wrote.

use std::path::PathBuf;

use covey_broker::run::Options;
use covey_contract::config::Config;
use covey_contract::names;
use tokio_util::sync::CancellationToken;

/// Arguments of `covey broker`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The configuration file.
    #[arg(long, default_value = names::PATH_CONFIG)]
    config: PathBuf,
    /// The node's name; it ends in its ordinal, as in prod-0.
    #[arg(long, env = "POD_NAME")]
    name: String,
}

/// Runs until shutdown.
pub(crate) async fn run(arguments: Arguments, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    let commit = option_env!("COVEY_COMMIT").unwrap_or("unknown").to_owned();
    covey_broker::run::run(Options { config, name: arguments.name, commit }, shutdown).await?;
    Ok(())
}
