//! One pass over one cluster. The steps are in the files beside this one; here is their order, and what happens when one
//! of them fails.
//!
//! Invariant: access, status, alerts and metrics are kept up on every pass. An invalid spec and an authority that cannot be
//! used stop only what needs them: changes of children, formation, rollouts.

use std::sync::Arc;
use std::time::Duration;

use covey_crds::condition::reason;
use covey_crds::{MqttCluster, MqttClusterStatus, MqttUser, WorkloadStatus};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{DeleteParams, EvictParams, PostParams, Preconditions};
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::{Api, Resource as _, ResourceExt as _};
use tokio::time::Instant;

use super::alerting::Alerting;
use super::dereference::{self, Facts, dereference};
use super::nodes::{self, Node};
use super::rollout::{self, Step};
use super::status::{self, Blocked, Phase};
use super::validate::{Basics, ValidatedCluster, basics, validate};
use super::{access, apply, build, form, identity, problem};
use crate::context::{Context, Memory};
use crate::metrics::ClusterFacts;
use crate::user;

/// Counts in a status are written at most this often.
const STATUS_EVERY: Duration = Duration::from_secs(10);
const USERS_EVERY: Duration = Duration::from_secs(30);
/// HTTP status of an eviction that the disruption budget does not allow.
const TOO_MANY_REQUESTS: u16 = 429;
/// Users whose status is written at the same time.
const USER_WRITES: usize = 8;

/// Which step failed.
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
    /// A word for metrics.
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

