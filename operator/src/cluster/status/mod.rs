//! Step *status* of a pass: builds the status. Pure; the caller writes it if it differs.

mod rollout;

use covey_contract::access::display_revision;
use covey_crds::condition::{self, reason};
use covey_crds::{
    AccessStatus, AlertStatus, MqttCluster, MqttClusterStatus, NodeStatus, Quorum, Totals, Version, WorkloadStatus,
};
use jiff::Timestamp;

use super::build;
use super::nodes::{self, Node};
use super::postponement::Postponement;
use super::rollout::{Step, outdated};
use super::scale;
use crate::access::Projection;
use crate::conditions::{Draft, merge};

/// Maximum number of alerts in a status.
const MAX_ALERTS: usize = 20;

/// Phase of the cluster's formation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The cluster is not formed yet. `waiting` is a message that says what the formation waits for.
    Forming {
        waiting: String,
    },
    Formed,
    /// Some disks belong to another cluster: ordinal and cluster id of each.
    Foreign {
        disks: Vec<(u32, String)>,
    },
    /// The disks hold a cluster with `members` nodes, more than `spec.replicas`.
    TooFew {
        members: u32,
    },
    /// Every disk is empty although the cluster was formed before.
    AllDisksEmpty,
}

/// Why children are not applied although the cluster is not paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    pub reason: &'static str,
    pub message: String,
}

/// The inputs of a status.
#[derive(Debug)]
pub struct Observed<'a> {
    pub cluster: &'a MqttCluster,
    pub paused: bool,
    /// Absent if children are applied.
    pub blocked: Option<&'a Blocked>,
    pub nodes: &'a [Node],
    pub phase: &'a Phase,
    pub step: &'a Step,
    /// Next step of a change of the cluster's size.
    pub scale: &'a scale::Step,
    /// Why pods that run their broker are not replaced now, by the spec.
    pub postponement: Option<&'a Postponement>,
    pub projection: Option<&'a Projection>,
    pub workload: Option<WorkloadStatus>,
    /// The StatefulSet's update revision.
    pub revision: Option<&'a str>,
    /// Number of pods that exist.
    pub pods: usize,
    /// Why children could not be applied, as a reason and a message.
    pub apply_error: Option<(&'static str, String)>,
    /// Absent if alerts are not evaluated.
    pub alerts: Option<Vec<AlertStatus>>,
    pub now: Timestamp,
}

/// Builds the status.
pub fn build(observed: &Observed<'_>) -> MqttClusterStatus {
    let before = observed.cluster.status.clone().unwrap_or_default();
    let nodes = observed.nodes;
    let ready = nodes.iter().filter(|node| node.is_ready()).count();
    let name = observed.cluster.metadata.name.as_deref().unwrap_or_default();
    let alerts = observed.alerts.clone().unwrap_or_default();
    let quorum = quorum(observed);
    let generation = observed.cluster.metadata.generation;
    let conditions = merge(&before.conditions, drafts(observed, ready, &quorum), generation, observed.now);
    MqttClusterStatus {
        observed_generation: generation,
        cluster_id: before.cluster_id.clone(),
        replicas: i32::try_from(observed.pods).unwrap_or(i32::MAX),
        ready_replicas: i32::try_from(ready).unwrap_or(i32::MAX),
        ready: format!("{ready}/{}", nodes.len()),
        selector: build::selector_text(name),
        version: Some(version(observed)),
        quorum: Some(quorum),
        totals: Some(totals(nodes)),
        acl: observed.projection.map(|projection| access(projection, nodes)),
        nodes: nodes.iter().map(|node| node_status(node, observed.phase)).collect(),
        formation: before.formation.clone(),
        workload: observed.workload.clone().or(before.workload),
        alerts_firing: i32::try_from(alerts.len()).unwrap_or(i32::MAX),
        alerts: alerts.into_iter().take(MAX_ALERTS).collect(),
        conditions,
    }
}

