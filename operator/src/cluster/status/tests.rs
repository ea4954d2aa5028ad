use covey_contract::access::{Document, FORMAT};
use covey_contract::proto::{AccessStatus as Enforced, GroupReplica, StatusReply};

use super::super::nodes::PodFacts;
use super::super::postponement::Postponement;
use super::super::problem::{Cause, Problem};
use super::*;
use crate::conditions::status_of;
use crate::test_support::cluster;

fn projection() -> Projection {
    let document = Document { format: FORMAT, revision: 7, users: vec![] };
    Projection { document, outcomes: std::collections::BTreeMap::new(), changed: std::collections::BTreeSet::new() }
}

fn node(ordinal: u32) -> Node {
    let report = StatusReply {
        version: "1.2.3".into(),
        ordinal,
        node_id: format!("n{ordinal}"),
        cluster_id: "c".into(),
        ready: true,
        member: true,
        connections: 10,
        sessions: 5,
        retained: 2,
        storage_free_bytes: 71,
        storage_capacity_bytes: 100,
        meta_leader: "n1".into(),
        access: Some(Enforced { revision: 7, hash: projection().document.hash(), ..Enforced::default() }),
        ..StatusReply::default()
    };
    let pod = PodFacts { ready: true, revision: Some("r".into()), ..PodFacts::default() };
    Node { ordinal, name: format!("mosaic-{ordinal}"), pod: Some(pod), report: Some(report), problem: None }
}

fn nodes() -> Vec<Node> {
    (0..3).map(node).collect()
}

struct Case {
    nodes: Vec<Node>,
    phase: Phase,
    step: Step,
    scale: scale::Step,
    postponement: Option<Postponement>,
    paused: bool,
    blocked: Option<Blocked>,
    apply_error: Option<(&'static str, String)>,
    alerts: Option<Vec<AlertStatus>>,
    before: Option<MqttClusterStatus>,
    now: i64,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            nodes: nodes(),
            phase: Phase::Formed,
            step: Step::Idle,
            scale: scale::Step::Settled,
            postponement: None,
            paused: false,
            blocked: None,
            apply_error: None,
            alerts: Some(vec![]),
            before: None,
            now: 100,
        }
    }
}

impl Case {
    fn status(&self) -> MqttClusterStatus {
        let mut cluster = cluster("{}");
        cluster.status = self.before.clone();
        let projection = projection();
        build(&Observed {
            cluster: &cluster,
            paused: self.paused,
            blocked: self.blocked.as_ref(),
            nodes: &self.nodes,
            phase: &self.phase,
            step: &self.step,
            scale: &self.scale,
            postponement: self.postponement.as_ref(),
            projection: Some(&projection),
            workload: None,
            revision: Some("r"),
            pods: self.nodes.len(),
            apply_error: self.apply_error.clone(),
            alerts: self.alerts.clone(),
            now: Timestamp::from_second(self.now).unwrap(),
        })
    }
}

fn table(status: &MqttClusterStatus) -> Vec<String> {
    status.conditions.iter().map(|one| format!("{}={}/{}", one.type_, one.status, one.reason)).collect()
}

#[test]
fn a_healthy_cluster_says_so_in_every_condition() {
    let status = Case::default().status();
    assert_eq!(
        table(&status),
        [
            "Ready=True/AllNodesReady",
            "Available=True/Serving",
            "Progressing=False/Settled",
            "Degraded=False/Healthy",
            "QuorumHealthy=True/Quorum",
            "AclSynced=True/AllNodesEnforce",
            "Alerting=False/NoAlerts",
            "UpgradePending=False/NothingPostponed",
            "Paused=False/NotPaused",
        ]
    );
    assert_eq!(
        (status.ready.as_str(), status.ready_replicas, status.selector.as_str()),
        ("3/3", 3, "app.kubernetes.io/component=broker,covey.io/cluster=mosaic")
    );
    let totals = status.totals.unwrap();
    assert_eq!((totals.connections, totals.sessions, totals.retained), (30, 15, 2));
    assert_eq!(status.quorum.unwrap().meta_leader.as_deref(), Some("mosaic-1"));
    assert_eq!(status.version.unwrap().current, "1.2.3");
    assert_eq!(status.nodes[0].disk_free_percent, Some(71));
    assert_eq!(status.acl.unwrap().nodes_in_sync, 3);
    assert_eq!(status.observed_generation, Some(4));
}

