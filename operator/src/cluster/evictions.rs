//! Decides which pods may be evicted, by the operator and by drains of machines. Pure; `build::pdb` writes it down.
//!
//! A disruption budget protects pods that are ready. That is not enough: while one of three nodes does not start with
//! a new template, the two others are both needed, and one that is not ready for a moment would come back with the
//! template that fails. So a formed cluster protects every pod, ready or not, except one that is not needed.

use super::nodes::{self, Node, is_settled};
use super::rollout::Step;

/// Which evictions are allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evictions {
    /// Number of protected pods that may be unavailable at a time.
    pub max_unavailable: u32,
    /// Whether pods that are not ready are protected too.
    pub protect_unready: bool,
    /// Name of the pod that may be evicted in any case.
    pub unprotected: Option<String>,
}

/// Decides. `step` is the next step of the rollout.
pub fn decide(nodes: &[Node], is_formed: bool, step: &Step) -> Evictions {
    // A single node has no other voters: a budget of 0 would block the drain of its machine for ever.
    if nodes.len() == 1 {
        return Evictions { max_unavailable: 1, protect_unready: false, unprotected: None };
    }
    let members = nodes::members(nodes);
    // Pods that have not joined and are not ready must not be added, although they are unavailable already: the
    // disruption controller counts them from the StatefulSet, which may have fewer of them, and they may become ready at
    // any time. It would then permit the eviction of several members.
    let max_unavailable = u32::from(is_settled(members.iter().copied()));
    if !is_formed {
        // Nothing is stored yet.
        return Evictions { max_unavailable, protect_unready: false, unprotected: None };
    }
    if matches!(step, Step::Refused { .. }) {
        return Evictions { max_unavailable: 0, protect_unready: true, unprotected: None };
    }
    let replaced = match step {
        Step::Replace { pod, serving: false, .. } => Some(pod.clone()),
        _ => None,
    };
    let unprotected = replaced.or_else(|| not_needed(&members).map(|node| node.name.clone()));
    Evictions { max_unavailable, protect_unready: true, unprotected }
}

/// Returns the member that is not ready while all others are and form a majority: its eviction makes nothing worse.
fn not_needed<'a>(members: &[&'a Node]) -> Option<&'a Node> {
    let unready: Vec<&Node> = members.iter().copied().filter(|node| !node.is_ready()).collect();
    let [only] = unready[..] else { return None };
    ((members.len() - 1) * 2 > members.len()).then_some(only)
}

#[cfg(test)]
mod tests {
    use covey_contract::proto::StatusReply;
    use jiff::Timestamp;

    use super::super::node_samples::{NOW, fail, node, nodes};
    use super::super::problem::Cause;
    use super::super::rollout;
    use super::*;

    fn decided(nodes: &[Node]) -> Evictions {
        let now = Timestamp::from_second(NOW).unwrap();
        decide(nodes, true, &rollout::next(nodes, Some("new"), now))
    }

    fn unprotected(nodes: &[Node]) -> Option<String> {
        let decided = decided(nodes);
        assert!(decided.protect_unready);
        decided.unprotected
    }

    #[test]
    fn one_member_may_be_evicted_while_all_are_in_sync() {
        let expected = Evictions { max_unavailable: 1, protect_unready: true, unprotected: None };
        assert_eq!(decided(&nodes(["new", "new", "new"])), expected);
        assert_eq!(decided(&nodes(["old", "old", "new"])), expected);
    }

    #[test]
    fn the_budget_counts_members_and_is_never_more_than_one() {
        let mut nodes = nodes(["new", "new", "new", "new", "new"]);
        for node in &mut nodes {
            node.report.as_mut().unwrap().members.retain(|member| member.ordinal < 3);
        }
        assert_eq!(decided(&nodes).max_unavailable, 1);
        for newcomer in &mut nodes[3..] {
            (newcomer.pod, newcomer.report) = (None, None);
        }
        assert_eq!(decided(&nodes).max_unavailable, 1, "the StatefulSet may not have the newcomers yet");
        fail(&mut nodes[2], 1, None);
        assert_eq!(decided(&nodes).max_unavailable, 0, "a member is out");
    }

    #[test]
    fn a_node_that_does_not_run_may_be_evicted_while_the_others_serve() {
        let mut nodes = nodes(["new", "new", "new"]);
        fail(&mut nodes[1], 5, Some(Cause::CrashLoop));
        assert_eq!(unprotected(&nodes).as_deref(), Some("mosaic-1"));
    }

    #[test]
    fn while_the_new_template_fails_the_others_are_protected_although_they_are_not_ready() {
        for cause in [Some(Cause::ImagePull), Some(Cause::CrashLoop), None] {
            let mut nodes = nodes(["old", "old", "new"]);
            fail(&mut nodes[2], 300, cause);
            assert_eq!(unprotected(&nodes).as_deref(), Some("mosaic-2"), "the one that fails is not needed");
            // Cut off: its broker answers, and has no lease.
            let report = StatusReply { ready: false, ..nodes[0].report.clone().unwrap() };
            nodes[0].report = Some(report);
            assert_eq!(unprotected(&nodes), None);
            for (seconds, other) in [(1, Some(Cause::Restarted)), (600, None), (600, Some(Cause::CrashLoop))] {
                fail(&mut nodes[0], seconds, other);
                assert_eq!(unprotected(&nodes), None, "{other:?}");
                fail(&mut nodes[1], seconds, other);
                assert_eq!(unprotected(&nodes), None, "{other:?}, both");
                nodes[1] = node(1, "old");
            }
        }
    }

    #[test]
    fn no_pod_may_go_while_the_one_in_its_place_would_be_refused() {
        let mut nodes = nodes(["old", "old", "old"]);
        let refused = Step::Refused { reason: "exceeded quota".into() };
        let closed = Evictions { max_unavailable: 0, protect_unready: true, unprotected: None };
        assert_eq!(decide(&nodes, true, &refused), closed);
        fail(&mut nodes[1], 1, Some(Cause::Restarted));
        assert_eq!(decide(&nodes, true, &refused), closed, "the kubelet restarts it, but nobody creates it again");
    }

    #[test]
    fn a_pod_that_the_corrected_template_replaces_is_not_protected() {
        let mut nodes = nodes(["broken", "broken", "broken"]);
        for node in &mut nodes {
            fail(node, 300, Some(Cause::CrashLoop));
        }
        assert_eq!(unprotected(&nodes).as_deref(), Some("mosaic-0"));
    }

    #[test]
    fn a_lost_majority_is_protected() {
        let mut nodes = nodes(["new", "new", "new"]);
        fail(&mut nodes[0], 300, None);
        fail(&mut nodes[1], 300, None);
        assert_eq!(unprotected(&nodes), None);
    }

    #[test]
    fn nothing_is_blocked_for_a_single_node_or_before_the_cluster_is_formed() {
        let mut alone = nodes(["new"]);
        fail(&mut alone[0], 300, None);
        assert_eq!(decided(&alone), Evictions { max_unavailable: 1, protect_unready: false, unprotected: None });
        let mut unformed = nodes(["new", "new", "new"]);
        fail(&mut unformed[0], 300, None);
        assert!(!decide(&unformed, false, &Step::Idle).protect_unready);
    }
}