/// Returns whether reason or message of the Ready condition differ.
pub fn is_news(before: Option<&MqttClusterStatus>, after: &MqttClusterStatus) -> bool {
    fn ready(status: &MqttClusterStatus) -> Option<(&str, &str)> {
        let ready = status.conditions.iter().find(|condition| condition.type_ == condition::READY)?;
        Some((&ready.reason, &ready.message))
    }
    before.and_then(ready) != ready(after)
}

/// Returns whether the difference must be written at once. Differences in counts, which change all the time, can wait.
pub fn is_urgent(before: Option<&MqttClusterStatus>, after: &MqttClusterStatus) -> bool {
    let still = |status: &MqttClusterStatus| {
        let mut status = status.clone();
        status.totals = None;
        for node in &mut status.nodes {
            (node.connections, node.sessions, node.disk_free_percent) = (None, None, None);
        }
        status
    };
    before.map(still).as_ref() != Some(&still(after))
}

fn version(observed: &Observed<'_>) -> Version {
    let reported = observed.nodes.iter().filter_map(|node| node.report.as_ref()).map(|report| report.version.clone());
    let before = observed.cluster.status.as_ref().and_then(|status| status.version.as_ref());
    let current = reported
        .min_by_key(|version| (semver::Version::parse(version).ok(), version.clone()))
        .or_else(|| before.map(|version| version.current.clone()))
        .unwrap_or_default();
    Version { current, pending: pending(observed) }
}

/// Returns the names of the pods that do not run the current template.
fn pending(observed: &Observed<'_>) -> Vec<String> {
    let outdated = observed.revision.map(|revision| outdated(observed.nodes, revision)).unwrap_or_default();
    outdated.into_iter().map(|node| node.name.clone()).collect()
}

fn quorum(observed: &Observed<'_>) -> Quorum {
    let nodes = observed.nodes;
    let reports: Vec<_> = nodes.iter().filter_map(|node| node.report.as_ref()).collect();
    let in_touch: Vec<_> = nodes.iter().filter(|node| is_in_touch(node)).collect();
    let leader = in_touch.iter().filter_map(|node| node.report.as_ref()).map(|report| &report.meta_leader).next();
    let leader = leader.and_then(|id| nodes.iter().find(|node| node.report.as_ref().is_some_and(|r| r.node_id == *id)));
    let leaderless = i64::try_from(nodes::leaderless_groups(nodes)).unwrap_or(i64::MAX);
    let state = match observed.phase {
        Phase::Forming { .. } => "Forming",
        Phase::AllDisksEmpty => "Lost",
        Phase::Foreign { .. } | Phase::TooFew { .. } => "Unknown",
        Phase::Formed if reports.is_empty() || is_out_of_reach(nodes) => "Unknown",
        Phase::Formed if in_touch.len() * 2 <= nodes.len() => "Lost",
        Phase::Formed if leaderless > 0 || in_touch.len() < nodes.len() => "Degraded",
        Phase::Formed => "Healthy",
    };
    Quorum { state: state.into(), meta_leader: leader.map(|node| node.name.clone()), leaderless_groups: leaderless }
}

/// Returns whether the node reports that it is in contact with the others.
fn is_in_touch(node: &Node) -> bool {
    node.report.as_ref().is_some_and(|report| report.member && !report.meta_leader.is_empty())
}

/// Returns whether no majority reports that it is in contact, while some nodes that do not answer are ready according to
/// the kubelet. A node is ready only while a majority renews its lease, so the majority is probably there.
fn is_out_of_reach(nodes: &[Node]) -> bool {
    let in_touch = nodes.iter().filter(|node| is_in_touch(node)).count();
    in_touch * 2 <= nodes.len() && nodes.iter().any(Node::is_unreachable)
}

/// Returns the message for nodes that the operator does not reach.
fn out_of_reach(nodes: &[Node]) -> String {
    let names: Vec<&str> = nodes.iter().filter(|node| node.is_unreachable()).map(|node| node.name.as_str()).collect();
    format!(
        "{} do not answer the operator on TCP port {}, although the kubelet reports them as ready: they probably serve; \
         check NetworkPolicy and firewalls between the operator and the brokers",
        names.join(", "),
        covey_contract::names::PORT_ADMIN
    )
}