#[test]
fn a_second_pass_over_the_same_facts_changes_nothing() {
    let first = Case::default().status();
    let second = Case { before: Some(first.clone()), now: 9999, ..Case::default() }.status();
    assert_eq!(second, first);
    assert!(!is_urgent(Some(&first), &second));
}

#[test]
fn counts_alone_are_not_urgent() {
    let first = Case::default().status();
    let mut busy = nodes();
    busy[0].report.as_mut().unwrap().connections = 999;
    let second = Case { nodes: busy, before: Some(first.clone()), ..Case::default() }.status();
    assert_ne!(second, first);
    assert!(!is_urgent(Some(&first), &second));
}

#[test]
fn a_node_that_is_gone_degrades_and_is_named() {
    let mut nodes = nodes();
    nodes[2].report = None;
    nodes[2].pod = None;
    let status = Case { nodes, ..Case::default() }.status();
    assert_eq!(status_of(&status.conditions, "Ready"), Some("False"));
    assert_eq!(status_of(&status.conditions, "Degraded"), Some("True"));
    assert_eq!(status_of(&status.conditions, "Available"), Some("True"));
    assert_eq!(status_of(&status.conditions, "AclSynced"), Some("False"));
    assert!(status.conditions[0].message.contains("mosaic-2 has no pod"), "{}", status.conditions[0].message);
    assert_eq!((status.ready.as_str(), status.nodes[2].state.as_str()), ("2/3", "Missing"));
    assert_eq!(status.quorum.unwrap().state, "Degraded");
}

#[test]
fn without_a_majority_nothing_is_available() {
    let mut nodes = nodes();
    for node in nodes.iter_mut().skip(1) {
        node.report = None;
        node.pod.as_mut().unwrap().ready = false;
    }
    nodes[0].report.as_mut().unwrap().meta_leader = String::new();
    let status = Case { nodes, ..Case::default() }.status();
    assert_eq!(status_of(&status.conditions, "Available"), Some("False"));
    assert_eq!(status_of(&status.conditions, "QuorumHealthy"), Some("False"));
    assert_eq!(status.quorum.unwrap().state, "Lost");
}

#[test]
fn a_foreign_disk_is_the_reason_of_ready() {
    let phase = Phase::Foreign { disks: vec![(1, "x".into())] };
    let status = Case { phase, ..Case::default() }.status();
    assert_eq!(status.conditions[0].reason, "ForeignDisk");
    assert!(status.conditions[0].message.contains("node 1 carries cluster x"));
    assert_eq!(status.nodes[1].state, "Foreign");
}

#[test]
fn a_refused_revision_is_named_with_its_reason() {
    let mut nodes = nodes();
    let access = nodes[1].report.as_mut().unwrap().access.as_mut().unwrap();
    (access.rejected_revision, access.rejected_reason) = (99, "not JSON".into());
    let status = Case { nodes, ..Case::default() }.status();
    let synced = status.conditions.iter().find(|one| one.type_ == "AclSynced").unwrap();
    assert_eq!((synced.status.as_str(), synced.reason.as_str()), ("False", "RevisionRefused"));
    assert!(synced.message.contains("mosaic-1 refused access revision r99: not JSON"));
}

#[test]
fn what_could_not_be_applied_is_said() {
    let status =
        Case { apply_error: Some((reason::APPLY_FAILED, "failed to apply StatefulSet".into())), ..Case::default() }
            .status();
    assert!(table(&status).contains(&"Degraded=True/ApplyFailed".to_owned()));
}

#[test]
fn alerts_are_counted_and_capped() {
    let alert = |number| AlertStatus { name: format!("A{number:02}"), ..AlertStatus::default() };
    let status = Case { alerts: Some((0..25).map(alert).collect()), ..Case::default() }.status();
    assert_eq!((status.alerts_firing, status.alerts.len()), (25, 20));
    assert_eq!(status_of(&status.conditions, "Alerting"), Some("True"));
}

