//! One pass over one cluster: the order of the steps, which are in the other files of this folder, and what follows
//! when one of them fails.
//!
//! Invariant: every pass updates access, disruption budget, status, alerts and metrics. An invalid spec or an unusable
//! authority stops only what needs it: changes of children, formation, rollouts.

mod form;
mod report;
mod resize;
mod roll;

use std::sync::Arc;
use std::time::Duration;

use covey_crds::condition::reason;
use covey_crds::{MqttCluster, WorkloadStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::runtime::controller::Action;
use kube::{Resource as _, ResourceExt as _};
use tokio::time::Instant;

use super::alerting::Alerting;
use super::dereference::{Inputs, dereference};
use super::evictions::{self, Evictions};
use super::nodes::{self, Node};
use super::rollout::{self, Step};
use super::status::{Blocked, Phase};
use super::validate::{Basics, ValidatedCluster, basics, validate};
use super::{access, apply, build, certificates, claims, configs, problem, scale};
use crate::changes::FULL_READ;
use crate::context::{Context, Key, Memory};

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to read the cluster: {0}")]
    Read(#[source] Box<kube::Error>),
    #[error("{0}")]
    Access(#[from] access::Error),
    #[error("{0}")]
    Apply(#[from] apply::Error),
    #[error("failed to form the cluster: {0}")]
    Form(#[source] Box<kube::Error>),
    #[error("failed to replace a pod: {0}")]
    Roll(#[source] Box<kube::Error>),
    #[error("failed to write the status: {0}")]
    Status(#[source] Box<kube::Error>),
}

impl Error {
    /// Returns the name of the failed step, as a label value for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Access(_) => "access",
            Self::Apply(_) => "apply",
            Self::Form(_) => "form",
            Self::Roll(_) => "roll",
            Self::Status(_) => "status",
        }
    }
}

/// Runs one pass over a cluster, and returns when the next one is due. Reads all inputs.
///
/// # Errors
/// The first step that failed. Steps that do not depend on it are carried out nevertheless.
pub async fn reconcile(context: &Arc<Context>, namespace: &str, name: &str) -> Result<Action, Error> {
    Box::pin(pass(context, &(namespace.to_owned(), name.to_owned()), None)).await
}

/// Like [`reconcile`], for a cluster whose objects are watched: the inputs of the last pass are used again if nothing
/// has changed since ([`crate::changes`]). `live` is the cluster as the watch has it.
///
/// # Errors
/// As [`reconcile`].
pub(crate) async fn reconcile_watched(
    context: &Arc<Context>,
    namespace: &str,
    name: &str,
    live: &MqttCluster,
) -> Result<Action, Error> {
    let version = live.resource_version().unwrap_or_default();
    Box::pin(pass(context, &(namespace.to_owned(), name.to_owned()), Some(&version))).await
}

async fn pass(context: &Arc<Context>, key: &Key, version: Option<&str>) -> Result<Action, Error> {
    let memory = context.memory(key);
    let mut memory = memory.lock().await;
    let kept = memory.kept.take();
    // Before the inputs are read: a change during the read starts another pass that reads them again.
    let seen = context.changes.of(key);
    let kept = kept.filter(|kept| kept.is_current(seen, version));
    let is_read = kept.is_none();
    let (inputs, read_at) = if let Some(kept) = kept {
        (kept.inputs, kept.read_at)
    } else {
        let inputs = dereference(&context.client, &key.0, &key.1).await;
        let Some(inputs) = inputs.map_err(|error| Error::Read(Box::new(error)))? else {
            // It does not exist, or is being deleted.
            context.fleet.leave(key);
            return Ok(Action::await_change());
        };
        (inputs, Instant::now())
    };
    let uid = inputs.cluster.uid().unwrap_or_default();
    if memory.uid != uid {
        *memory = Memory { uid, ..Memory::default() };
    }
    let basics = basics(&inputs.cluster);
    let work = validate(&inputs.cluster, &context.image)
        .map_err(|error| Blocked { reason: reason::INVALID, message: error.to_string() });
    let known = memory.credentials.clone();
    // Without certificates the pass continues with the last known ones or without any, as far as that is possible.
    let certificates = match certificates::ensure(&context.client, &basics, &inputs, known, Timestamp::now()).await {
        Ok(credentials) => {
            if memory.credentials.as_ref().is_none_or(|known| known.leaf != credentials.leaf) {
                memory.clients.clear();
                memory.credentials = Some(credentials);
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    };
    let about = inputs.cluster.object_ref(&());
    let mut pass = Pass { context, about, basics, work, inputs, is_read, scale: scale::Step::Settled, settled: None };
    let action = Box::pin(pass.run(certificates, &mut memory)).await?;
    let unchanged = pass.settled.is_some() && pass.settled == memory.settled;
    memory.settled = pass.settled.take();
    if unchanged {
        memory.kept = Some(KeptInputs { inputs: pass.inputs, seen, read_at });
    }
    Ok(action)
}

/// What a pass has read, for the next one.
#[derive(Debug)]
pub(crate) struct KeptInputs {
    inputs: Inputs,
    /// Number of the cluster's last change before they were read.
    seen: u64,
    read_at: Instant,
}

impl KeptInputs {
    /// Returns whether the inputs are still those in the API server. `version` is the version of the cluster in the
    /// watch, absent without watches.
    fn is_current(&self, seen: u64, version: Option<&str>) -> bool {
        self.seen == seen
            && version.is_some()
            && self.inputs.cluster.metadata.resource_version.as_deref() == version
            && self.read_at.elapsed() < FULL_READ
    }
}

/// What a pass over a settled cluster has applied. If two passes in a row have applied the same, the second one wrote
/// nothing that it had read, so the next can use its inputs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SettledState {
    children: apply::Known,
    workload: WorkloadStatus,
    access: (u64, String),
}

/// Result of applying the children.
enum Applied {
    /// They were not applied, because the cluster is paused or its spec is invalid.
    Kept,
    /// All were applied.
    Done(WorkloadStatus),
    Failed(apply::Error),
}

impl Applied {
    /// The outcome if the StatefulSet was not applied.
    fn without_workload(failures: Vec<apply::Error>) -> Self {
        apply::Error::join(failures).map_or(Self::Kept, Self::Failed)
    }

    fn error(&self) -> Option<&apply::Error> {
        match self {
            Self::Failed(error) => Some(error),
            Self::Kept | Self::Done(_) => None,
        }
    }

    fn workload(&self) -> Option<&WorkloadStatus> {
        match self {
            Self::Done(workload) => Some(workload),
            Self::Kept | Self::Failed(_) => None,
        }
    }
}

/// A pass over a cluster.
struct Pass<'a> {
    context: &'a Arc<Context>,
    about: ObjectReference,
    basics: Basics,
    /// The validated cluster, or why children are not applied.
    work: Result<ValidatedCluster, Blocked>,
    inputs: Inputs,
    /// Whether this pass has read the inputs, instead of an earlier one.
    is_read: bool,
    /// Next step of a change of the cluster's size.
    scale: scale::Step,
    /// What was applied. Absent if the cluster is not settled or a step failed.
    settled: Option<SettledState>,
}

impl Pass<'_> {
    async fn run(&mut self, certificates: Result<(), apply::Error>, memory: &mut Memory) -> Result<Action, Error> {
        let mut nodes = self.nodes(&self.inputs.pods, memory).await;
        let taken = access::create_secrets(&self.context.client, &mut self.inputs).await;
        let access = match access::project(&self.basics, &self.inputs, &taken, &nodes, memory).await {
            Ok(access) => access,
            Err(error) => {
                // The budget protects the pods whatever happens to the access document.
                let kept = self.keep_budget(&nodes, memory).await;
                kept.unwrap_or_else(|error| tracing::warn!(%error, "failed to update the disruption budget"));
                return Err(error.into());
            }
        };
        access::note_revisions(memory, &access);
        let document = &access.projection.document;
        let recorded = access::record(&self.context.client, &self.basics, &self.inputs, document).await;
        // Before the push, so that a document that a broker refused is reported before it is replaced.
        self.alerts(&nodes, document.revision, memory).await;
        if recorded.is_ok() {
            access::push(memory, &mut nodes, document).await;
            access::delete_replaced_secrets(&self.context.client, &self.inputs, &access).await;
        }
        self.resize(&nodes, memory).await;
        let needed = certificates.err().into_iter().chain(recorded.err()).collect();
        let applied = Box::pin(self.apply(&nodes, needed, memory)).await;
        let formed = self.form(&nodes, memory).await;
        let rolled = match &formed {
            Ok(phase) => self.roll(&nodes, &applied, phase, memory).await,
            Err(_) => Ok(Step::Idle),
        };
        self.keep_or_leave_turn(&rolled, &nodes, self.template_revision(&applied).as_deref(), memory);
        // The status is written after a failure too: without a permission it would otherwise never change again.
        let phase = formed.as_ref().map_or_else(|error| self.phase_unchanged(&error.to_string()), Phase::clone);
        let step = rolled.as_ref().map_or_else(|error| Step::Wait { reason: error.to_string() }, Step::clone);
        let reported = self.report(&nodes, &access, &applied, &phase, &step, memory).await;
        // The first failure is returned; a status that cannot be written must not hide it.
        formed?;
        rolled?;
        if let Applied::Failed(error) = applied {
            return Err(error.into());
        }
        reported?;
        let forming = matches!(phase, Phase::Forming { .. }) && self.not_applied_because().is_none();
        let scaling = self.scale != scale::Step::Settled;
        if step == Step::Idle && !forming && !scaling && nodes.iter().all(Node::is_ready) {
            let access = (document.revision, document.hash());
            let workload = applied.workload().cloned();
            self.settled =
                workload.map(|workload| SettledState { children: memory.children.clone(), workload, access });
        }
        Ok(Action::requeue(pause(&nodes, forming || scaling, &step, document)))
    }

    /// Keeps or releases the turn of the cluster among the clusters that replace pods. It is kept while the rollout is
    /// under way or has stopped, and after the last eviction until every member is ready. A cluster that is paused,
    /// fails, or cannot evict its first pod must not hold up the others.
    fn keep_or_leave_turn(
        &self,
        rolled: &Result<Step, Error>,
        nodes: &[Node],
        revision: Option<&str>,
        memory: &mut Memory,
    ) {
        let under_way = revision.is_some_and(|revision| rollout::is_under_way(nodes, revision));
        let unready = !nodes::members(nodes).into_iter().all(Node::is_ready);
        let keeps = match rolled {
            Ok(Step::Replace { .. } | Step::Stopped { .. }) => true,
            Ok(Step::Wait { .. }) => under_way || unready,
            // While pods have two templates, this is a cluster that may not go on.
            Ok(Step::Idle) => unready && !under_way,
            Ok(Step::Postponed(_) | Step::Refused { .. }) | Err(_) => false,
        };
        let is_first = !std::mem::replace(&mut memory.rollout_looked_for, true);
        if !keeps || self.not_applied_because().is_some() {
            self.context.fleet.leave(&self.key());
        } else if is_first && under_way && self.terms(revision).postponement.is_none() {
            self.context.fleet.resume(&self.key());
        }
    }

    /// Reads the state of the nodes that these pods run, with the cause where a pod is missing.
    async fn nodes(&self, pods: &[Pod], memory: &mut Memory) -> Vec<Node> {
        let mut nodes = nodes::from_pods(&self.basics.name, self.replicas(), pods);
        problem::explain_missing(&self.context.client, self.inputs.stateful_set.as_ref(), &mut nodes).await;
        if let Ok(cluster) = &self.work {
            claims::explain_unscheduled(&self.context.client, cluster, &mut nodes).await;
        }
        nodes::poll(memory, &mut nodes).await;
        nodes
    }

    /// Returns the number of nodes. If the spec is invalid, or the formed cluster is to have fewer, that is the number of
    /// the StatefulSet, or of its pods if it does not exist; otherwise that of the spec.
    fn replicas(&self) -> u32 {
        let spec = self.inputs.stateful_set.as_ref().and_then(|set| set.spec.as_ref());
        let applied = spec.and_then(|spec| spec.replicas).and_then(|replicas| u32::try_from(replicas).ok());
        // A StatefulSet that somebody deleted without its pods must not come back smaller than they are.
        let applied =
            applied.or_else(|| self.inputs.pods.iter().filter_map(resize::ordinal).max().map(|last| last + 1));
        let shrinks = |applied: u32| form::is_formed(&self.inputs.cluster) && applied > self.basics.replicas;
        applied.filter(|applied| self.work.is_err() || shrinks(*applied)).unwrap_or(self.basics.replicas)
    }

    /// Returns why only access and status are updated, as a message. `None` if the spec is applied.
    fn not_applied_because(&self) -> Option<&str> {
        match &self.work {
            Err(blocked) => Some(&blocked.message),
            Ok(_) => self.basics.paused.then_some("spec.paused is true"),
        }
    }

    /// Decides which pods may be evicted, from the rollout as far as the StatefulSet shows it now.
    async fn evictions(&self, nodes: &[Node], memory: &mut Memory) -> Evictions {
        let revision = self.template_revision(&Applied::Kept);
        let step = self.next_step(nodes, revision.as_deref(), memory).await;
        evictions::decide(nodes, form::is_formed(&self.inputs.cluster), &step, &self.scale)
    }

    /// Updates the disruption budget alone, if it exists and belongs to the cluster.
    async fn keep_budget(&self, nodes: &[Node], memory: &mut Memory) -> Result<(), apply::Error> {
        let budget = build::pdb(&self.basics, &self.evictions(nodes, memory).await);
        apply::keep_budget(&self.context.client, &budget, &mut memory.children).await
    }

    /// Applies the children. `failures` are those of Secrets that pods need. If there are any, or another child that
    /// pods need fails, the StatefulSet is not applied.
    async fn apply(&self, nodes: &[Node], mut failures: Vec<apply::Error>, memory: &mut Memory) -> Applied {
        let cluster = match &self.work {
            Ok(cluster) if !self.basics.paused => cluster,
            _ => {
                failures.extend(self.keep_budget(nodes, memory).await.err());
                return Applied::without_workload(failures);
            }
        };
        let client = &self.context.client;
        let evictions = self.evictions(nodes, memory).await;
        let children = build::children(cluster, &evictions, &self.inputs.pods, self.context.pods.as_ref());
        let outcome = Box::pin(apply::apply_children(client, &children, &memory.children, self.is_read)).await;
        memory.children = outcome.known;
        failures.extend(outcome.needed);
        let can_start = failures.is_empty();
        failures.extend(outcome.others);
        if !can_start {
            return Applied::without_workload(failures);
        }
        let wanted = build::stateful_set(cluster);
        let recorded = self.inputs.cluster.status.as_ref().and_then(|status| status.workload.as_ref());
        let live = self.inputs.stateful_set.as_ref();
        let workload = match claims::conflict(client, &wanted, live).await {
            Some(conflict) => Err(apply::Error::Immutable(conflict)),
            None => apply::apply_stateful_set(client, &self.context.metrics, &wanted, live, recorded).await,
        };
        configs::delete_unused(client, &children.config_map, &self.inputs, &mut memory.configs_in_use).await;
        match workload {
            Ok(workload) => apply::Error::join(failures).map_or(Applied::Done(workload), Applied::Failed),
            Err(error) => {
                failures.push(error);
                Applied::without_workload(failures)
            }
        }
    }

    async fn form(&mut self, nodes: &[Node], memory: &mut Memory) -> Result<Phase, Error> {
        if let Some(waiting) = self.not_applied_because() {
            return Ok(self.phase_unchanged(waiting));
        }
        let replicas = self.basics.replicas;
        form::form(self.context, &self.about, &mut self.inputs.cluster, replicas, nodes, memory)
            .await
            .map_err(|error| Error::Form(Box::new(error)))
    }

    /// Returns the phase of a pass that does not form the cluster; `waiting` says why it does not.
    fn phase_unchanged(&self, waiting: &str) -> Phase {
        if form::is_formed(&self.inputs.cluster) {
            Phase::Formed
        } else {
            Phase::Forming { waiting: waiting.to_owned() }
        }
    }

    /// Returns the template revision of the StatefulSet, once its controller has seen the applied generation.
    fn template_revision(&self, applied: &Applied) -> Option<String> {
        let live = self.inputs.stateful_set.as_ref()?;
        let generation = applied.workload().map(|workload| workload.generation).or(live.metadata.generation);
        let status = live.status.as_ref()?;
        let seen = status.observed_generation.is_some() && status.observed_generation >= generation;
        seen.then(|| status.update_revision.clone()).flatten()
    }

    async fn alerts(&self, nodes: &[Node], revision: u64, memory: &mut Memory) {
        if !self.basics.builtin_alerts {
            memory.alerting = None;
            return;
        }
        if memory.alerting.is_none() {
            match Alerting::new(&self.inputs.cluster, Timestamp::now(), self.context.alert_for_scale) {
                Ok(alerting) => memory.alerting = Some(alerting),
                Err(error) => tracing::error!(%error, "failed to read the alert catalogue"),
            }
        }
        if let Some(alerting) = &mut memory.alerting {
            alerting.observe(self.context, &self.about, nodes, Some(revision)).await;
        }
    }
}

/// Returns the time until the next pass. It is short while the cluster changes.
fn pause(nodes: &[Node], changing: bool, step: &Step, document: &covey_contract::access::Document) -> Duration {
    let hash = document.hash();
    let answering = || nodes.iter().filter(|node| node.report.is_some());
    let moving = changing
        || matches!(step, Step::Replace { .. })
        || answering().any(|node| !node.enforces(document.revision, &hash));
    if moving {
        Duration::from_secs(1)
    } else if nodes.iter().all(Node::is_ready) {
        Duration::from_secs(5)
    } else {
        Duration::from_secs(2)
    }
}
