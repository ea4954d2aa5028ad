//! Decides which pod is replaced next. Pure; the reconcile carries out the step.
//!
//! Pods are replaced one at a time, and a second one only after a pod of the new template runs:
//!
//! ```text
//!  a pod is missing or stopping ------------------------------------> Wait, or Stopped if it cannot be created; a new
//!                                                                     node for which a quota has no room is left out
//!  a pod of the new template does not run its broker ---------------> Stopped (or Wait, in its first minute)
//!  a pod of an earlier template cannot run its broker --------------> Replace: it serves nothing; after a minute, if a
//!                                                                     pod of the new template is not ready
//!  another pod is not ready ----------------------------------------> Wait; after a minute Replace, if it has an
//!                                                                     earlier template and the others can serve
//!                                                                     without it
//!  a pod of the new template has not been ready for long enough ----> Wait
//!  every member is ready and every group has its voters in sync ----> Replace, the meta leader last; or Postponed
//! ```
//!
//! A failing pod of the new template is considered before one of the earlier template, to prevent an outage: if the new
//! template fails, a pod of the earlier one that is unready for a moment becomes ready again, but would not with the new
//! template. If no pod of the new template fails, a pod that cannot run is replaced without further conditions: a
//! corrected manifest repairs the cluster.

use jiff::{SignedDuration, Timestamp};

use super::nodes::{self, Node, can_spare, is_settled};
use super::postponement::Postponement;
use super::problem::{Cause, Problem};

/// Time that a pod may be unready before it counts as failed instead of starting. A restart takes seconds.
const UNREADY_LIMIT: SignedDuration = SignedDuration::from_secs(60);

/// The next step of a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing is to be done: every pod runs the current template, or the pass may not replace any, because the cluster is
    /// paused, invalid, not applied, or on foreign disks.
    Idle,
    /// Some pod runs an earlier template. `reason` says what its replacement waits for.
    Wait { reason: String },
    /// A pod of the new template does not start. The other pods are kept until the cause in `reason` is corrected.
    Stopped { reason: String },
    /// The API server would refuse a pod of the new template ([`super::trial`]). No pod of the earlier one may be evicted,
    /// because it could not be created again. [`next`] does not return it.
    Refused { reason: String },
    /// The next pod could be replaced, but not now.
    Postponed(Postponement),
    /// Evict this pod; the StatefulSet controller creates it again. If `serving`, move its leaderships away first.
    Replace { ordinal: u32, pod: String, uid: String, serving: bool },
}

/// What a rollout depends on besides the nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Whether the cluster is formed. Before that no node holds data, and none is needed by the others.
    pub is_formed: bool,
    /// Time that a pod of the new template must have been ready before the next pod is evicted.
    pub min_ready: SignedDuration,
    /// Why a pod whose broker runs must not be replaced now.
    pub postponement: Option<Postponement>,
}

/// Returns the nodes whose pod runs another template than `revision`.
pub fn outdated<'a>(nodes: &'a [Node], revision: &str) -> Vec<&'a Node> {
    nodes.iter().filter(|node| node.pod.is_some() && !is_current(node, revision)).collect()
}

/// Returns whether some pods run the template `revision` and others an earlier one.
pub fn is_under_way(nodes: &[Node], revision: &str) -> bool {
    !outdated(nodes, revision).is_empty() && nodes.iter().any(|node| is_current(node, revision))
}

