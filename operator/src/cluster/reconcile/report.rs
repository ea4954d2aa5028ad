//! Last step of a pass: status of the cluster and its users, Events and metrics.

use std::time::Duration;

use covey_crds::{MqttCluster, MqttClusterStatus, MqttUser};
use futures::StreamExt as _;
use jiff::Timestamp;
use kube::api::PostParams;
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt as _};
use tokio::time::Instant;

use super::super::access;
use super::super::alerting::Alerting;
use super::super::nodes::{self, Node};
use super::super::rollout::Step;
use super::super::status::{self, Blocked, Phase};
use super::{Applied, Error, Pass};
use crate::context::{Context, Memory};
use crate::metrics::ClusterFacts;
use crate::user;

/// Minimum time between two writes of a status in which only counts differ.
const STATUS_EVERY: Duration = Duration::from_secs(10);
const USERS_EVERY: Duration = Duration::from_secs(30);
/// Users whose status is written at the same time.
const USER_WRITES: usize = 8;

impl Pass<'_> {
    /// Writes the status of cluster and users if they differ, publishes Events, and updates the metrics.
    ///
    /// # Errors
    /// If the status of the cluster cannot be written. A user's status is written again by the next pass.
    pub(super) async fn report(
        &mut self,
        nodes: &[Node],
        access: &access::Access,
        applied: &Applied,
        phase: &Phase,
        step: &Step,
        memory: &mut Memory,
    ) -> Result<(), Error> {
        let now = Timestamp::now();
        let revision = self.template_revision(applied);
        let terms = self.terms(revision.as_deref());
        let rolls = terms.is_formed && self.not_applied_because().is_none();
        let postponement = terms.postponement.filter(|_| rolls);
        let wanted = status::build(&status::Observed {
            cluster: &self.inputs.cluster,
            paused: self.basics.paused,
            blocked: self.work.as_ref().err(),
            nodes,
            phase,
            step,
            scale: &self.scale,
            postponement: postponement.as_ref(),
            projection: Some(&access.projection),
            workload: applied.workload().cloned(),
            revision: revision.as_deref(),
            pods: self.inputs.pods.len(),
            apply_error: applied.error().map(|error| (error.reason(), error.to_string())),
            alerts: memory.alerting.as_ref().map(Alerting::active),
            now,
        });
        self.tell(applied, memory).await;
        self.measure(&wanted, nodes, access.projection.document.revision);
        self.report_users(nodes, access, memory, now).await;
        let due = memory.status_written.is_none_or(|at| at.elapsed() >= STATUS_EVERY);
        let before = self.inputs.cluster.status.as_ref();
        if before != Some(&wanted) && (due || status::is_urgent(before, &wanted)) {
            if let Err(blocked) = &self.work
                && status::is_news(before, &wanted)
            {
                let Blocked { reason, message } = blocked;
                self.context.event(&self.about, EventType::Warning, reason, "Reconcile", message).await;
            }
            write(self.context, &mut self.inputs.cluster, wanted).await?;
            memory.status_written = Some(Instant::now());
        }
        Ok(())
    }

    /// Publishes an Event with the error of the children when it changes.
    async fn tell(&self, applied: &Applied, memory: &mut Memory) {
        let message = applied.error().map(ToString::to_string);
        if let (Some(error), Some(message)) = (applied.error(), &message)
            && memory.apply_error.as_ref() != Some(message)
        {
            self.context.event(&self.about, EventType::Warning, error.reason(), "Apply", message).await;
        }
        memory.apply_error = message;
    }

    fn measure(&self, status: &MqttClusterStatus, nodes: &[Node], revision: u64) {
        let rejected = nodes.iter().filter(|node| {
            let access = node.report.as_ref().and_then(|report| report.access.as_ref());
            access.is_some_and(|access| access.rejected_revision > 0)
        });
        let facts = ClusterFacts {
            version: status.version.as_ref().map(|version| version.current.clone()).unwrap_or_default(),
            generation: self.inputs.cluster.metadata.generation.unwrap_or_default(),
            observed_generation: status.observed_generation.unwrap_or_default(),
            desired: i64::from(self.basics.replicas),
            ready: i64::try_from(nodes::ready_by_kubelet(nodes)).unwrap_or(i64::MAX),
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

    /// Writes the status of each user if it differs. A failure is logged and retried by the next pass.
    async fn report_users(&self, nodes: &[Node], access: &access::Access, memory: &mut Memory, now: Timestamp) {
        let due = memory.users_written.is_none_or(|at| at.elapsed() >= USERS_EVERY);
        let api: Api<MqttUser> = Api::namespaced(self.context.client.clone(), &self.basics.namespace);
        let changed = self.inputs.users.iter().filter_map(|user| {
            let name = user.name_any();
            let wanted = user::status::build(&user::status::Observed {
                user,
                outcome: access.projection.outcomes.get(&name)?,
                credential_problem: access.problems.get(&name).map(|(reason, problem)| (*reason, problem.as_str())),
                since_revision: memory
                    .since_revisions
                    .get(&name)
                    .copied()
                    .unwrap_or(access.projection.document.revision),
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

async fn write(context: &Context, live: &mut MqttCluster, wanted: MqttClusterStatus) -> Result<(), Error> {
    let api: Api<MqttCluster> = Api::namespaced(context.client.clone(), &live.namespace().unwrap_or_default());
    let written = MqttCluster { status: Some(wanted), ..live.clone() };
    let written = api.replace_status(&live.name_any(), &PostParams::default(), &written).await;
    *live = written.map_err(|error| Error::Status(Box::new(error)))?;
    Ok(())
}