fn totals(nodes: &[Node]) -> Totals {
    let reports = || nodes.iter().filter_map(|node| node.report.as_ref());
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    Totals {
        connections: number(reports().map(|report| report.connections).sum()),
        sessions: number(reports().map(|report| report.sessions).sum()),
        // Every node holds all retained messages.
        retained: number(reports().map(|report| report.retained).max().unwrap_or(0)),
    }
}

fn access(projection: &Projection, nodes: &[Node]) -> AccessStatus {
    let document = &projection.document;
    let hash = document.hash();
    let number = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
    AccessStatus {
        revision: display_revision(document.revision, &hash),
        users: number(document.users.len()),
        rules: number(projection.rules()),
        nodes_in_sync: number(nodes.iter().filter(|node| node.enforces(document.revision, &hash)).count()),
    }
}

fn node_status(node: &Node, phase: &Phase) -> NodeStatus {
    let foreign =
        matches!(phase, Phase::Foreign { disks } if disks.iter().any(|(ordinal, _)| *ordinal == node.ordinal));
    let report = node.report.as_ref();
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let state = match (&node.pod, report) {
        _ if foreign => "Foreign",
        (None, None) => "Missing",
        (_, None) => "Unreachable",
        (_, Some(report)) if report.draining => "Draining",
        (_, Some(report)) if report.cluster_id.is_empty() => "Forming",
        (_, Some(_)) if node.is_ready() => "Running",
        (_, Some(_)) => "NotReady",
    };
    let access = report.and_then(|report| report.access.as_ref());
    NodeStatus {
        name: node.name.clone(),
        ordinal: i32::try_from(node.ordinal).unwrap_or(i32::MAX),
        node_id: report.map(|report| report.node_id.clone()),
        incarnation: report.map(|report| number(report.incarnation)),
        state: state.into(),
        failing_checks: report.map(|report| report.failing_checks.clone()).unwrap_or_default(),
        member: report.is_some_and(|report| report.member),
        acl_revision: access.map(|access| display_revision(access.revision, &access.hash)),
        connections: report.map(|report| number(report.connections)),
        sessions: report.map(|report| number(report.sessions)),
        disk_free_percent: report
            .and_then(|report| {
                (report.storage_free_bytes.saturating_mul(100)).checked_div(report.storage_capacity_bytes)
            })
            .map(number),
    }
}

fn drafts(observed: &Observed<'_>, ready: usize, quorum: &Quorum) -> Vec<Draft> {
    let all = observed.nodes.len();
    let healthy = matches!(quorum.state.as_str(), "Healthy" | "Degraded") && quorum.leaderless_groups == 0;
    let is_unknown = matches!(observed.phase, Phase::Formed) && is_out_of_reach(observed.nodes);
    let (quorum_reason, quorum_message) = match quorum.state.as_str() {
        "Unknown" if is_unknown => (reason::OPERATOR_CANNOT_REACH_NODES, out_of_reach(observed.nodes)),
        "Forming" => (reason::FORMING, "the cluster is being formed".to_owned()),
        "Lost" => (
            reason::QUORUM_LOST,
            "no majority of the nodes is in contact, so nothing is acknowledged; check pods and network".to_owned(),
        ),
        "Unknown" => (reason::QUORUM_LOST, "no node runs, or the volumes are not those of this cluster".to_owned()),
        _ if !healthy => {
            (reason::LEADERLESS_GROUPS, format!("no node knows the leader of {} groups", quorum.leaderless_groups))
        }
        _ => (reason::QUORUM, "a majority of the nodes is in contact and every group has a leader".to_owned()),
    };
    let serving = ready > 0 && healthy;
    let available = if serving {
        Draft::new(condition::AVAILABLE, Some(true), reason::SERVING, format!("{ready} of {all} nodes serve clients"))
    } else if is_unknown {
        Draft::new(condition::AVAILABLE, None, quorum_reason, quorum_message.clone())
    } else {
        Draft::new(
            condition::AVAILABLE,
            Some(false),
            reason::NOT_SERVING,
            format!("{ready} of {all} nodes are ready; {quorum_message}"),
        )
    };
    let paused = if observed.paused {
        Draft::new(
            condition::PAUSED,
            Some(true),
            reason::PAUSED,
            "spec.paused is true: only access, alerts and status are updated",
        )
    } else {
        Draft::new(condition::PAUSED, Some(false), reason::NOT_PAUSED, "changes of the spec are applied")
    };
    let quorum_status = if is_unknown { None } else { Some(healthy) };
    let quorum = Draft::new(condition::QUORUM_HEALTHY, quorum_status, quorum_reason, quorum_message);
    vec![
        ready_draft(observed, ready),
        available,
        rollout::progressing(observed, ready),
        degraded(observed, ready, &quorum),
        quorum,
        acl_synced(observed),
        alerting(observed),
        rollout::upgrade_pending(observed),
        paused,
    ]
}