/// Decides the next step. `revision` is the StatefulSet's update revision, once its controller has seen the last change.
pub fn next(nodes: &[Node], revision: Option<&str>, terms: &Terms, now: Timestamp) -> Step {
    let Some(revision) = revision else {
        return wait("the StatefulSet's controller has not seen the last change");
    };
    let outdated = outdated(nodes, revision);
    if outdated.is_empty() {
        return Step::Idle;
    }
    let members = nodes::members(nodes);
    let is_newcomer = |node: &Node| !members.iter().any(|member| member.ordinal == node.ordinal);
    // Scaling beyond a quota says nothing about the template, and the members have room already.
    let has_no_room = |node: &Node| node.problem.as_ref().is_some_and(|problem| problem.cause == Cause::OverQuota);
    let is_left_out = |node: &Node| node.pod.is_none() && is_newcomer(node) && has_no_room(node);
    let absent = |node: &&Node| node.pod.as_ref().is_none_or(|pod| pod.terminating) && !is_left_out(node);
    if let Some(node) = nodes.iter().find(absent) {
        // What is wrong with a pod that is stopping says nothing about the next one.
        let problem = node.problem.as_ref().filter(|_| node.pod.is_none());
        return problem.map_or_else(
            || wait(format!("pod {} is being replaced", node.name)),
            |problem| stopped(&format!("{} {}", node.name, problem.message), &outdated),
        );
    }
    let mut unready = nodes.iter().filter(|node| is_current(node, revision) && !node.is_ready());
    if let Some(step) = unready.find_map(|node| unproved(node, is_newcomer(node), &outdated, now)) {
        return step;
    }
    // While a pod of the new template answers and is not ready, the template is not proved: an earlier pod that only waits
    // for its restart is more likely to serve again than the next one.
    let is_proved = !nodes.iter().any(|node| is_current(node, revision) && !node.is_ready());
    if let Some(node) = outdated.iter().find(|node| is_stuck(node) && (is_proved || is_unready_long(node, now))) {
        return replace(node, false);
    }
    let unready: Vec<&Node> = members.iter().copied().filter(|node| !node.is_ready()).collect();
    if let Some(first) = unready.first() {
        let has_failed = !is_current(first, revision) && is_unready_long(first, now);
        if has_failed && (!terms.is_formed || members.len() == 1 || can_spare(&members, first)) {
            return unless_postponed(terms, replace(first, false));
        }
        return wait(format!("node {} is not ready", first.name));
    }
    if !is_settled(members.iter().copied()) {
        return wait("a group has a voter that is not in sync");
    }
    let is_new = |node: &&Node| !is_ready_long(node, terms.min_ready, now);
    if let Some(node) = nodes.iter().filter(|node| is_current(node, revision)).find(is_new) {
        let seconds = terms.min_ready.as_secs();
        return wait(format!("{} must be ready for {seconds} s before the next pod is evicted", node.name));
    }
    let leader = |node: &Node| node.report.as_ref().is_some_and(|report| report.meta_leader == report.node_id);
    let next = outdated.iter().max_by_key(|node| (!leader(node), node.ordinal));
    // A newcomer that does not answer leads no group.
    next.map_or(Step::Idle, |node| unless_postponed(terms, replace(node, node.report.is_some())))
}

fn unless_postponed(terms: &Terms, step: Step) -> Step {
    terms.postponement.clone().filter(|_| terms.is_formed).map_or(step, Step::Postponed)
}

/// Returns the step if the broker of a pod of the new template does not answer. `None` if it answers, or if the pod of
/// a new node cannot be scheduled or created, which is not caused by the template.
fn unproved(node: &Node, is_newcomer: bool, outdated: &[&Node], now: Timestamp) -> Option<Step> {
    let problem = node.problem.as_ref().filter(|problem| problem.is_stuck());
    if node.report.is_some() || is_newcomer && problem.is_some_and(|problem| !problem.blames_template()) {
        return None;
    }
    Some(match problem {
        Some(problem) => fails(node, &problem.message, outdated),
        None if is_unready_long(node, now) => fails(node, "does not answer", outdated),
        None if node.pod.as_ref().is_some_and(|pod| pod.ready) => wait(format!("node {} does not answer", node.name)),
        None => wait(format!("pod {} starts with the new template", node.name)),
    })
}

fn fails(node: &Node, why: &str, outdated: &[&Node]) -> Step {
    stopped(&format!("{} runs the new template and {why}", node.name), outdated)
}