#[test]
fn an_invalid_spec_is_named_and_everything_else_is_said_as_ever() {
    let blocked = Blocked { reason: reason::INVALID, message: "replicas must not be 2".into() };
    let before = Case::default().status();
    let status = Case { blocked: Some(blocked.clone()), before: Some(before.clone()), ..Case::default() }.status();
    for (type_, wanted) in [("Ready", "False"), ("Degraded", "True")] {
        let condition = status.conditions.iter().find(|one| one.type_ == type_).unwrap();
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), (wanted, "Invalid"));
        assert_eq!(condition.message, "replicas must not be 2");
    }
    assert_eq!(status_of(&status.conditions, "AclSynced"), Some("True"));
    assert_eq!((status.conditions.len(), status.nodes.len()), (9, 3));
    assert!(is_news(Some(&before), &status));
    let unwritten = Case {
        blocked: Some(blocked),
        apply_error: Some((reason::APPLY_FAILED, "no access".into())),
        ..Case::default()
    }
    .status();
    assert_eq!(unwritten.conditions[0].message, "replicas must not be 2; no access");
    assert!(!is_news(Some(&status), &status));
}

fn stuck(cause: Cause, message: &str) -> Problem {
    Problem { cause, message: message.into() }
}

#[test]
fn while_a_cluster_is_formed_the_cause_that_keeps_a_pod_from_starting_is_named() {
    let mut nodes = nodes();
    nodes[1].pod = None;
    nodes[1].report = None;
    nodes[1].problem = Some(stuck(Cause::NotCreated, "cannot be created: exceeded quota"));
    let phase = Phase::Forming { waiting: "waiting for node 1 to answer".into() };
    let status = Case { nodes, phase, ..Case::default() }.status();
    assert_eq!(
        status.conditions[0].message,
        "waiting for node 1 to answer; mosaic-1 cannot be created: exceeded quota"
    );
    assert!(table(&status).contains(&"Degraded=True/PodNotCreated".to_owned()));
}

#[test]
fn a_stopped_rollout_is_degraded_and_does_not_progress() {
    let mut nodes = nodes();
    nodes[2].report = None;
    nodes[2].problem = Some(stuck(Cause::ImagePull, "cannot pull image covey:9 (ErrImagePull: no)"));
    let step = Step::Stopped { reason: "mosaic-2 runs the new template and ...".into() };
    let status = Case { nodes, step, ..Case::default() }.status();
    let table = table(&status);
    assert!(table.contains(&"Degraded=True/NewTemplateFails".to_owned()), "{table:?}");
    assert!(table.contains(&"Progressing=False/NewTemplateFails".to_owned()), "{table:?}");
    assert!(table.contains(&"Available=True/Serving".to_owned()), "{table:?}");
    let text = "2 of 3 nodes are ready; mosaic-2 cannot pull image covey:9 (ErrImagePull: no)";
    assert_eq!(status.conditions[0].message, text);
}

#[test]
fn a_postponed_rollout_is_named_with_what_ends_the_postponement() {
    let mut nodes = nodes();
    for node in &mut nodes[..2] {
        node.pod.as_mut().unwrap().revision = Some("earlier".into());
    }
    let others = vec!["iot/a".to_owned(), "iot/b".to_owned()];
    for (postponement, reason, end) in [
        (
            Postponement::Approval { revision: "r".into() },
            "ApprovalNeeded",
            "after: kubectl annotate mqttcluster mosaic -n floor covey.io/approve-rollout=r --overwrite",
        ),
        (Postponement::Windows { next: "Sat 22:00 UTC".into() }, "OutsideWindows", "from Sat 22:00 UTC"),
        (Postponement::Fleet { others }, "OtherClustersRoll", "when these clusters are done: iot/a, iot/b"),
    ] {
        let case = Case { nodes: nodes.clone(), step: Step::Postponed(postponement), ..Case::default() };
        let status = case.status();
        for (type_, value) in [("UpgradePending", "True"), ("Progressing", "False")] {
            let condition = status.conditions.iter().find(|one| one.type_ == type_).unwrap();
            assert_eq!((condition.status.as_str(), condition.reason.as_str()), (value, reason));
            let pods = "mosaic-0, mosaic-1 run an earlier template; one pod after the other is replaced ";
            assert_eq!(condition.message, format!("{pods}{end}"));
        }
        assert_eq!(status_of(&status.conditions, "Ready"), Some("True"));
        assert_eq!(status_of(&status.conditions, "Degraded"), Some("False"));
    }
}

