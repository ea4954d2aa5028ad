//! A step of scaling: carries out what [`super::super::scale`] decides.

use std::time::Duration;

use covey_crds::condition::reason;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::events::EventType;

use super::super::nodes::{self, Node};
use super::super::scale::{self, Sizes, Step};
use super::{Pass, form};
use crate::admin;
use crate::context::Memory;

/// Time for the meta group to commit a change.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(2);

impl Pass<'_> {
    /// Decides the next step, tells the brokers where it is theirs, and sets the number of pods that the children are
    /// applied with.
    pub(super) async fn resize(&mut self, nodes: &[Node], memory: &mut Memory) {
        if self.not_applied_because().is_some() || !form::is_formed(&self.inputs.cluster) {
            return;
        }
        let applied = self.replicas();
        let sizes = Sizes { wanted: self.basics.replicas, applied };
        let step = scale::next(nodes, self.stopping(applied).as_deref(), sizes, &self.basics.name);
        let told = match &step {
            Step::Resize { nodes: wanted } => self.tell_any(nodes, memory, Change::Resize(*wanted)).await,
            Step::Leave { node_id, .. } => self.tell_any(nodes, memory, Change::Leave(node_id)).await,
            Step::Settled | Step::Wait { .. } | Step::RemovePod { .. } | Step::Stopping { .. } => Ok(()),
        };
        if let Err(error) = told {
            // Expected for some seconds: a member leaves only when its epoch has ended.
            tracing::debug!(cluster = %self.basics.name, ?step, %error, "the brokers did not take the step; trying again");
        }
        let pods = if let Step::RemovePod { replicas, .. } = &step { *replicas } else { applied };
        if let Ok(cluster) = &mut self.work {
            cluster.replicas = pods;
        }
        if let (Step::RemovePod { pod, .. }, Some(note)) = (&step, step.message()) {
            self.context.event(&self.about, EventType::Normal, reason::SCALING, pod, &note).await;
        }
        self.scale = step;
    }

    /// Returns the name of a broker pod beyond the replicas of the StatefulSet: it is stopping.
    fn stopping(&self, applied: u32) -> Option<String> {
        let beyond = |pod: &&Pod| ordinal(pod).is_some_and(|ordinal| ordinal >= applied);
        self.inputs.pods.iter().find(beyond).map(ResourceExt::name_any)
    }

    /// Sends the change to a node that serves, which forwards it to the meta leader.
    async fn tell_any(&self, nodes: &[Node], memory: &mut Memory, change: Change<'_>) -> Result<(), admin::Error> {
        let Some(mut client) = nodes.iter().filter(|node| node.is_ready()).find_map(|node| nodes::client(memory, node))
        else {
            return Ok(());
        };
        match change {
            Change::Resize(nodes) => client.resize(nodes, COMMIT_TIMEOUT).await,
            Change::Leave(node_id) => client.leave(node_id, COMMIT_TIMEOUT).await,
        }
    }
}

/// A change of the members, which the meta group commits.
enum Change<'a> {
    Resize(u32),
    Leave(&'a str),
}

/// Returns the ordinal at the end of a pod's name.
pub(super) fn ordinal(pod: &Pod) -> Option<u32> {
    pod.name_any().rsplit_once('-')?.1.parse().ok()
}
