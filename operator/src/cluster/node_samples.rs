//! Nodes for the tests of rollouts and evictions.

use covey_contract::proto::{GroupReplica, Member, StatusReply};
use jiff::Timestamp;

use super::nodes::{Node, PodFacts};
use super::problem::{Cause, Problem};

/// The time of the samples, in seconds.
pub(super) const NOW: i64 = 1_000;

/// The time `second`.
pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A node of three that serves with this template revision. Node 2 is the meta leader.
pub(super) fn node(ordinal: u32, revision: &str) -> Node {
    let pod =
        PodFacts { uid: format!("u{ordinal}"), ready: true, revision: Some(revision.into()), ..PodFacts::default() };
    let members = (0..3).map(|ordinal| Member { ordinal, node_id: format!("n{ordinal}") }).collect();
    let report = StatusReply {
        ordinal,
        node_id: format!("n{ordinal}"),
        ready: true,
        member: true,
        meta_leader: "n2".into(),
        members,
        groups: vec![GroupReplica { group: 0, has_leader: true }],
        ..StatusReply::default()
    };
    Node { ordinal, name: format!("mosaic-{ordinal}"), pod: Some(pod), report: Some(report), problem: None }
}

/// Nodes 0, 1, ... with these template revisions.
pub(super) fn nodes<const N: usize>(revisions: [&str; N]) -> Vec<Node> {
    let mut nodes: Vec<Node> =
        revisions.into_iter().zip(0..).map(|(revision, ordinal)| node(ordinal, revision)).collect();
    let members: Vec<Member> =
        nodes.iter().map(|node| Member { ordinal: node.ordinal, node_id: format!("n{}", node.ordinal) }).collect();
    for node in &mut nodes {
        node.report.as_mut().unwrap().members.clone_from(&members);
    }
    nodes
}

/// Makes a node unready since this number of seconds.
pub(super) fn fail(node: &mut Node, seconds: i64, cause: Option<Cause>) {
    let pod = node.pod.as_mut().unwrap();
    (pod.ready, pod.unready_since) = (false, Some(at(NOW - seconds)));
    node.report = None;
    node.problem = cause.map(|cause| Problem { cause, message: format!("has the problem {cause:?}") });
}
