//! Decides which pods may be evicted, by the operator and by drains of machines. Pure; `build::pdb` writes it down.
//!
//! The API server decides about each eviction at the moment of the request, from the pods that are ready then. The operator
//! only sets the limits, so that a state of the cluster that it has not seen yet, or its own absence, permits less and
//! not more:
//!
//! - Only members count. A new node that is not ready yet would use up the allowance of the members.
//! - All members must be available, or all but one while the cluster can do without one.
//! - A pod that is not ready is protected like a ready one (`IfHealthyBudget`): while one of three nodes does not start
//!   with a new template, both others are needed, and one that is evicted while it is unready for a moment would come
//!   back with the template that fails.
//!
//! The API server counts ready pods with a delay of some milliseconds, within which it may take a pod that has just become
//! unready for one that is not needed.

use super::nodes::{self, Node, can_spare, is_settled};
use super::rollout::Step;
use super::scale;

/// Which evictions are allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evictions {
    /// Names of the pods that count. All others may be evicted.
    pub protected: Vec<String>,
    /// Number of these pods that must be ready after an eviction.
    pub min_available: u32,
    /// Whether pods that are not ready are protected as well.
    pub protect_unready: bool,
}

/// Decides. `step` is the next step of the rollout, `scale` that of a change of the cluster's size.
pub fn decide(nodes: &[Node], is_formed: bool, step: &Step, scale: &scale::Step) -> Evictions {
    let members = nodes::members(nodes);
    let cannot_return = matches!(step, Step::Stopped { .. } | Step::Refused { .. });
    if let [only] = members[..] {
        // A single node has no other voters: a closed budget would always block the drain of its machine.
        let min_available = u32::from(cannot_return);
        return Evictions { protected: vec![only.name.clone()], min_available, protect_unready: cannot_return };
    }
    // The rollout replaces this one because it does not serve. No other may go meanwhile.
    let replaced =
        members.iter().find(|node| matches!(step, Step::Replace { pod, serving: false, .. } if *pod == node.name));
    let one_may_go = !cannot_return && !scale.takes_a_node() && replaced.is_none() && spares_one(&members);
    let counts = |node: &&&Node| replaced.is_none_or(|replaced| replaced.ordinal != node.ordinal);
    let protected: Vec<String> = members.iter().filter(counts).map(|node| node.name.clone()).collect();
    let count = u32::try_from(protected.len()).unwrap_or(u32::MAX);
    // Before the cluster is formed nothing is stored, and a node that is not ready is not needed.
    Evictions { protected, min_available: count - u32::from(one_may_go), protect_unready: is_formed }
}

/// Returns whether the cluster can do without one member: all are in sync, or only the one that is not ready is not.
fn spares_one(members: &[&Node]) -> bool {
    is_settled(members.iter().copied()) || members.iter().any(|node| !node.is_ready() && can_spare(members, node))
}

#[cfg(test)]
mod tests {
    use covey_contract::proto::StatusReply;
    use jiff::SignedDuration;

    use super::super::node_samples::{NOW, at, fail, node, nodes};
    use super::super::problem::Cause;
    use super::super::rollout::{self, Terms};
    use super::*;

    fn decided(nodes: &[Node]) -> Evictions {
        let terms = Terms { is_formed: true, min_ready: SignedDuration::ZERO, postponement: None };
        decide(nodes, true, &rollout::next(nodes, Some("new"), &terms, at(NOW)), &scale::Step::Settled)
    }

    /// Makes a node unready, and has the others report that it is behind.
    fn lose(nodes: &mut [Node], ordinal: usize, seconds: i64, cause: Option<Cause>) {
        fail(&mut nodes[ordinal], seconds, cause);
        let id = format!("n{ordinal}");
        for report in nodes.iter_mut().filter_map(|node| node.report.as_mut()) {
            report.groups_out_of_sync += 1;
            report.voters_behind.push(id.clone());
        }
    }

    /// Whether the API server permits the eviction of a node: the rule of the eviction handler and of the disruption
    /// controller of Kubernetes 1.31 and later for `minAvailable` and `IfHealthyBudget` or `AlwaysAllow`.
    fn permits(nodes: &[Node], evictions: &Evictions, ordinal: usize) -> bool {
        let counts = |node: &&Node| evictions.protected.contains(&node.name);
        let ready = |node: &Node| node.pod.as_ref().is_some_and(|pod| pod.ready);
        let healthy = nodes.iter().filter(counts).filter(|node| ready(node)).count();
        let wanted = usize::try_from(evictions.min_available).unwrap();
        match &nodes[ordinal] {
            node if !counts(&node) => true,
            node if !ready(node) => !evictions.protect_unready || healthy >= wanted && wanted > 0,
            _ => healthy > wanted,
        }
    }

    fn permitted(nodes: &[Node]) -> Vec<usize> {
        let evictions = decided(nodes);
        (0..nodes.len()).filter(|ordinal| permits(nodes, &evictions, *ordinal)).collect()
    }

    #[test]
    fn no_member_may_be_evicted_while_a_node_leaves() {
        let nodes = nodes(["new", "new", "new", "new"]);
        let leaving = scale::Step::RemovePod { replicas: 3, pod: "mosaic-3".into() };
        let evictions = decide(&nodes, true, &Step::Idle, &leaving);
        assert!((0..4).all(|ordinal| !permits(&nodes, &evictions, ordinal)));
    }

