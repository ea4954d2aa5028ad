use covey_contract::access::{Document, FORMAT};
use covey_contract::proto::{AccessStatus as Enforced, StatusReply};

use super::super::nodes::PodFacts;
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
            paused: false,
            nodes: &self.nodes,
            phase: &self.phase,
            step: &self.step,
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
            "Paused=False/NotPaused",
        ]
    );
    assert_eq!(
        (status.ready.as_str(), status.ready_replicas, status.selector.as_str()),
        ("3/3", 3, "covey.io/cluster=mosaic")
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
    assert!(synced.message.contains("mosaic-1 refused r99: not JSON"));
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
fn a_cluster_that_cannot_be_built_keeps_what_was_known() {
    let mut cluster = cluster("{replicas: 2}");
    cluster.status = Some(Case::default().status());
    let status = stopped(&cluster, reason::INVALID, "replicas must not be 2", Timestamp::UNIX_EPOCH);
    assert_eq!(status.conditions.len(), 8);
    assert_eq!(status.conditions[0].message, "replicas must not be 2");
    assert_eq!(status.nodes.len(), 3);
}
