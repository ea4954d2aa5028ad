//! `covey operator`: reconciles MqttClusters and MqttUsers.

use std::net::SocketAddr;

use anyhow::Context as _;
use covey_operator::Options;
use covey_operator::cluster::validate::{DEFAULT_IMAGE, ImageDefaults};
use covey_operator::options::OperatorPods;
use tokio_util::sync::CancellationToken;

/// Arguments of `covey operator`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Address on which `/metrics`, `/healthz` and `/readyz` are served.
    #[arg(long, env = "COVEY_OPERATOR_HTTP", default_value = "0.0.0.0:9465")]
    http: SocketAddr,
    /// Namespace to watch; without it, all namespaces.
    #[arg(long, env = "COVEY_NAMESPACE")]
    namespace: Option<String>,
    /// Name of this process in Events.
    #[arg(long, env = "COVEY_INSTANCE")]
    instance: Option<String>,
    /// Factor on the time for which a condition must hold before a built-in alert fires; tests use a small one.
    #[arg(long, env = "COVEY_ALERT_FOR_SCALE", default_value_t = 1.0)]
    alert_for_scale: f64,
    /// Number of clusters whose pods are replaced at the same time, at least 1.
    #[arg(long, env = "COVEY_MAX_ROLLING_CLUSTERS", default_value_t = 1,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    max_rolling_clusters: usize,
    /// Image of brokers whose MqttCluster names none. The chart sets the operator's own image.
    #[arg(long, env = "COVEY_DEFAULT_IMAGE", default_value = DEFAULT_IMAGE)]
    default_image: String,
    /// Secrets with the credentials of the image's registry, for brokers whose MqttCluster names none; separated by commas.
    #[arg(long, env = "COVEY_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    image_pull_secrets: Vec<String>,
    /// Namespace of the operator's own pods, which the NetworkPolicies of clusters admit to port 7884. Without it they
    /// admit connections from anywhere, which need a certificate of the operator in any case.
    #[arg(long, env = "COVEY_POD_NAMESPACE")]
    pod_namespace: Option<String>,
    /// Labels of the operator's own pods as KEY=VALUE, separated by commas; without them, all pods of --pod-namespace.
    #[arg(long, env = "COVEY_POD_LABELS", value_delimiter = ',', value_parser = label)]
    pod_labels: Vec<(String, String)>,
}

fn label(text: &str) -> anyhow::Result<(String, String)> {
    let (key, value) = text.split_once('=').context("a label has the form KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Runs the operator until shutdown.
pub(crate) async fn run(arguments: Arguments, shutdown: CancellationToken) -> anyhow::Result<()> {
    let image = ImageDefaults { image: arguments.default_image, pull_secrets: arguments.image_pull_secrets };
    let labels = arguments.pod_labels.into_iter().collect();
    let options = Options {
        http: arguments.http,
        namespace: arguments.namespace,
        instance: arguments.instance,
        alert_for_scale: arguments.alert_for_scale,
        max_rolling_clusters: arguments.max_rolling_clusters,
        image,
        pods: arguments.pod_namespace.map(|namespace| OperatorPods { namespace, labels }),
    };
    covey_operator::run::run(options, shutdown).await?;
    Ok(())
}
