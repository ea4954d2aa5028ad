//! A step of the rollout: carries out what [`super::super::rollout`] decides.

use covey_contract::names::ANNOTATION_APPROVE_ROLLOUT;
use covey_crds::RolloutPolicy;
use covey_crds::condition::reason;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, EvictParams, Preconditions};
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt};

use super::super::nodes::Node;
use super::super::postponement::{self, Postponement};
use super::super::rollout::{self, Step, Terms};
use super::super::status::Phase;
use super::super::trial::{self, Answer};
use super::super::validate::ValidatedRollout;
use super::super::{build, dereference, nodes};
use super::{Applied, Error, Pass, form};
use crate::context::{Key, Memory};

/// HTTP status of an eviction that the disruption budget does not allow.
const TOO_MANY_REQUESTS: u16 = 429;

impl Pass<'_> {
    /// Evicts the next pod, if one may be evicted. Returns the step that was carried out or what it waits for.
    ///
    /// # Errors
    /// If a request fails for any reason other than a refused eviction.
    pub(super) async fn roll(
        &self,
        nodes: &[Node],
        applied: &Applied,
        phase: &Phase,
        memory: &mut Memory,
    ) -> Result<Step, Error> {
        // Pods with foreign or empty disks are not replaced, because the disks may be needed to find the cause.
        if self.not_applied_because().is_some()
            || applied.error().is_some()
            || matches!(phase, Phase::Foreign { .. } | Phase::TooFew { .. } | Phase::AllDisksEmpty)
        {
            return Ok(Step::Idle);
        }
        let revision = self.template_revision(applied);
        let step = self.next_step(nodes, revision.as_deref(), memory).await;
        let Step::Replace { ordinal, pod, serving, .. } = &step else { return Ok(step) };
        if *serving && let Err(others) = self.context.fleet.enter(&self.key()) {
            return Ok(Step::Postponed(Postponement::Fleet { others }));
        }
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
                Step::Replace { .. } | Step::Idle => Step::Wait { reason: "the pods changed in the meantime".into() },
                other => other,
            });
        }
        self.evict(step).await
    }

    /// Decides the next step. While no pod of the new template exists, the API server is asked first whether it would
    /// admit one in place of an earlier one.
    pub(super) async fn next_step(&self, nodes: &[Node], revision: Option<&str>, memory: &mut Memory) -> Step {
        if let Some(reason) = self.scale.message().filter(|_| self.scale.takes_a_node()) {
            return Step::Wait { reason };
        }
        let step = rollout::next(nodes, revision, &self.terms(revision), Timestamp::now());
        let (Ok(cluster), Some(revision), None) = (&self.work, revision, self.not_applied_because()) else {
            return step;
        };
        let outdated = rollout::outdated(nodes, revision);
        let pods = nodes.iter().filter(|node| node.pod.is_some()).count();
        let Some(first) = outdated.first().filter(|_| outdated.len() == pods) else { return step };
        if matches!(step, Step::Stopped { .. }) {
            return step;
        }
        let mut wanted = build::stateful_set(cluster);
        wanted.metadata.uid = self.inputs.stateful_set.as_ref().and_then(ResourceExt::uid);
        let replaced = self.inputs.pods.iter().find(|live| live.name_any() == first.name);
        match trial::ask(&self.context.client, &wanted, revision, replaced, &mut memory.trial).await {
            Answer::Admitted => step,
            Answer::Refused(answer) => Step::Refused {
                reason: format!(
                    "no further pod is evicted, because one of the new template would be refused: {answer}"
                ),
            },
            Answer::Unknown(answer) => Step::Wait {
                reason: format!("the API server cannot say whether it would admit a pod of the new template: {answer}"),
            },
        }
    }

    /// Decides again from the current pods and nodes: those that this pass has read are several seconds old.
    async fn decide_again(&self, revision: Option<&str>, memory: &mut Memory) -> Result<Step, Error> {
        let pods = dereference::pods(&self.context.client, &self.basics.namespace, &self.basics.name).await;
        let pods = pods.map_err(|error| Error::Roll(Box::new(error)))?;
        let nodes = self.nodes(&pods, memory).await;
        Ok(rollout::next(&nodes, revision, &self.terms(revision), Timestamp::now()))
    }

    pub(super) fn terms(&self, revision: Option<&str>) -> Terms {
        // While the spec is invalid nothing is replaced.
        let rollout = self.work.as_ref().ok().map(|cluster| &cluster.rollout);
        Terms {
            is_formed: form::is_formed(&self.inputs.cluster),
            min_ready: rollout.and_then(|rollout| rollout.min_ready.try_into().ok()).unwrap_or_default(),
            postponement: rollout.zip(revision).and_then(|(rollout, revision)| self.postponement(rollout, revision)),
        }
    }

    /// Returns why pods that run their broker are not replaced now, by the spec.
    fn postponement(&self, rollout: &ValidatedRollout, revision: &str) -> Option<Postponement> {
        let approval = self.inputs.cluster.annotations().get(ANNOTATION_APPROVE_ROLLOUT);
        let approved = approval.is_some_and(|approved| approved == revision);
        if rollout.policy == RolloutPolicy::Manual && !approved {
            return Some(Postponement::Approval { revision: revision.to_owned() });
        }
        postponement::outside(&rollout.windows, Timestamp::now())
    }

    pub(super) fn key(&self) -> Key {
        (self.basics.namespace.clone(), self.basics.name.clone())
    }

    /// Evicts the pod of `step`. The API server grants it only within the disruption budget, which it counts together
    /// with the drains of machines, and only for the pod with this uid.
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
}

/// Returns whether both steps replace the same pod.
fn is_same_pod(one: &Step, other: &Step) -> bool {
    match (one, other) {
        (Step::Replace { uid: one, .. }, Step::Replace { uid: other, .. }) => one == other,
        _ => false,
    }
}