fn stopped(why: &str, outdated: &[&Node]) -> Step {
    let kept: Vec<&str> = outdated.iter().map(|node| node.name.as_str()).collect();
    let verb = if kept.len() == 1 { "keeps" } else { "keep" };
    Step::Stopped { reason: format!("{why}; {} {verb} the earlier one until the cause is corrected", kept.join(", ")) }
}

fn is_current(node: &Node, revision: &str) -> bool {
    node.pod.as_ref().is_some_and(|pod| pod.revision.as_deref() == Some(revision))
}

fn is_stuck(node: &Node) -> bool {
    node.report.is_none() && node.problem.as_ref().is_some_and(Problem::is_stuck)
}

fn is_unready_long(node: &Node, now: Timestamp) -> bool {
    let since = node.pod.as_ref().and_then(|pod| pod.unready_since);
    since.is_some_and(|since| now.duration_since(since) > UNREADY_LIMIT)
}

/// Returns whether the pod has been ready for this time. A pod for which no time is known counts.
fn is_ready_long(node: &Node, time: SignedDuration, now: Timestamp) -> bool {
    let since = node.pod.as_ref().and_then(|pod| pod.ready_since);
    time.is_zero() || since.is_none_or(|since| now.duration_since(since) >= time)
}

fn wait(reason: impl Into<String>) -> Step {
    Step::Wait { reason: reason.into() }
}

fn replace(node: &Node, serving: bool) -> Step {
    let uid = node.pod.as_ref().map(|pod| pod.uid.clone()).unwrap_or_default();
    Step::Replace { ordinal: node.ordinal, pod: node.name.clone(), uid, serving }
}

#[cfg(test)]
mod tests {
    use covey_contract::proto::StatusReply;

    use super::super::node_samples::{NOW, at, fail, node, nodes};
    use super::*;

    const TERMS: Terms = Terms { is_formed: true, min_ready: SignedDuration::from_secs(10), postponement: None };

    fn decide(nodes: &[Node]) -> Step {
        next(nodes, Some("new"), &TERMS, at(NOW))
    }

    fn replaced(nodes: &[Node]) -> Option<(u32, bool)> {
        match decide(nodes) {
            Step::Replace { ordinal, serving, .. } => Some((ordinal, serving)),
            _ => None,
        }
    }

    fn waits(nodes: &[Node]) -> bool {
        matches!(decide(nodes), Step::Wait { .. })
    }

    fn stops(nodes: &[Node]) -> bool {
        matches!(decide(nodes), Step::Stopped { .. })
    }

    const STUCK: [Cause; 4] = [Cause::ImagePull, Cause::ContainerCreate, Cause::CrashLoop, Cause::Unschedulable];

    #[test]
    fn nothing_happens_when_every_pod_is_current() {
        assert_eq!(decide(&nodes(["new", "new", "new"])), Step::Idle);
        assert!(matches!(next(&nodes(["new", "new", "new"]), None, &TERMS, at(NOW)), Step::Wait { .. }));
    }

    #[test]
    fn a_rollout_is_under_way_while_pods_of_both_templates_exist() {
        let expected = [(["old", "old", "old"], false), (["old", "new", "old"], true), (["new", "new", "new"], false)];
        for (revisions, is_under_way) in expected {
            assert_eq!(super::is_under_way(&nodes(revisions), "new"), is_under_way, "{revisions:?}");
        }
    }

    #[test]
    fn the_meta_leader_goes_last() {
        assert_eq!(replaced(&nodes(["old", "old", "old"])), Some((1, true)));
        assert_eq!(replaced(&nodes(["old", "new", "old"])), Some((0, true)));
        assert_eq!(replaced(&nodes(["new", "new", "old"])), Some((2, true)));
    }

