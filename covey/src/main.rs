//! `covey`: the operator, the broker and a local cluster, in one binary.

mod broker;
mod local;
mod operator;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A Kubernetes operator and the clustered MQTT broker that it runs.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    /// Log filter, for example `info,covey_node=debug`.
    #[arg(long, env = "COVEY_LOG", default_value = "info,openraft=error,fjall=warn,lsm_tree=warn", global = true)]
    log: String,
    /// Log in JSON, one object per line.
    #[arg(long, env = "COVEY_LOG_JSON", global = true)]
    log_json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one broker of a cluster.
    Broker(broker::Arguments),
    /// Run the clusters of the given manifests on this machine.
    Local(local::Arguments),
    /// Run the operator: reconcile MqttClusters and MqttUsers.
    Operator(operator::Arguments),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = start_logging(&cli) {
        return fail(&error);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    // All parts of the process use the same TLS provider.
    let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    installed.map_err(|_| anyhow::anyhow!("failed to install the TLS provider"))?;
    let shutdown = CancellationToken::new();
    tokio::spawn(cancel_on_signal(shutdown.clone()));
    match command {
        Command::Broker(arguments) => broker::run(arguments, shutdown).await,
        Command::Local(arguments) => local::run(arguments, shutdown).await,
        Command::Operator(arguments) => operator::run(arguments, shutdown).await,
    }
}

fn start_logging(cli: &Cli) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&cli.log)?;
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let started = if cli.log_json { builder.json().try_init() } else { builder.try_init() };
    started.map_err(|error| anyhow::anyhow!("failed to start logging: {error}"))
}

async fn cancel_on_signal(shutdown: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    shutdown.cancel();
}

#[expect(clippy::print_stderr, reason = "the error that ends the program is printed even if logging does not work")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("covey: {}", with_causes(error));
    ExitCode::FAILURE
}

/// Returns the text of an error, followed by those causes that it does not contain. Errors that are logged by their text
/// alone quote their cause.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
