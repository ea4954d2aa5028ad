//! What is known of the nodes: their pods from the API server, their own word over the admin line.
//!
//! Part of the reconcile's first step. Invariant: every ordinal below `replicas` has an entry, whether or not it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use covey_contract::names;
use covey_contract::proto::StatusReply;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::formation::Answer;
use super::problem::{self, Problem};
use crate::admin::Client;
use crate::context::Memory;

/// A node that does not answer within this is not in touch.
const STATUS_TIMEOUT: Duration = Duration::from_millis(1500);
/// Label that the StatefulSet controller puts on a pod.
const REVISION_LABEL: &str = "controller-revision-hash";

/// One node.
#[derive(Debug, Clone)]
pub struct Node {
    pub ordinal: u32,
    /// Name of the pod.
    pub name: String,
    /// Absent: there is no such pod.
    pub pod: Option<PodFacts>,
    /// Absent: the node does not answer.
    pub report: Option<StatusReply>,
    /// Why its broker does not run; absent: nothing is known to be wrong.
    pub problem: Option<Problem>,
}

/// What the API server knows of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFacts {
    pub uid: String,
    pub ip: Option<String>,
    /// The pod's Ready condition.
    pub ready: bool,
    /// When the Ready condition became false; absent while it is true, and before the kubelet has written it.
    pub unready_since: Option<Timestamp>,
    pub terminating: bool,
    /// Template revision that it runs.
    pub revision: Option<String>,
}

impl Node {
    /// Whether the node serves clients: its own word, and the kubelet's.
    pub fn is_ready(&self) -> bool {
        self.pod.as_ref().is_some_and(|pod| pod.ready && !pod.terminating)
            && self.report.as_ref().is_some_and(|report| report.ready)
    }

    /// Whether the node enforces this access revision.
    pub fn enforces(&self, revision: u64, hash: &str) -> bool {
        let access = self.report.as_ref().and_then(|report| report.access.as_ref());
        access.is_some_and(|access| access.revision == revision && access.hash == hash && access.rejected_revision == 0)
    }

    /// The access revision that it enforces; absent: unknown.
    pub fn revision(&self) -> Option<u64> {
        self.report.as_ref().map(|report| report.access.as_ref().map_or(0, |access| access.revision))
    }

    /// Highest access revision that it has seen, enforced or refused.
    pub fn seen_revision(&self) -> u64 {
        let access = self.report.as_ref().and_then(|report| report.access.as_ref());
        access.map_or(0, |access| access.revision.max(access.rejected_revision))
    }
}

/// The pods' facts, one entry per ordinal.
pub fn from_pods(cluster_name: &str, replicas: u32, pods: &[Pod]) -> Vec<Node> {
    let node = |ordinal: u32| {
        let name = format!("{cluster_name}-{ordinal}");
        let pod = pods.iter().find(|pod| pod.metadata.name.as_deref() == Some(name.as_str()));
        Node { ordinal, name, pod: pod.map(facts), report: None, problem: pod.and_then(problem::of_pod) }
    };
    (0..replicas).map(node).collect()
}

fn facts(pod: &Pod) -> PodFacts {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|one| one.type_ == "Ready");
    let is_ready = ready.is_some_and(|one| one.status == "True");
    PodFacts {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        ip: status.and_then(|status| status.pod_ip.clone()).filter(|ip| !ip.is_empty()),
        ready: is_ready,
        unready_since: ready.filter(|_| !is_ready).and_then(|one| one.last_transition_time.as_ref()).map(|time| time.0),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        revision: pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_LABEL).cloned()),
    }
}

/// A client for the node, kept between reconciles; absent: the node has no address.
pub(crate) fn client(memory: &mut Memory, node: &Node) -> Option<Client> {
    let host = node.pod.as_ref()?.ip.clone()?;
    if let Some(client) = memory.clients.get(&host) {
        return Some(client.clone());
    }
    let client = Client::new(&host, names::PORT_ADMIN, memory.credentials.as_ref()?, STATUS_TIMEOUT);
    match client {
        Ok(client) => {
            memory.clients.insert(host, client.clone());
            Some(client)
        }
        Err(error) => {
            tracing::warn!(node = %node.name, %error, "failed to prepare a line to the node");
            None
        }
    }
}