    #[test]
    fn one_pod_at_a_time() {
        let mut nodes = nodes(["old", "old", "old"]);
        nodes[1].pod = None;
        assert!(waits(&nodes));
        nodes[1] = node(1, "new");
        nodes[1].pod.as_mut().unwrap().terminating = true;
        assert!(waits(&nodes));
    }

    #[test]
    fn the_next_pod_waits_for_readiness_and_for_every_voter() {
        let mut unready = nodes(["old", "new", "old"]);
        unready[1].report.as_mut().unwrap().ready = false;
        assert!(waits(&unready));
        let mut behind = nodes(["old", "new", "old"]);
        behind[0].report.as_mut().unwrap().groups_out_of_sync = 1;
        assert!(waits(&behind));
        let mut leaderless = nodes(["old", "new", "old"]);
        leaderless[0].report.as_mut().unwrap().groups[0].has_leader = false;
        assert!(waits(&leaderless));
        let mut silent = nodes(["old", "new", "old"]);
        silent[2].report = None;
        assert!(waits(&silent));
    }

    #[test]
    fn a_new_template_that_does_not_start_stops_the_rollout_with_its_cause() {
        for cause in STUCK {
            let mut nodes = nodes(["old", "new", "old"]);
            fail(&mut nodes[1], 1, Some(cause));
            let Step::Stopped { reason } = decide(&nodes) else { panic!("{cause:?} does not stop") };
            assert_eq!(
                reason,
                format!(
                    "mosaic-1 runs the new template and has the problem {cause:?}; mosaic-0, mosaic-2 keep the earlier one \
                     until the cause is corrected"
                )
            );
        }
    }

    #[test]
    fn a_pod_that_cannot_be_created_stops_the_rollout_with_its_cause() {
        let mut nodes = nodes(["old", "old", "old"]);
        nodes[2].pod = None;
        for cause in [Cause::NotCreated, Cause::OverQuota] {
            nodes[2].problem = Some(Problem { cause, message: "is refused".into() });
            assert!(stops(&nodes), "{cause:?}");
        }
    }

    #[test]
    fn what_was_wrong_with_a_pod_that_is_stopping_does_not_stop_the_rollout() {
        let mut nodes = nodes(["old", "old", "old"]);
        nodes[1].pod.as_mut().unwrap().terminating = true;
        nodes[1].problem = Some(Problem { cause: Cause::Restarted, message: "was restarted".into() });
        assert!(waits(&nodes));
    }

    #[test]
    fn while_a_pod_of_the_new_template_answers_and_is_not_ready_a_crash_of_another_is_waited_for() {
        let mut nodes = nodes(["old", "old", "new"]);
        nodes[2].pod.as_mut().unwrap().ready = false;
        nodes[2].report.as_mut().unwrap().ready = false;
        fail(&mut nodes[1], 10, Some(Cause::CrashLoop));
        assert!(waits(&nodes));
        fail(&mut nodes[1], 61, Some(Cause::CrashLoop));
        assert_eq!(replaced(&nodes), Some((1, false)));
    }

    #[test]
    fn a_pod_that_stays_unready_is_kept_while_another_lacks_entries_that_it_may_have() {
        let mut nodes = nodes(["old", "old", "old"]);
        fail(&mut nodes[0], 61, None);
        let report = nodes[1].report.as_mut().unwrap();
        (report.groups_out_of_sync, report.voters_behind) = (1, vec!["n0".into()]);
        assert_eq!(replaced(&nodes), Some((0, false)));
        nodes[1].report.as_mut().unwrap().voters_behind.push("n2".into());
        assert!(waits(&nodes));
    }

