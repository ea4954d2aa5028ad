//! Which pod is replaced next. Pure; the reconcile carries the step out.
//!
//! One pod at a time. A pod that is not ready is replaced first and without asking whether the groups are in sync: it
//! holds the rollout up, and nothing serves from it. Otherwise the next pod goes only when every member is ready and
//! every group has all its voters in sync, and the meta leader goes last.

use super::nodes::{Node, is_settled};

/// What to do with the pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Every pod runs the current template.
    Idle,
    /// Some pod does not; this is what it waits for.
    Wait { reason: String },
    /// Delete this pod; the StatefulSet makes it anew. `serving`: move its leaders away first.
    Replace { ordinal: u32, pod: String, uid: String, serving: bool },
}

/// Pods that run another template than `revision`.
pub fn outdated<'a>(nodes: &'a [Node], revision: &str) -> Vec<&'a Node> {
    let is_outdated = |node: &&Node| node.pod.as_ref().is_some_and(|pod| pod.revision.as_deref() != Some(revision));
    nodes.iter().filter(is_outdated).collect()
}

/// Decides. `revision` is the StatefulSet's update revision, absent while its controller has not seen the last change.
pub fn next(nodes: &[Node], revision: Option<&str>) -> Step {
    let Some(revision) = revision else {
        return Step::Wait { reason: "the StatefulSet's controller has not seen the last change".into() };
    };
    let outdated = outdated(nodes, revision);
    if outdated.is_empty() {
        return Step::Idle;
    }
    if let Some(node) = nodes.iter().find(|node| node.pod.as_ref().is_none_or(|pod| pod.terminating)) {
        return Step::Wait { reason: format!("pod {} is being replaced", node.name) };
    }
    if let Some(node) = outdated.iter().find(|node| node.pod.as_ref().is_some_and(|pod| !pod.ready)) {
        return replace(node, false);
    }
    // A node that is not a member yet (the cluster is growing) has nothing that the others could lose.
    let members: Vec<Node> = nodes.iter().filter(|node| !is_newcomer(node, revision)).cloned().collect();
    if let Some(node) = members.iter().find(|node| !node.is_ready()) {
        return Step::Wait { reason: format!("node {} is not ready", node.name) };
    }
    if !is_settled(&members) {
        return Step::Wait { reason: "a group has a voter that is not in sync".into() };
    }
    let leader = |node: &Node| node.report.as_ref().is_some_and(|report| report.meta_leader == report.node_id);
    outdated.iter().max_by_key(|node| (!leader(node), node.ordinal)).map_or(Step::Idle, |node| replace(node, true))
}

fn is_newcomer(node: &Node, revision: &str) -> bool {
    let current = node.pod.as_ref().is_some_and(|pod| pod.revision.as_deref() == Some(revision));
    current && !node.report.as_ref().is_some_and(|report| report.member) && node.ordinal >= 3
}

fn replace(node: &Node, serving: bool) -> Step {
    let uid = node.pod.as_ref().map(|pod| pod.uid.clone()).unwrap_or_default();
    Step::Replace { ordinal: node.ordinal, pod: node.name.clone(), uid, serving }
}

#[cfg(test)]
mod tests {
    use covey_contract::proto::StatusReply;

    use super::super::nodes::PodFacts;
    use super::*;

    fn node(ordinal: u32, revision: &str) -> Node {
        let pod = PodFacts {
            uid: format!("u{ordinal}"),
            ready: true,
            revision: Some(revision.into()),
            ..PodFacts::default()
        };
        let report = StatusReply {
            ordinal,
            node_id: format!("n{ordinal}"),
            ready: true,
            member: true,
            meta_leader: "n2".into(),
            ..StatusReply::default()
        };
        Node { ordinal, name: format!("mosaic-{ordinal}"), pod: Some(pod), report: Some(report) }
    }

    fn nodes(revisions: [&str; 3]) -> Vec<Node> {
        revisions.into_iter().zip(0..).map(|(revision, ordinal)| node(ordinal, revision)).collect()
    }

    fn replaced(step: &Step) -> Option<(u32, bool)> {
        match step {
            Step::Replace { ordinal, serving, .. } => Some((*ordinal, *serving)),
            _ => None,
        }
    }

    #[test]
    fn nothing_happens_when_every_pod_is_current() {
        assert_eq!(next(&nodes(["new", "new", "new"]), Some("new")), Step::Idle);
        assert!(matches!(next(&nodes(["new", "new", "new"]), None), Step::Wait { .. }));
    }

    #[test]
    fn the_meta_leader_goes_last() {
        assert_eq!(replaced(&next(&nodes(["old", "old", "old"]), Some("new"))), Some((1, true)));
        assert_eq!(replaced(&next(&nodes(["old", "new", "old"]), Some("new"))), Some((0, true)));
        assert_eq!(replaced(&next(&nodes(["new", "new", "old"]), Some("new"))), Some((2, true)));
    }

    #[test]
    fn one_pod_at_a_time() {
        let mut nodes = nodes(["old", "old", "old"]);
        nodes[1].pod = None;
        assert!(matches!(next(&nodes, Some("new")), Step::Wait { .. }));
        nodes[1] = node(1, "new");
        nodes[1].pod.as_mut().unwrap().terminating = true;
        assert!(matches!(next(&nodes, Some("new")), Step::Wait { .. }));
    }

    #[test]
    fn the_next_pod_waits_for_readiness_and_for_every_voter() {
        let mut unready = nodes(["old", "new", "old"]);
        unready[1].report.as_mut().unwrap().ready = false;
        assert!(matches!(next(&unready, Some("new")), Step::Wait { .. }));
        let mut behind = nodes(["old", "new", "old"]);
        behind[0].report.as_mut().unwrap().groups_out_of_sync = 1;
        assert!(matches!(next(&behind, Some("new")), Step::Wait { .. }));
        let mut silent = nodes(["old", "new", "old"]);
        silent[2].report = None;
        assert!(matches!(next(&silent, Some("new")), Step::Wait { .. }));
    }

    #[test]
    fn an_outdated_pod_that_is_not_ready_goes_first_and_ungated() {
        let mut nodes = nodes(["old", "old", "old"]);
        nodes[0].pod.as_mut().unwrap().ready = false;
        nodes[0].report = None;
        nodes[1].report.as_mut().unwrap().groups_out_of_sync = 3;
        assert_eq!(replaced(&next(&nodes, Some("new"))), Some((0, false)));
    }

    #[test]
    fn a_new_template_that_does_not_start_stops_the_rollout() {
        let mut nodes = nodes(["old", "new", "old"]);
        nodes[1].pod.as_mut().unwrap().ready = false;
        nodes[1].report = None;
        assert!(matches!(next(&nodes, Some("new")), Step::Wait { .. }));
    }

    #[test]
    fn a_growing_cluster_rolls_its_members_although_newcomers_are_not_ready() {
        let mut nodes = nodes(["old", "old", "old"]);
        for ordinal in [3, 4] {
            let mut newcomer = node(ordinal, "new");
            newcomer.pod.as_mut().unwrap().ready = false;
            newcomer.report = Some(StatusReply { ordinal, ..StatusReply::default() });
            nodes.push(newcomer);
        }
        assert_eq!(replaced(&next(&nodes, Some("new"))), Some((1, true)));
    }
}