#[test]
fn a_postponement_is_named_also_while_the_rollout_waits_for_a_node() {
    let mut nodes = nodes();
    let waiting = || Step::Wait { reason: "node mosaic-2 is not ready".into() };
    let postponement = Some(Postponement::Approval { revision: "r".into() });
    let pending = |nodes: &[Node]| {
        let case =
            Case { nodes: nodes.to_vec(), step: waiting(), postponement: postponement.clone(), ..Case::default() };
        status_of(&case.status().conditions, "UpgradePending").map(str::to_owned)
    };
    assert_eq!(pending(&nodes).as_deref(), Some("False"), "every pod runs the template");
    nodes[0].pod.as_mut().unwrap().revision = Some("earlier".into());
    assert_eq!(pending(&nodes).as_deref(), Some("True"));
    let stopped = Step::Stopped { reason: "mosaic-1 runs the new template and does not answer".into() };
    let case = Case { nodes, step: stopped, postponement, ..Case::default() };
    let conditions = case.status().conditions;
    assert_eq!(status_of(&conditions, "UpgradePending"), Some("False"), "an approval would change nothing");
}

#[test]
fn a_group_is_leaderless_only_when_no_node_knows_its_leader() {
    let group = |group, has_leader| GroupReplica { group, has_leader };
    let mut nodes = nodes();
    // Node 0 is cut off: it knows no leader; nodes 1 and 2 do. Groups 4 and 5 are held by two nodes each.
    nodes[0].report.as_mut().unwrap().groups = vec![group(3, false), group(4, false), group(5, false)];
    nodes[1].report.as_mut().unwrap().groups = vec![group(3, true), group(4, true)];
    nodes[2].report.as_mut().unwrap().groups = vec![group(3, true), group(5, true)];
    let cut = Case { nodes: nodes.clone(), ..Case::default() }.status();
    assert_eq!(status_of(&cut.conditions, "Available"), Some("True"));
    assert_eq!(cut.quorum.unwrap().leaderless_groups, 0);

    nodes[2].report.as_mut().unwrap().groups[1].has_leader = false;
    let status = Case { nodes, ..Case::default() }.status();
    assert_eq!(status.quorum.clone().unwrap().leaderless_groups, 1);
    assert!(table(&status).contains(&"QuorumHealthy=False/LeaderlessGroups".to_owned()));
    assert!(table(&status).contains(&"Degraded=True/LeaderlessGroups".to_owned()), "a person has to know");
}

#[test]
fn the_version_of_a_cluster_is_the_lowest_by_number_and_not_by_text() {
    let mut nodes = nodes();
    for (node, version) in nodes.iter_mut().zip(["0.10.0", "0.9.0", "0.10.0-rc.1"]) {
        node.report.as_mut().unwrap().version = version.into();
    }
    let status = Case { nodes, ..Case::default() }.status();
    assert_eq!(status.version.unwrap().current, "0.9.0");
}

#[test]
fn a_pause_with_pods_of_an_earlier_template_is_not_called_settled() {
    let mut case = Case { paused: true, ..Case::default() };
    for (node, revision) in case.nodes.iter_mut().zip(["r", "earlier", "r"]) {
        node.pod.as_mut().unwrap().revision = Some(revision.into());
    }
    let status = case.status();
    let progressing = status.conditions.iter().find(|condition| condition.type_ == "Progressing").unwrap();
    assert_eq!((progressing.status.as_str(), progressing.reason.as_str()), ("False", "Paused"));
    assert!(progressing.message.contains("mosaic-1 runs an earlier template"), "{}", progressing.message);
}

#[test]
fn volumes_of_a_larger_cluster_are_named_with_the_way_out() {
    let status = Case { phase: Phase::TooFew { members: 5 }, ..Case::default() }.status();
    assert_eq!(table(&status)[0], "Ready=False/Invalid");
    assert!(status.conditions[0].message.contains("set replicas: 5"), "{}", status.conditions[0].message);
}

