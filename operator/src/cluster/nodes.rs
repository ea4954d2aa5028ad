//! The observed state of the nodes: their pods from the API server, and their status reports over the admin connection.
//!
//! Part of step *poll nodes* of a pass. Invariant: every ordinal below `replicas` has an entry, even without an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use covey_contract::names;
use covey_contract::proto::StatusReply;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::build;
use super::formation::Answer;
use super::problem::{self, Problem};
use crate::admin::Client;
use crate::context::Memory;

/// Time that a node has to answer a status request.
const STATUS_TIMEOUT: Duration = Duration::from_millis(1500);

/// One node.
#[derive(Debug, Clone)]
pub struct Node {
    pub ordinal: u32,
    /// Name of the pod.
    pub name: String,
    /// Absent if the pod does not exist.
    pub pod: Option<PodFacts>,
    /// Absent if the node did not answer.
    pub report: Option<StatusReply>,
    /// Why its broker does not run. Absent if no problem is known.
    pub problem: Option<Problem>,
}

/// The state of a pod in the API server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFacts {
    pub uid: String,
    pub ip: Option<String>,
    /// The pod's Ready condition.
    pub ready: bool,
    /// When the Ready condition became false. Absent while it is true, and before the kubelet has written it.
    pub unready_since: Option<Timestamp>,
    /// When the Ready condition became true. Absent while it is not.
    pub ready_since: Option<Timestamp>,
    pub terminating: bool,
    /// Template revision of the pod.
    pub revision: Option<String>,
}

impl Node {
    /// Returns whether the node serves clients, as reported by both the node and the kubelet.
    pub fn is_ready(&self) -> bool {
        self.is_ready_by_kubelet() && self.report.as_ref().is_some_and(|report| report.ready)
    }

    /// Returns whether the kubelet reports the pod as ready: a few seconds ago its broker had a lease.
    pub fn is_ready_by_kubelet(&self) -> bool {
        self.pod.as_ref().is_some_and(|pod| pod.ready && !pod.terminating)
    }

    /// Returns whether the kubelet reports the pod as ready although the node does not answer the operator.
    pub fn is_unreachable(&self) -> bool {
        self.is_ready_by_kubelet() && self.report.is_none()
    }

    /// Returns whether the node enforces this access revision and has refused no newer one.
    pub fn enforces(&self, revision: u64, hash: &str) -> bool {
        let access = self.report.as_ref().and_then(|report| report.access.as_ref());
        access.is_some_and(|access| access.revision == revision && access.hash == hash && access.rejected_revision == 0)
    }

    /// Returns the access revision that the node enforces, 0 if it has none, or `None` if it does not answer.
    pub fn revision(&self) -> Option<u64> {
        self.report.as_ref().map(|report| report.access.as_ref().map_or(0, |access| access.revision))
    }

    /// Returns the highest access revision that the node has enforced or refused.
    pub fn seen_revision(&self) -> u64 {
        let access = self.report.as_ref().and_then(|report| report.access.as_ref());
        access.map_or(0, |access| access.revision.max(access.rejected_revision))
    }
}

/// Returns the nodes as their pods show them, one entry per ordinal.
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
    let since = ready.and_then(|one| one.last_transition_time.as_ref()).map(|time| time.0);
    PodFacts {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        ip: status.and_then(|status| status.pod_ip.clone()).filter(|ip| !ip.is_empty()),
        ready: is_ready,
        unready_since: since.filter(|_| !is_ready),
        ready_since: since.filter(|_| is_ready),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        revision: pod.metadata.labels.as_ref().and_then(|labels| labels.get(build::REVISION_LABEL).cloned()),
    }
}

/// Returns a client for the node, reused between reconciles. `None` if the node has no address or the client fails.
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
            tracing::warn!(node = %node.name, %error, "failed to set up the connection to a node");
            None
        }
    }
}

/// Requests the status of all nodes in parallel and stores their reports. Drops the clients of addresses that are gone.
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
                    tracing::debug!(node = %node.name, %error, "node did not answer");
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

/// Returns what the answering nodes report about their disks.
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

/// Returns the highest ordinal of the members in the report, plus one: the number of nodes that their cluster needs. 0
/// if the report lists no members.
pub fn members_of(report: &StatusReply) -> u32 {
    report.members.iter().map(|member| member.ordinal.saturating_add(1)).max().unwrap_or_default()
}

/// Returns the nodes that are members. Returns all nodes while no node knows of a member, as before the cluster is
/// formed. A node that has not joined yet holds no data.
pub fn members(nodes: &[Node]) -> Vec<&Node> {
    let joined = member_ordinals(nodes);
    nodes.iter().filter(|node| joined.is_empty() || joined.contains(&node.ordinal)).collect()
}

/// Returns the number of nodes that the kubelet reports as ready. Metrics and alerts count these: clients of a node that
/// only the operator does not reach are served.
pub fn ready_by_kubelet(nodes: &[Node]) -> usize {
    nodes.iter().filter(|node| node.is_ready_by_kubelet()).count()
}

/// Returns whether every node answers, knows the leader of every group of which it is a replica, and has all voters in
/// sync in the groups that it leads.
pub fn is_settled<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> bool {
    nodes.into_iter().all(|node| {
        node.report
            .as_ref()
            .is_some_and(|report| report.groups.iter().all(|group| group.has_leader) && report.groups_out_of_sync == 0)
    })
}

/// Returns whether the other members can serve without `one`: they are a majority, ready, and know the leaders of their
/// groups, and no voter but `one` lacks entries.
pub fn can_spare(members: &[&Node], one: &Node) -> bool {
    let others = || members.iter().copied().filter(|node| node.ordinal != one.ordinal);
    let reports = || others().filter_map(|node| node.report.as_ref());
    let id = reports().flat_map(|report| &report.members).find(|member| member.ordinal == one.ordinal);
    let is_one = |node_id: &String| id.is_some_and(|member| member.node_id == *node_id);
    // A broker of an earlier version reports how many groups have a voter that is behind, but not which voter.
    let only_one_is_behind = |report: &StatusReply| {
        report.groups_out_of_sync == 0 || !report.voters_behind.is_empty() && report.voters_behind.iter().all(is_one)
    };
    others().count() * 2 > members.len()
        && others().all(Node::is_ready)
        && reports().all(|report| report.groups.iter().all(|group| group.has_leader) && only_one_is_behind(report))
}

/// Returns the number of groups whose leader no node knows. A node that is cut off from its peers knows no leader, so a
/// group counts only if none of its replicas knows one.
pub fn leaderless_groups(nodes: &[Node]) -> usize {
    let mut known = BTreeMap::<u32, bool>::new();
    for group in nodes.iter().filter_map(|node| node.report.as_ref()).flat_map(|report| &report.groups) {
        *known.entry(group.group).or_default() |= group.has_leader;
    }
    known.values().filter(|has_leader| !**has_leader).count()
}

/// Returns the ordinals of the members that the nodes know of. Empty before the cluster is formed.
fn member_ordinals(nodes: &[Node]) -> BTreeSet<u32> {
    let reports = nodes.iter().filter_map(|node| node.report.as_ref());
    reports.flat_map(|report| &report.members).map(|member| member.ordinal).collect()
}
