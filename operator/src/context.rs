//! State that all reconciles share: the client, the Event recorder, the metrics, and a memory per cluster.
//!
//! The memory is a best-effort cache. Correctness never depends on it: it is rebuilt from the API server and the nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use covey_contract::access::Document;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::admin;
use crate::changes::Changes;
use crate::cluster::alerting::Alerting;
use crate::cluster::apply;
use crate::cluster::reconcile::{KeptInputs, SettledState};
use crate::cluster::trial::Trial;
use crate::cluster::validate::ImageDefaults;
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::options::{OperatorPods, Options};

/// Namespace and name of a cluster.
pub type Key = (String, String);

/// State that all reconciles share.
pub struct Context {
    pub client: Client,
    pub metrics: Metrics,
    pub(crate) alert_for_scale: f64,
    /// Image of the brokers of clusters that name none.
    pub(crate) image: ImageDefaults,
    /// The pods of the operator, if they are known.
    pub(crate) pods: Option<OperatorPods>,
    /// The clusters that replace pods now.
    pub fleet: Fleet,
    /// Which clusters have changed since a pass has read them.
    pub(crate) changes: Changes,
    recorder: Recorder,
    memories: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<Memory>>>>,
}

/// State of one cluster that is kept between reconciles.
#[derive(Debug, Default)]
pub struct Memory {
    /// UID of the `MqttCluster`. A cluster that is created again under the same name starts with an empty memory.
    pub(crate) uid: String,
    pub(crate) credentials: Option<admin::Credentials>,
    /// Admin clients by IP address of the pod.
    pub(crate) clients: BTreeMap<String, admin::Client>,
    pub(crate) document: Option<Document>,
    /// By name of the user object: the revision since which the user is unchanged.
    pub(crate) since_revisions: BTreeMap<String, u64>,
    /// What was last applied to each child.
    pub(crate) children: apply::Known,
    /// Error of the last pass over the children, if it had one. An Event was published for it.
    pub(crate) apply_error: Option<String>,
    /// ConfigMaps that were in use when unused ones were last deleted. Absent before the first deletion.
    pub(crate) configs_in_use: Option<BTreeSet<String>>,
    /// Whether the API server would admit a pod of the new template.
    pub(crate) trial: Option<Trial>,
    pub(crate) alerting: Option<Alerting>,
    /// True after the first pass, which takes the turn again for a rollout that was under way when the operator started.
    pub(crate) rollout_looked_for: bool,
    /// What the last pass has read, if the next one may use it.
    pub(crate) kept: Option<KeptInputs>,
    /// What the last pass has applied, if the cluster was settled.
    pub(crate) settled: Option<SettledState>,
    pub(crate) status_written: Option<Instant>,
    pub(crate) users_written: Option<Instant>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("clusters", &self.memories.lock().len()).finish_non_exhaustive()
    }
}

impl Context {
    /// Creates the context. Events name `options.instance` as their source, or else the host name.
    pub fn new(client: Client, metrics: Metrics, options: &Options) -> Self {
        let mut reporter = Reporter::from(covey_contract::names::FIELD_MANAGER);
        reporter.instance = options.instance.clone().or(reporter.instance);
        let recorder = Recorder::new(client.clone(), reporter);
        Self {
            client,
            metrics,
            alert_for_scale: options.alert_for_scale,
            image: options.image.clone(),
            pods: options.pods.clone(),
            fleet: Fleet::new(options.max_rolling_clusters),
            changes: Changes::default(),
            recorder,
            memories: Mutex::default(),
        }
    }

    /// Returns the memory of a cluster, and creates it if there is none.
    pub(crate) fn memory(&self, key: &Key) -> Arc<tokio::sync::Mutex<Memory>> {
        Arc::clone(self.memories.lock().entry(key.clone()).or_default())
    }

    /// Drops memory and metrics of the clusters for which `exists` returns false.
    pub(crate) fn forget_missing(&self, exists: impl Fn(&Key) -> bool) {
        self.fleet.retain(&exists);
        self.changes.retain(&exists);
        self.memories.lock().retain(|key, _| {
            let keep = exists(key);
            if !keep {
                self.metrics.forget(&key.0, &key.1);
            }
            keep
        });
    }

    /// Publishes an Event. Events that differ in `action` are not merged into one series. A failure is only logged: it
    /// must not stop a reconcile.
    pub(crate) async fn event(
        &self,
        about: &ObjectReference,
        type_: EventType,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.chars().take(1024).collect()),
            action: action.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, about).await {
            tracing::warn!(%error, reason, "failed to publish an event");
        }
    }
}