#[test]
fn after_a_restart_the_failing_checks_are_named_beside_the_restart() {
    let mut nodes = nodes();
    let report = nodes[1].report.as_mut().unwrap();
    (report.ready, report.failing_checks) = (false, vec!["joined".into(), "lease".into()]);
    nodes[1].problem = Some(stuck(Cause::Restarted, "was restarted and is not ready yet: exit code 137 (OOMKilled)"));
    (nodes[2].report, nodes[2].problem) = (None, nodes[1].problem.clone());
    let status = Case { nodes, ..Case::default() }.status();
    assert_eq!(
        status.conditions[0].message,
        "1 of 3 nodes are ready; mosaic-1 fails readiness checks: joined, lease; it was restarted and is not ready \
         yet: exit code 137 (OOMKilled); mosaic-2 does not answer; it was restarted and is not ready yet: exit code 137 \
         (OOMKilled)"
    );
}

#[test]
fn nodes_that_only_the_operator_does_not_reach_are_not_called_lost() {
    let mut nodes = nodes();
    nodes[1].report = None;
    nodes[2].report = None;
    let one_answers = Case { nodes: nodes.clone(), ..Case::default() }.status();
    nodes[0].report = None;
    let none_answers = Case { nodes: nodes.clone(), ..Case::default() }.status();
    for status in [&one_answers, &none_answers] {
        for (type_, wanted) in [("Available", "Unknown"), ("QuorumHealthy", "Unknown"), ("Degraded", "True")] {
            let condition = status.conditions.iter().find(|one| one.type_ == type_).unwrap();
            let found = (condition.status.as_str(), condition.reason.as_str());
            assert_eq!(found, (wanted, "OperatorCannotReachNodes"), "{type_}");
            assert!(condition.message.contains("mosaic-1, mosaic-2 do not answer the operator on TCP port 7884"));
            assert!(condition.message.contains("NetworkPolicy"), "{}", condition.message);
        }
        assert_eq!(status.quorum.as_ref().unwrap().state, "Unknown");
        assert!(table(status).contains(&"Progressing=False/OperatorCannotReachNodes".to_owned()));
    }
    assert!(none_answers.conditions[0].message.contains("mosaic-1 does not answer the operator, although the kubelet"));

    for node in &mut nodes {
        node.pod.as_mut().unwrap().ready = false;
    }
    let lost = Case { nodes, ..Case::default() }.status();
    assert!(
        table(&lost).contains(&"QuorumHealthy=False/QuorumLost".to_owned()),
        "the kubelet does not find them ready"
    );
    assert!(table(&lost).contains(&"Available=False/NotServing".to_owned()));
}

#[test]
fn one_node_that_the_operator_does_not_reach_leaves_the_majority_healthy() {
    let mut nodes = nodes();
    nodes[2].report = None;
    let status = Case { nodes, ..Case::default() }.status();
    assert!(table(&status).contains(&"QuorumHealthy=True/Quorum".to_owned()));
    assert!(table(&status).contains(&"Available=True/Serving".to_owned()));
}

#[test]
fn a_rollout_that_is_held_up_is_not_called_settled() {
    let mut case =
        Case { apply_error: Some((reason::NAME_TAKEN, "Service mosaic is taken".into())), ..Case::default() };
    case.nodes[2].pod.as_mut().unwrap().revision = Some("earlier".into());
    let status = case.status();
    let progressing = status.conditions.iter().find(|one| one.type_ == condition::PROGRESSING).unwrap();
    assert_eq!((progressing.status.as_str(), progressing.reason.as_str()), ("False", reason::NAME_TAKEN));
    assert_eq!(
        progressing.message,
        "mosaic-2 runs an earlier template; no pod is replaced until every object is applied"
    );
}

#[test]
fn a_cluster_that_becomes_smaller_says_what_it_waits_for_unless_a_rollout_has_stopped() {
    let scale = scale::Step::Wait { reason: "sessions and votes move away".into() };
    let progressing = |case: &Case| {
        let status = case.status();
        let condition = status.conditions.iter().find(|one| one.type_ == "Progressing").unwrap();
        (condition.status.clone(), condition.reason.clone(), condition.message.clone())
    };
    let moving = ("True".into(), "Scaling".into(), "sessions and votes move away".into());
    for step in [Step::Idle, Step::Wait { reason: "a node is not ready".into() }] {
        assert_eq!(progressing(&Case { step, scale: scale.clone(), ..Case::default() }), moving);
    }
    let stopped = Case { step: Step::Stopped { reason: "it fails".into() }, scale, ..Case::default() };
    assert_eq!(progressing(&stopped).1, "NewTemplateFails");
}