    #[test]
    fn one_member_may_be_evicted_while_all_are_in_sync() {
        assert_eq!(permitted(&nodes(["new", "new", "new"])), [0, 1, 2]);
        let mut one_gone = nodes(["new", "new", "new"]);
        let before = decided(&one_gone);
        one_gone[0].pod.as_mut().unwrap().ready = false;
        assert!(!permits(&one_gone, &before, 1), "the limits hold although the operator has not seen the change");
        let mut behind = nodes(["new", "new", "new"]);
        behind[0].report.as_mut().unwrap().groups_out_of_sync = 1;
        assert_eq!(permitted(&behind), [0; 0]);
    }

    #[test]
    fn nodes_that_have_not_joined_neither_count_nor_use_up_the_allowance() {
        let mut nodes = nodes(["new", "new", "new", "new", "new"]);
        for node in &mut nodes {
            node.report.as_mut().unwrap().members.retain(|member| member.ordinal < 3);
        }
        let expected = Evictions {
            protected: ["mosaic-0", "mosaic-1", "mosaic-2"].map(String::from).into(),
            min_available: 2,
            protect_unready: true,
        };
        assert_eq!(decided(&nodes), expected);
        for newcomer in &mut nodes[3..] {
            (newcomer.pod, newcomer.report) = (None, None);
        }
        assert_eq!(decided(&nodes), expected);
        lose(&mut nodes, 2, 1, None);
        assert_eq!(permitted(&nodes)[..], [2, 3, 4], "of the members only the one that is out");
    }

    #[test]
    fn a_node_that_does_not_run_may_be_evicted_while_the_others_are_ready_and_in_sync() {
        let mut nodes = nodes(["new", "new", "new"]);
        lose(&mut nodes, 1, 5, Some(Cause::CrashLoop));
        assert_eq!(permitted(&nodes), [1]);
        let decided = decided(&nodes);
        nodes[0].pod.as_mut().unwrap().ready = false;
        assert!((0..3).all(|ordinal| !permits(&nodes, &decided, ordinal)), "a second one is unready by now");
        nodes[0].pod.as_mut().unwrap().ready = true;
        nodes[0].report.as_mut().unwrap().voters_behind.push("n2".into());
        assert_eq!(permitted(&nodes), [0; 0], "node 2 is ready and lacks entries that node 1 may have");
    }

    #[test]
    fn a_broker_that_does_not_report_who_is_behind_is_not_taken_for_one_in_sync() {
        let mut nodes = nodes(["new", "new", "new"]);
        fail(&mut nodes[1], 5, Some(Cause::CrashLoop));
        nodes[0].report.as_mut().unwrap().groups_out_of_sync = 1;
        assert_eq!(permitted(&nodes), [0; 0]);
    }

    #[test]
    fn while_the_new_template_fails_no_pod_may_go_ready_or_not() {
        for cause in [Some(Cause::ImagePull), Some(Cause::CrashLoop), None] {
            let mut nodes = nodes(["old", "old", "new"]);
            lose(&mut nodes, 2, 300, cause);
            assert_eq!(permitted(&nodes), [0; 0], "{cause:?}");
            // Cut off: its broker answers, and has no lease.
            nodes[0].pod.as_mut().unwrap().ready = false;
            nodes[0].report = Some(StatusReply { ready: false, ..nodes[0].report.clone().unwrap() });
            assert_eq!(permitted(&nodes), [0; 0], "{cause:?}");
            for (seconds, other) in [(1, Some(Cause::Restarted)), (600, None), (600, Some(Cause::CrashLoop))] {
                fail(&mut nodes[0], seconds, other);
                assert_eq!(permitted(&nodes), [0; 0], "{other:?}");
                fail(&mut nodes[1], seconds, other);
                assert_eq!(permitted(&nodes), [0; 0], "{other:?}, both");
                nodes[1] = node(1, "old");
            }
        }
    }

    #[test]
    fn no_pod_may_go_while_the_one_in_its_place_would_be_refused() {
        let refused = Step::Refused { reason: "exceeded quota".into() };
        for mut nodes in [nodes(["old", "old", "old"]), nodes(["old"])] {
            let all = |nodes: &[Node]| {
                let evictions = decide(nodes, true, &refused, &scale::Step::Settled);
                (0..nodes.len()).filter(|ordinal| permits(nodes, &evictions, *ordinal)).count()
            };
            assert_eq!(all(&nodes), 0);
            fail(&mut nodes[0], 1, Some(Cause::Restarted));
            assert_eq!(all(&nodes), 0, "the kubelet restarts it, but nobody creates it again");
        }
    }

    #[test]
    fn a_pod_that_the_corrected_template_replaces_may_be_evicted() {
        let mut nodes = nodes(["broken", "broken", "broken"]);
        for node in &mut nodes {
            fail(node, 300, Some(Cause::CrashLoop));
        }
        assert_eq!(permitted(&nodes), [0]);
        nodes[1] = node(1, "broken");
        nodes[2] = node(2, "broken");
        assert_eq!(permitted(&nodes), [0], "the others serve");
    }

    #[test]
    fn a_lost_majority_is_protected() {
        let mut nodes = nodes(["new", "new", "new"]);
        lose(&mut nodes, 0, 300, None);
        lose(&mut nodes, 1, 300, None);
        assert_eq!(permitted(&nodes), [0; 0]);
    }

    #[test]
    fn nothing_is_blocked_for_a_single_node_or_before_the_cluster_is_formed() {
        let mut alone = nodes(["new"]);
        assert_eq!(permitted(&alone), [0]);
        fail(&mut alone[0], 300, None);
        assert_eq!(permitted(&alone), [0]);
        let mut unformed = nodes(["new", "new", "new"]);
        fail(&mut unformed[0], 300, None);
        assert!(permits(&unformed, &decide(&unformed, false, &Step::Idle, &scale::Step::Settled), 0));
    }
}