/// Returns what prevents the spec from being applied, if anything, as a reason and a message.
fn obstacle(observed: &Observed<'_>) -> Option<(&'static str, String)> {
    match observed.phase {
        Phase::Foreign { disks } => {
            let disks: Vec<String> =
                disks.iter().map(|(ordinal, id)| format!("node {ordinal} carries cluster {id}")).collect();
            let message = format!(
                "volumes of another cluster are mounted ({}); formation and rollouts have stopped: attach the \
                 nodes' own volumes, or empty ones",
                disks.join(", ")
            );
            Some((reason::FOREIGN_DISK, message))
        }
        Phase::TooFew { members } => Some((
            reason::INVALID,
            format!(
                "the volumes belong to a cluster of {members} nodes, and the missing nodes hold sessions: set \
                 replicas: {}, or delete the claims data-{}-* to start empty",
                // 2 and other even numbers are not permitted.
                members | 1,
                observed.cluster.metadata.name.as_deref().unwrap_or_default()
            ),
        )),
        Phase::AllDisksEmpty => Some((
            reason::DISKS_LOST,
            "every node has an empty volume although the cluster was formed before: restore the volumes, or delete \
             and create the MqttCluster to start empty"
                .into(),
        )),
        _ => match (observed.blocked, &observed.apply_error) {
            (None, error) => error.clone(),
            (Some(blocked), None) => Some((blocked.reason, blocked.message.clone())),
            (Some(blocked), Some((_, error))) => Some((blocked.reason, format!("{}; {error}", blocked.message))),
        },
    }
}

fn ready_draft(observed: &Observed<'_>, ready: usize) -> Draft {
    let all = observed.nodes.len();
    match (obstacle(observed), observed.phase) {
        (Some((reason, message)), _) => Draft::new(condition::READY, Some(false), reason, message),
        (None, Phase::Forming { waiting }) => {
            let mut message = vec![waiting.clone()];
            message.extend(observed.nodes.iter().filter(|node| node.problem.is_some()).map(why));
            Draft::new(condition::READY, Some(false), reason::FORMING, message.join("; "))
        }
        _ if ready == all => {
            Draft::new(condition::READY, Some(true), reason::ALL_NODES_READY, format!("all {all} nodes are ready"))
        }
        _ => {
            let unready: Vec<String> = observed.nodes.iter().filter(|node| !node.is_ready()).map(why).collect();
            let message = format!("{ready} of {all} nodes are ready; {}", unready.join("; "));
            Draft::new(condition::READY, Some(false), reason::NODES_NOT_READY, message)
        }
    }
}

/// Returns why a node is not ready: which checks it fails, and why its broker does not run or was restarted.
fn why(node: &Node) -> String {
    let name = &node.name;
    let checks =
        node.report.as_ref().map(|report| report.failing_checks.join(", ")).filter(|checks| !checks.is_empty());
    match (&node.problem, checks) {
        (Some(problem), Some(checks)) => format!("{name} fails readiness checks: {checks}; it {}", problem.message),
        (Some(problem), None) if !problem.is_stuck() && node.report.is_none() => {
            format!("{name} does not answer; it {}", problem.message)
        }
        (Some(problem), None) => format!("{name} {}", problem.message),
        (None, _) if node.pod.is_none() => format!("{name} has no pod"),
        (None, _) if node.pod.as_ref().is_some_and(|pod| pod.terminating) => format!("{name} is stopping"),
        (None, Some(checks)) => format!("{name} fails readiness checks: {checks}"),
        (None, None) if node.is_unreachable() => {
            format!("{name} does not answer the operator, although the kubelet reports it as ready")
        }
        (None, None) if node.report.is_none() => format!("{name} does not answer"),
        (None, None) => format!("{name} is not ready yet"),
    }
}