/// Asks all nodes at once.
pub(crate) async fn poll(memory: &mut Memory, nodes: &mut [Node]) {
    let addresses: Vec<String> =
        nodes.iter().filter_map(|node| node.pod.as_ref().and_then(|pod| pod.ip.clone())).collect();
    memory.clients.retain(|address, _| addresses.contains(address));
    let asked = nodes.iter().map(|node| {
        let client = client(memory, node);
        async move {
            let mut client = client?;
            match client.status(STATUS_TIMEOUT).await {
                Ok(report) if report.ordinal == node.ordinal => Some(report),
                Ok(report) => {
                    tracing::warn!(node = %node.name, ordinal = report.ordinal, "another node answered at its address");
                    None
                }
                Err(error) => {
                    tracing::debug!(node = %node.name, %error, "the node does not answer");
                    None
                }
            }
        }
    });
    let asked: Vec<_> = asked.collect();
    let reports = join_all(asked).await;
    for (node, report) in nodes.iter_mut().zip(reports) {
        node.report = report;
    }
}

/// What the nodes say about their disks.
pub fn answers(nodes: &[Node]) -> Vec<Answer> {
    let answer = |node: &Node| {
        node.report.as_ref().map(|report| Answer {
            ordinal: node.ordinal,
            node_id: report.node_id.clone(),
            cluster_id: report.cluster_id.clone(),
            members: members_of(report),
        })
    };
    nodes.iter().filter_map(answer).collect()
}

/// Number of nodes that the members which a node knows of need; 0 where it knows of none.
pub fn members_of(report: &StatusReply) -> u32 {
    report.members.iter().map(|member| member.ordinal.saturating_add(1)).max().unwrap_or_default()
}

/// The nodes that are members; all of them while no node knows of any member, as before the cluster is formed. A node that
/// has not joined yet, because the cluster is growing, has nothing that the others could lose.
pub fn members(nodes: &[Node]) -> Vec<&Node> {
    let joined = member_ordinals(nodes);
    nodes.iter().filter(|node| joined.is_empty() || joined.contains(&node.ordinal)).collect()
}

/// Number of pods that may be unavailable at a time: one while every group has its voters in sync, none otherwise. A pod
/// that has not joined and is not ready comes on top: it is unavailable already, and must not keep the machines of the
/// others from being drained.
pub fn disruption_budget(nodes: &[Node]) -> u32 {
    let members = members(nodes);
    let is_waiting = |node: &&Node| !node.is_ready() && !members.iter().any(|member| member.ordinal == node.ordinal);
    let waiting = nodes.iter().filter(is_waiting).count();
    if is_settled(members.iter().copied()) { u32::try_from(waiting).unwrap_or(u32::MAX).saturating_add(1) } else { 0 }
}

/// Returns whether every node answers, knows the leader of every group that it holds, and misses no voter's entries in a
/// group that it leads.
pub fn is_settled<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> bool {
    nodes.into_iter().all(|node| {
        node.report
            .as_ref()
            .is_some_and(|report| report.groups.iter().all(|group| group.has_leader) && report.groups_out_of_sync == 0)
    })
}

/// Number of groups whose leader no node knows. A node that is cut off from its peers knows none of its own; that says
/// nothing about a group of which another node knows the leader.
pub fn leaderless_groups(nodes: &[Node]) -> usize {
    let mut known = BTreeMap::<u32, bool>::new();
    for group in nodes.iter().filter_map(|node| node.report.as_ref()).flat_map(|report| &report.groups) {
        *known.entry(group.group).or_default() |= group.has_leader;
    }
    known.values().filter(|has_leader| !**has_leader).count()
}

/// Ordinals of the members that the nodes know of; empty before the cluster is formed.
fn member_ordinals(nodes: &[Node]) -> BTreeSet<u32> {
    let reports = nodes.iter().filter_map(|node| node.report.as_ref());
    reports.flat_map(|report| &report.members).map(|member| member.ordinal).collect()
}
