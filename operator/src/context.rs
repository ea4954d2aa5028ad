//! What every reconcile shares: the client, the Event recorder, the metrics, and what is remembered per cluster.
//!
//! Nothing here is needed to be right: whatever the memory holds can be lost at any time, and is made again from the
//! API server and the nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use covey_contract::access::Document;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::admin;
use crate::cluster::alerting::Alerting;
use crate::cluster::apply;
use crate::metrics::Metrics;
use crate::options::Options;

/// Namespace and name.
pub type Key = (String, String);

/// What every reconcile shares.
pub struct Context {
    pub client: Client,
    pub metrics: Metrics,
    pub(crate) alert_for_scale: f64,
    /// The image of brokers whose cluster names none.
    pub(crate) default_image: String,
    recorder: Recorder,
    memories: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<Memory>>>>,
}

/// What is remembered of one cluster between reconciles.
#[derive(Debug, Default)]
pub struct Memory {
    /// UID of the object that this is about: a re-created cluster starts afresh.
    pub(crate) uid: String,
    pub(crate) credentials: Option<admin::Credentials>,
    /// By address.
    pub(crate) clients: BTreeMap<String, admin::Client>,
    pub(crate) document: Option<Document>,
    /// Name of a user object to the revision since which it stands as it is.
    pub(crate) anchors: BTreeMap<String, u64>,
    /// What was applied to which child.
    pub(crate) children: apply::Known,
    /// ConfigMaps in use when the others were last deleted; absent before the first time.
    pub(crate) configs_in_use: Option<BTreeSet<String>>,
    pub(crate) alerting: Option<Alerting>,
    pub(crate) status_written: Option<Instant>,
    pub(crate) users_written: Option<Instant>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("clusters", &self.memories.lock().len()).finish_non_exhaustive()
    }
}

impl Context {
    /// What the options say; `instance` names this process in Events, absent: its host name.
    pub fn new(client: Client, metrics: Metrics, options: &Options) -> Self {
        let mut reporter = Reporter::from(covey_contract::names::FIELD_MANAGER);
        reporter.instance = options.instance.clone().or(reporter.instance);
        let recorder = Recorder::new(client.clone(), reporter);
        Self {
            client,
            metrics,
            alert_for_scale: options.alert_for_scale,
            default_image: options.default_image.clone(),
            recorder,
            memories: Mutex::default(),
        }
    }

    /// The memory of a cluster.
    pub(crate) fn memory(&self, key: &Key) -> Arc<tokio::sync::Mutex<Memory>> {
        Arc::clone(self.memories.lock().entry(key.clone()).or_default())
    }

    /// Drops what is remembered and measured of clusters that `exists` denies.
    pub(crate) fn forget_missing(&self, exists: impl Fn(&Key) -> bool) {
        self.memories.lock().retain(|key, _| {
            let keep = exists(key);
            if !keep {
                self.metrics.forget(&key.0, &key.1);
            }
            keep
        });
    }

    /// Publishes an Event. `action` tells apart what shall not be counted as repeats of one another. An Event that cannot
    /// be published is logged: it is never a reason to stop.
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