/// One pass. It returns when the next one is due.
pub async fn reconcile(context: &Arc<Context>, namespace: &str, name: &str) -> Result<Action, Error> {
    let facts = dereference(&context.client, namespace, name).await.map_err(|error| Error::Read(Box::new(error)))?;
    let Some(facts) = facts else { return Ok(Action::await_change()) };
    let memory = context.memory(&(namespace.to_owned(), name.to_owned()));
    let mut memory = memory.lock().await;
    let uid = facts.cluster.uid().unwrap_or_default();
    if memory.uid != uid {
        *memory = Memory { uid, ..Memory::default() };
    }
    let basics = basics(&facts.cluster);
    let work = validate(&facts.cluster, &context.default_image)
        .map_err(|error| Blocked { reason: reason::INVALID, message: error.to_string() });
    let known = memory.credentials.clone();
    // Without an identity the pass goes on: what needs none is kept up, with the last known identity or without any.
    let identity = match identity::ensure(&context.client, &basics, &facts, known, Timestamp::now()).await {
        Ok(credentials) => {
            if memory.credentials.as_ref().is_none_or(|known| known.leaf != credentials.leaf) {
                memory.clients.clear();
                memory.credentials = Some(credentials);
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    };
    let about = facts.cluster.object_ref(&());
    Box::pin(Pass { context, about, basics, work, facts }.run(identity, &mut memory)).await
}

async fn write(context: &Context, live: &mut MqttCluster, wanted: MqttClusterStatus) -> Result<(), Error> {
    let api: Api<MqttCluster> = Api::namespaced(context.client.clone(), &live.namespace().unwrap_or_default());
    live.status = Some(wanted);
    *live = api
        .replace_status(&live.name_any(), &PostParams::default(), live)
        .await
        .map_err(|error| Error::Status(Box::new(error)))?;
    Ok(())
}

/// Returns whether both steps replace the same pod.
fn is_same_pod(one: &Step, other: &Step) -> bool {
    match (one, other) {
        (Step::Replace { uid: one, .. }, Step::Replace { uid: other, .. }) => one == other,
        _ => false,
    }
}

/// A pass over a cluster.
struct Pass<'a> {
    context: &'a Arc<Context>,
    about: ObjectReference,
    basics: Basics,
    /// What children are built from, or why they stay as they are.
    work: Result<ValidatedCluster, Blocked>,
    facts: Facts,
}

impl Pass<'_> {
    async fn run(mut self, identity: Result<(), apply::Error>, memory: &mut Memory) -> Result<Action, Error> {
        let mut nodes = nodes::from_pods(&self.basics.name, self.replicas(), &self.facts.pods);
        problem::explain_missing(&self.context.client, self.facts.stateful_set.as_ref(), &mut nodes).await;
        nodes::poll(memory, &mut nodes).await;
        let taken = access::create_secrets(&self.context.client, &mut self.facts).await;
        let access = access::project(&self.basics, &self.facts, &taken, &nodes, memory).await?;
        access::anchor(memory, &access);
        let document = &access.projection.document;
        let recorded = access::record(&self.context.client, &self.basics, &self.facts, document).await;
        // Before the push: what a broker refused while nobody watched must be seen before it is mended.
        self.alerts(&nodes, document.revision, memory).await;
        if recorded.is_ok() {
            access::push(memory, &mut nodes, document).await;
        }
        let needed = identity.err().into_iter().chain(recorded.err()).collect();
        let applied = Box::pin(self.apply(&nodes, needed, memory)).await;
        let phase = self.form(&nodes, memory).await?;
        let step = self.roll(&nodes, &applied, &phase, memory).await?;
        self.report(&nodes, &access, &applied, &phase, &step, memory).await?;
        applied?;
        let forming = matches!(phase, Phase::Forming { .. }) && self.held().is_none();
        Ok(Action::requeue(pause(&nodes, forming, &step, document)))
    }

    /// Nodes that this cluster has: while its spec is not applied, those of the StatefulSet.
    fn replicas(&self) -> u32 {
        let spec = self.facts.stateful_set.as_ref().and_then(|set| set.spec.as_ref());
        let applied = spec.and_then(|spec| spec.replicas).and_then(|replicas| u32::try_from(replicas).ok());
        applied.filter(|_| self.work.is_err()).unwrap_or(self.basics.replicas)
    }

    /// Why nothing but access and status is kept up, as a sentence.
    fn held(&self) -> Option<&str> {
        match &self.work {
            Err(blocked) => Some(&blocked.message),
            Ok(_) => self.basics.paused.then_some("spec.paused is set"),
        }
    }

    /// Applies the children; `None`: they stay as they are. `failures` are those of Secrets that pods need: with one of
    /// them, or where another such child fails, the StatefulSet stays as it is.
    async fn apply(
        &self,
        nodes: &[Node],
        mut failures: Vec<apply::Error>,
        memory: &mut Memory,
    ) -> Result<Option<WorkloadStatus>, apply::Error> {
        let cluster = match &self.work {
            Ok(cluster) if !self.basics.paused => cluster,
            _ => return apply::Error::all(failures).map(|()| None),
        };
        let client = &self.context.client;
        let children = build::children(cluster, nodes::is_settled(nodes));
        let outcome = Box::pin(apply::apply_children(client, &children, &memory.children)).await;
        memory.children = outcome.known;
        failures.extend(outcome.needed);
        if !failures.is_empty() {
            return apply::Error::all(failures.into_iter().chain(outcome.others)).map(|()| None);
        }
        let wanted = build::stateful_set(cluster);
        let recorded = self.facts.cluster.status.as_ref().and_then(|status| status.workload.as_ref());
        let live = self.facts.stateful_set.as_ref();
        let workload = apply::apply_stateful_set(client, &self.context.metrics, &wanted, live, recorded).await;
        let (workload, failure) = workload.map_or_else(|error| (None, Some(error)), |workload| (Some(workload), None));
        apply::Error::all(failure.into_iter().chain(outcome.others)).map(|()| workload)
    }

    async fn form(&mut self, nodes: &[Node], memory: &mut Memory) -> Result<Phase, Error> {
        if let Some(waiting) = self.held() {
            let waiting = waiting.to_owned();
            return Ok(if form::is_born(&self.facts.cluster) { Phase::Formed } else { Phase::Forming { waiting } });
        }
        let replicas = self.basics.replicas;
        form::form(self.context, &self.about, &mut self.facts.cluster, replicas, nodes, memory)
            .await
            .map_err(|error| Error::Form(Box::new(error)))
    }

    /// Template revision of the StatefulSet, once its controller has seen what was applied.
    fn revision(&self, applied: &Result<Option<WorkloadStatus>, apply::Error>) -> Option<String> {
        let live = self.facts.stateful_set.as_ref()?;
        let generation = match applied {
            Ok(Some(workload)) => Some(workload.generation),
            _ => live.metadata.generation,
        };
        let status = live.status.as_ref()?;
        let seen = status.observed_generation.is_some() && status.observed_generation >= generation;
        seen.then(|| status.update_revision.clone()).flatten()
    }

    async fn roll(
        &self,
        nodes: &[Node],
        applied: &Result<Option<WorkloadStatus>, apply::Error>,
        phase: &Phase,
        memory: &mut Memory,
    ) -> Result<Step, Error> {
        let revision = self.revision(applied);
        let step = rollout::next(nodes, revision.as_deref(), Timestamp::now());
        // Disks that are not the cluster's are evidence: no pod that holds one is touched.
        if self.held().is_some() || applied.is_err() || matches!(phase, Phase::Foreign { .. } | Phase::Lost) {
            return Ok(Step::Idle);
        }
        let Step::Replace { ordinal, pod, serving, .. } = &step else { return Ok(step) };
        if *serving && self.basics.replicas > 1 {
            let node = nodes.iter().find(|node| node.ordinal == *ordinal);
            let client = node.and_then(|node| nodes::client(memory, node));
            let left = match client {
                Some(mut client) => client.transfer_leaders().await.unwrap_or(u32::MAX),
                None => u32::MAX,
            };
            if left > 0 {
                return Ok(Step::Wait { reason: format!("moving leaders away from {pod}") });
            }
        }
        let still = self.decide_again(revision.as_deref(), memory).await?;
        if !is_same_pod(&step, &still) {
            return Ok(match still {
                Step::Replace { .. } | Step::Idle => Step::Wait { reason: "the pods changed meanwhile".into() },
                other => other,
            });
        }
        self.evict(step).await
    }

    /// Decides from pods and nodes as they are now: up to 40 s have passed since this pass read them.
    async fn decide_again(&self, revision: Option<&str>, memory: &mut Memory) -> Result<Step, Error> {
        let pods = dereference::pods(&self.context.client, &self.basics.namespace, &self.basics.name).await;
        let pods = pods.map_err(|error| Error::Roll(Box::new(error)))?;
        let mut nodes = nodes::from_pods(&self.basics.name, self.replicas(), &pods);
        nodes::poll(memory, &mut nodes).await;
        Ok(rollout::next(&nodes, revision, Timestamp::now()))
    }

    /// Evicts the pod of `step`. The API server grants it only within the disruption budget, which it counts together with
    /// the drains of machines, and only to the pod that was decided about.
    async fn evict(&self, step: Step) -> Result<Step, Error> {
        let Step::Replace { pod, uid, .. } = &step else { return Ok(step) };
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &self.basics.namespace);
        let only_this = Preconditions { uid: Some(uid.clone()), resource_version: None };
        let delete_options = Some(DeleteParams::default().preconditions(only_this));
        match pods.evict(pod, &EvictParams { delete_options, ..EvictParams::default() }).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => return Ok(step),
            Err(kube::Error::Api(status)) if status.code == TOO_MANY_REQUESTS => {
                let reason =
                    format!("the disruption budget does not allow the eviction of {pod} now: {}", status.message);
                return Ok(Step::Wait { reason });
            }
            Err(error) => return Err(Error::Roll(Box::new(error))),
        }
        let note = format!("evicted pod {pod}: it runs an earlier template");
        self.context.event(&self.about, EventType::Normal, reason::ROLLING, pod, &note).await;
        Ok(step)
    }

    async fn alerts(&self, nodes: &[Node], revision: u64, memory: &mut Memory) {
        if !self.basics.builtin_alerts {
            memory.alerting = None;
            return;
        }
        if memory.alerting.is_none() {
            match Alerting::new(&self.facts.cluster, Timestamp::now(), self.context.alert_for_scale) {
                Ok(alerting) => memory.alerting = Some(alerting),
                Err(error) => tracing::error!(%error, "failed to read the alert catalogue"),
            }
        }
        if let Some(alerting) = &mut memory.alerting {
            alerting.observe(self.context, &self.about, nodes, Some(revision)).await;
        }
    }

    async fn report(
        &mut self,
        nodes: &[Node],
        access: &access::Access,
        applied: &Result<Option<WorkloadStatus>, apply::Error>,
        phase: &Phase,
        step: &Step,
        memory: &mut Memory,
    ) -> Result<(), Error> {
        let now = Timestamp::now();
        let revision = self.revision(applied);
        let wanted = status::build(&status::Observed {
            cluster: &self.facts.cluster,
            paused: self.basics.paused,
            blocked: self.work.as_ref().err(),
            nodes,
            phase,
            step,
            projection: Some(&access.projection),
            workload: applied.as_ref().ok().cloned().flatten(),
            revision: revision.as_deref(),
            pods: self.facts.pods.len(),
            apply_error: applied.as_ref().err().map(|error| (error.reason(), error.to_string())),
            alerts: memory.alerting.as_ref().map(Alerting::active),
            now,
        });
        self.tell(applied).await;
        self.measure(&wanted, nodes, access.projection.document.revision);
        self.report_users(nodes, access, memory, now).await;
        let due = memory.status_written.is_none_or(|at| at.elapsed() >= STATUS_EVERY);
        let before = self.facts.cluster.status.as_ref();
        if before != Some(&wanted) && (due || status::is_urgent(before, &wanted)) {
            if let Err(blocked) = &self.work
                && status::is_news(before, &wanted)
            {
                let Blocked { reason, message } = blocked;
                self.context.event(&self.about, EventType::Warning, reason, "Reconcile", message).await;
            }
            write(self.context, &mut self.facts.cluster, wanted).await?;
            memory.status_written = Some(Instant::now());
        }
        Ok(())
    }

    /// Publishes why children are not as wanted, once for each sentence.
    async fn tell(&self, applied: &Result<Option<WorkloadStatus>, apply::Error>) {
        let Err(error) = applied else { return };
        let sentence = error.to_string();
        let mut conditions = self.facts.cluster.status.iter().flat_map(|status| &status.conditions);
        if !conditions.any(|condition| condition.message == sentence) {
            self.context.event(&self.about, EventType::Warning, error.reason(), "Apply", &sentence).await;
        }
    }

    fn measure(&self, status: &MqttClusterStatus, nodes: &[Node], revision: u64) {
        let rejected = nodes.iter().filter(|node| {
            let access = node.report.as_ref().and_then(|report| report.access.as_ref());
            access.is_some_and(|access| access.rejected_revision > 0)
        });
        let facts = ClusterFacts {
            version: status.version.as_ref().map(|version| version.current.clone()).unwrap_or_default(),
            generation: self.facts.cluster.metadata.generation.unwrap_or_default(),
            observed_generation: status.observed_generation.unwrap_or_default(),
            desired: i64::from(self.basics.replicas),
            ready: i64::from(status.ready_replicas),
            acl_revision: revision,
            acl_rejected: i64::try_from(rejected.count()).unwrap_or(i64::MAX),
            conditions: status.conditions.iter().map(|one| (one.type_.clone(), one.status.clone())).collect(),
            alerts: status
                .alerts
                .iter()
                .map(|alert| (alert.name.clone(), alert.severity.clone(), alert.pod.clone().unwrap_or_default()))
                .collect(),
        };
        self.context.metrics.observe(&self.basics.namespace, &self.basics.name, &facts);
    }

    /// Writes the users' status where it differs. One that cannot be written is tried again on the next pass.
    async fn report_users(&self, nodes: &[Node], access: &access::Access, memory: &mut Memory, now: Timestamp) {
        let due = memory.users_written.is_none_or(|at| at.elapsed() >= USERS_EVERY);
        let api: Api<MqttUser> = Api::namespaced(self.context.client.clone(), &self.basics.namespace);
        let changed = self.facts.users.iter().filter_map(|user| {
            let name = user.name_any();
            let wanted = user::status::build(&user::status::Observed {
                user,
                outcome: access.projection.outcomes.get(&name)?,
                credential_problem: access.problems.get(&name).map(|(reason, problem)| (*reason, problem.as_str())),
                anchor: memory.anchors.get(&name).copied().unwrap_or(access.projection.document.revision),
                document: &access.projection.document,
                nodes,
                now,
            });
            let before = user.status.as_ref();
            let write = before != Some(&wanted) && (due || user::status::is_urgent(before, &wanted));
            write.then(|| MqttUser { status: Some(wanted), ..user.clone() })
        });
        let changed: Vec<MqttUser> = changed.collect();
        if due {
            memory.users_written = Some(Instant::now());
        }
        futures::stream::iter(changed)
            .for_each_concurrent(USER_WRITES, |user| {
                let api = api.clone();
                async move {
                    if let Err(error) = api.replace_status(&user.name_any(), &PostParams::default(), &user).await {
                        tracing::debug!(user = %user.name_any(), %error, "failed to write a user's status");
                    }
                }
            })
            .await;
    }
}

/// Time to the next look at the nodes: short while something moves.
fn pause(nodes: &[Node], forming: bool, step: &Step, document: &covey_contract::access::Document) -> Duration {
    let hash = document.hash();
    let answering = || nodes.iter().filter(|node| node.report.is_some());
    let moving = forming
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