    #[test]
    fn a_new_node_for_which_a_quota_has_no_room_does_not_hold_up_the_members() {
        let mut nodes = nodes(["old", "old", "old"]);
        let mut newcomer = node(3, "new");
        (newcomer.pod, newcomer.report) = (None, None);
        nodes.push(newcomer);
        assert!(waits(&nodes), "its pod is about to be created with the new template, and proves it");
        let problem = |cause| Some(Problem { cause, message: "is refused".into() });
        nodes[3].problem = problem(Cause::OverQuota);
        assert_eq!(replaced(&nodes), Some((1, true)));
        nodes[3].problem = problem(Cause::NotCreated);
        assert!(stops(&nodes), "an admission rule refuses the new template");
        nodes[3].problem = problem(Cause::OverQuota);
        nodes[2].pod = None;
        assert!(waits(&nodes), "a member is missing");
    }

    #[test]
    fn while_the_new_template_fails_no_other_pod_is_touched_whatever_happens_to_it() {
        for cause in STUCK {
            // Seconds that the pod of the earlier template has been unready, and why: a kill, a fence, a crash loop.
            for (seconds, other) in [(1, Some(Cause::Restarted)), (600, None), (600, Some(Cause::CrashLoop))] {
                let mut nodes = nodes(["old", "old", "new"]);
                fail(&mut nodes[2], 5, Some(cause));
                fail(&mut nodes[0], seconds, other);
                assert!(stops(&nodes), "{cause:?}, {other:?}");
                fail(&mut nodes[1], seconds, other);
                assert!(stops(&nodes), "{cause:?}, {other:?}, both");
            }
        }
    }

    #[test]
    fn a_new_template_whose_broker_starts_and_never_answers_stops_the_rollout_after_a_minute() {
        let mut nodes = nodes(["old", "old", "new"]);
        fail(&mut nodes[2], 59, None);
        assert!(waits(&nodes));
        fail(&mut nodes[2], 61, None);
        assert!(stops(&nodes));
    }

    #[test]
    fn a_corrected_template_replaces_the_failed_pod_first_and_ungated() {
        for cause in STUCK {
            let mut nodes = nodes(["old", "old", "broken"]);
            fail(&mut nodes[2], 300, Some(cause));
            assert_eq!(replaced(&nodes), Some((2, false)), "{cause:?}");
            fail(&mut nodes[0], 1, Some(Cause::Restarted));
            assert_eq!(
                replaced(&nodes),
                Some((2, false)),
                "{cause:?}: it serves nothing, whatever the state of the others"
            );
        }
    }

    #[test]
    fn a_cluster_whose_every_pod_is_broken_heals_pod_by_pod_once_the_template_is_corrected() {
        let mut nodes = nodes(["broken", "broken", "broken"]);
        for node in &mut nodes {
            fail(node, 300, Some(Cause::ImagePull));
        }
        assert_eq!(replaced(&nodes), Some((0, false)));
        nodes[0].pod.as_mut().unwrap().revision = Some("new".into());
        nodes[0].problem = None;
        assert!(stops(&nodes), "the first one must start before the second is replaced");
        // It answers, but is not ready because there is no majority.
        nodes[0].report = Some(StatusReply { ordinal: 0, ..StatusReply::default() });
        assert_eq!(replaced(&nodes), Some((1, false)));
    }

    #[test]
    fn a_pod_that_is_unready_for_a_moment_is_waited_for() {
        let mut nodes = nodes(["old", "old", "old"]);
        fail(&mut nodes[0], 2, Some(Cause::Restarted));
        assert!(waits(&nodes));
    }

    #[test]
    fn a_pod_that_stays_unready_is_replaced_while_the_others_are_a_majority() {
        let mut nodes = nodes(["old", "old", "old"]);
        fail(&mut nodes[0], 61, None);
        assert_eq!(replaced(&nodes), Some((0, false)));
        fail(&mut nodes[1], 61, None);
        assert!(waits(&nodes), "all are cut off: none is replaced before the others are back");
    }