fn degraded(observed: &Observed<'_>, ready: usize, quorum: &Draft) -> Draft {
    let draft = |reason, message| Draft::new(condition::DEGRADED, Some(true), reason, message);
    if let Some((reason, message)) = obstacle(observed) {
        return draft(reason, message);
    }
    if let Step::Stopped { reason: why } | Step::Refused { reason: why } = observed.step {
        return draft(reason::NEW_TEMPLATE_FAILS, why.clone());
    }
    // A pod that starts or restarts needs no manual intervention yet, and neither does a cluster that is being formed.
    if let Some((cause, message)) = first_problem(observed.nodes) {
        return draft(cause, message);
    }
    match observed.phase {
        Phase::Formed if quorum.status != Some(true) => draft(quorum.reason, quorum.message.clone()),
        Phase::Formed if ready < observed.nodes.len() => {
            draft(reason::NODES_NOT_READY, format!("{ready} of {} nodes are ready", observed.nodes.len()))
        }
        _ => Draft::new(condition::DEGRADED, Some(false), reason::HEALTHY, "no problem needs manual intervention"),
    }
}

/// Returns why the broker of the first affected node does not run, as a reason and a message.
fn first_problem(nodes: &[Node]) -> Option<(&'static str, String)> {
    nodes.iter().find_map(|node| {
        let problem = node.problem.as_ref().filter(|problem| problem.is_stuck())?;
        Some((problem.cause.reason(), format!("{} {}", node.name, problem.message)))
    })
}

fn acl_synced(observed: &Observed<'_>) -> Draft {
    let Some(projection) = observed.projection else {
        return Draft::new(condition::ACL_SYNCED, None, reason::NODES_BEHIND, "the access document could not be built");
    };
    let (revision, hash) = (projection.document.revision, projection.document.hash());
    let refusals: Vec<String> = observed.nodes.iter().filter_map(refusal).collect();
    let behind: Vec<&str> =
        observed.nodes.iter().filter(|node| !node.enforces(revision, &hash)).map(|node| node.name.as_str()).collect();
    if behind.is_empty() {
        let message = format!("every node enforces access revision {}", display_revision(revision, &hash));
        Draft::new(condition::ACL_SYNCED, Some(true), reason::ALL_NODES_ENFORCE, message)
    } else if refusals.is_empty() {
        let message = format!(
            "waiting for {} to enforce access revision {}",
            behind.join(", "),
            display_revision(revision, &hash)
        );
        Draft::new(condition::ACL_SYNCED, Some(false), reason::NODES_BEHIND, message)
    } else {
        Draft::new(condition::ACL_SYNCED, Some(false), reason::REVISION_REFUSED, refusals.join("; "))
    }
}

fn refusal(node: &Node) -> Option<String> {
    let access = node.report.as_ref()?.access.as_ref()?;
    let refused = access.rejected_revision > 0;
    refused.then(|| {
        format!("{} refused access revision r{}: {}", node.name, access.rejected_revision, access.rejected_reason)
    })
}

fn alerting(observed: &Observed<'_>) -> Draft {
    match observed.alerts.as_deref() {
        None => Draft::new(condition::ALERTING, Some(false), reason::ALERTS_OFF, "spec.alerts.builtin is false"),
        Some([]) => Draft::new(condition::ALERTING, Some(false), reason::NO_ALERTS, "no alert is firing"),
        Some(alerts) => {
            let names: Vec<String> = alerts
                .iter()
                .map(|alert| {
                    alert.pod.as_ref().map_or_else(|| alert.name.clone(), |pod| format!("{} ({pod})", alert.name))
                })
                .collect();
            Draft::new(condition::ALERTING, Some(true), reason::ALERTS_FIRING, names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests;