    #[test]
    fn a_pod_of_the_new_template_must_stay_ready_before_the_next_one_goes() {
        let mut nodes = nodes(["old", "new", "old"]);
        nodes[1].pod.as_mut().unwrap().ready_since = Some(at(NOW - 9));
        let Step::Wait { reason } = decide(&nodes) else { panic!("it has been ready for 9 s only") };
        assert_eq!(reason, "mosaic-1 must be ready for 10 s before the next pod is evicted");
        nodes[1].pod.as_mut().unwrap().ready_since = Some(at(NOW - 10));
        assert_eq!(replaced(&nodes), Some((0, true)));
        nodes[0].pod.as_mut().unwrap().ready_since = Some(at(NOW - 1));
        assert_eq!(replaced(&nodes), Some((0, true)), "how long a pod of the earlier template is ready says nothing");
    }

    #[test]
    fn only_pods_that_run_their_broker_are_postponed() {
        let approval = Postponement::Approval { revision: "new".into() };
        let terms = Terms { postponement: Some(approval.clone()), ..TERMS };
        let decide = |nodes: &[Node]| next(nodes, Some("new"), &terms, at(NOW));
        let mut nodes = nodes(["old", "old", "old"]);
        assert_eq!(decide(&nodes), Step::Postponed(approval.clone()));
        fail(&mut nodes[0], 61, None);
        assert_eq!(decide(&nodes), Step::Postponed(approval), "it may serve again with its own template");
        fail(&mut nodes[0], 61, Some(Cause::CrashLoop));
        assert!(matches!(decide(&nodes), Step::Replace { ordinal: 0, .. }), "it serves nothing");
        assert_eq!(decide(&[node(0, "new")]), Step::Idle);
    }

    #[test]
    fn before_the_cluster_is_formed_a_template_that_hangs_is_replaced_after_its_correction() {
        let mut nodes = nodes(["broken", "broken", "broken"]);
        for node in &mut nodes {
            fail(node, 61, None);
        }
        assert!(waits(&nodes), "a formed cluster may only be out of reach");
        let step = next(&nodes, Some("new"), &Terms { is_formed: false, ..TERMS }, at(NOW));
        assert!(matches!(step, Step::Replace { ordinal: 0, serving: false, .. }), "{step:?}");
    }

    #[test]
    fn the_only_pod_of_a_cluster_of_one_is_replaced_although_it_is_not_ready() {
        let mut nodes = nodes(["old"]);
        fail(&mut nodes[0], 61, None);
        assert_eq!(replaced(&nodes), Some((0, false)));
    }

    #[test]
    fn a_growing_cluster_rolls_its_members_although_newcomers_are_not_ready() {
        let mut nodes = nodes(["old", "old", "old"]);
        for ordinal in [3, 4] {
            let mut newcomer = node(ordinal, "new");
            fail(&mut newcomer, 300, None);
            newcomer.report = Some(StatusReply { ordinal, ..StatusReply::default() });
            nodes.push(newcomer);
        }
        assert_eq!(replaced(&nodes), Some((1, true)));
        fail(&mut nodes[4], 300, Some(Cause::Unschedulable));
        assert_eq!(replaced(&nodes), Some((1, true)), "an unschedulable new node is not caused by the template");
        fail(&mut nodes[4], 300, Some(Cause::ImagePull));
        assert!(stops(&nodes), "an image that cannot be pulled is");
    }

    #[test]
    fn a_member_of_five_that_finds_no_place_with_the_new_template_stops_the_rollout() {
        let mut nodes = nodes(["old", "old", "old", "old", "new"]);
        fail(&mut nodes[4], 1, Some(Cause::Unschedulable));
        assert!(stops(&nodes));
    }

    #[test]
    fn a_silent_newcomer_with_an_earlier_template_is_replaced_without_moving_leaders() {
        let mut nodes = nodes(["new", "new", "new", "new", "old"]);
        for node in &mut nodes {
            node.report.as_mut().unwrap().members.retain(|member| member.ordinal < 4);
        }
        fail(&mut nodes[4], 300, None);
        assert_eq!(replaced(&nodes), Some((4, false)));
    }
}
