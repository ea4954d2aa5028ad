//! Decides the next step of making a cluster smaller, or larger again after that. Pure; the reconcile carries out the step.
//!
//! One node leaves at a time, the one with the highest ordinal, as a StatefulSet removes pods:
//!
//! ```text
//!  the brokers know another size than the spec has ------> Resize: the members beyond it retire. Their sessions and votes
//!                                                          move to the others; they serve their clients meanwhile
//!  some group still has to change its voters ------------> Wait
//!  no retiring member votes anywhere --------------------> RemovePod: the StatefulSet gets one replica less, and the pod
//!                                                          disconnects its clients and ends
//!  a pod has stopped whose node is still a member -------> Leave: the brokers remove the member for good
//! ```
//!
//! A cluster that only grows needs no step: a new pod joins by itself.

use std::collections::BTreeSet;

use super::nodes::{Node, is_settled};

/// Next step towards the number of nodes in the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Every pod is wanted and no member retires.
    Settled,
    /// The cluster becomes smaller; `reason` says what it waits for.
    Wait { reason: String },
    /// Tell the brokers how many nodes the cluster is to have.
    Resize { nodes: u32 },
    /// Reduce the StatefulSet to this number of pods, which stops the pod `pod`.
    RemovePod { replicas: u32, pod: String },
    /// The pod `pod` is stopping.
    Stopping { pod: String },
    /// Remove the member whose pod `pod` has stopped.
    Leave { node_id: String, pod: String },
}

impl Step {
    /// Returns whether a node is leaving now, so that no other may be replaced or evicted.
    pub fn takes_a_node(&self) -> bool {
        matches!(self, Self::RemovePod { .. } | Self::Stopping { .. } | Self::Leave { .. })
    }

    /// Returns what is done, or what the step waits for, as a message. `None` if nothing is to be done.
    pub fn message(&self) -> Option<String> {
        Some(match self {
            Self::Settled => return None,
            Self::Wait { reason } => reason.clone(),
            Self::Resize { nodes } => format!("telling the brokers that the cluster is to have {nodes} nodes"),
            Self::RemovePod { pod, .. } | Self::Stopping { pod } => format!("{pod} disconnects its clients and stops"),
            Self::Leave { pod, .. } => format!("removing the member of {pod}, whose pod has stopped"),
        })
    }
}

/// Numbers of nodes and pods that [`next`] compares.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Nodes that the spec asks for.
    pub wanted: u32,
    /// Replicas of the StatefulSet, or `wanted` if that is more.
    pub applied: u32,
}

/// Decides the next step of a formed cluster. `nodes` are those of all ordinals below `sizes.applied`, `stopping` the
/// name of an existing pod with a higher ordinal.
pub fn next(nodes: &[Node], stopping: Option<&str>, sizes: Sizes, name: &str) -> Step {
    let Sizes { wanted, applied } = sizes;
    let reports = || nodes.iter().filter_map(|node| node.report.as_ref());
    if let Some(pod) = stopping {
        return Step::Stopping { pod: pod.to_owned() };
    }
    let shrinks = applied > wanted;
    // Before the first resize every report has 0, and any node may join.
    let was_told_another = reports().any(|report| ![0, wanted].contains(&report.cluster_size));
    let knows_another = reports().any(|report| report.cluster_size != wanted);
    if was_told_another || shrinks && knows_another {
        return if shrinks { may_resize(nodes, wanted) } else { Step::Resize { nodes: wanted } };
    }
    let gone = reports().flat_map(|report| &report.members).find(|member| member.ordinal >= applied);
    if let Some(member) = gone {
        return Step::Leave { node_id: member.node_id.clone(), pod: format!("{name}-{}", member.ordinal) };
    }
    if !shrinks {
        return Step::Settled;
    }
    match retired(nodes) {
        Ok(()) => Step::RemovePod { replicas: applied - 1, pod: format!("{name}-{}", applied - 1) },
        Err(reason) => Step::Wait { reason },
    }
}

/// A broker of an earlier version would end at the log entry that resizes the cluster, so all must have one version.
fn may_resize(nodes: &[Node], wanted: u32) -> Step {
    let versions: BTreeSet<&str> =
        nodes.iter().filter_map(|node| node.report.as_ref()).map(|report| report.version.as_str()).collect();
    if let Some(node) = nodes.iter().find(|node| !node.is_ready()) {
        return wait(format!("to have {wanted} nodes, the cluster waits for {}, which is not ready", node.name));
    }
    if versions.len() > 1 {
        let versions: Vec<&str> = versions.into_iter().collect();
        return wait(format!("to have {wanted} nodes, all must run one version; they run {}", versions.join(" and ")));
    }
    Step::Resize { nodes: wanted }
}

/// Returns why the node with the highest ordinal must not stop yet.
fn retired(nodes: &[Node]) -> Result<(), String> {
    if let Some(node) = nodes.iter().find(|node| !node.is_ready()) {
        return Err(format!("{} is not ready, and no node leaves meanwhile", node.name));
    }
    let reports = || nodes.iter().filter_map(|node| node.report.as_ref());
    let groups: BTreeSet<u32> = reports().flat_map(|report| &report.groups).map(|group| group.group).collect();
    let led: u32 = reports().map(|report| report.groups_led).sum();
    let changing: u32 = reports().map(|report| report.groups_changing).sum();
    // What a group still has to change is reported by its leader alone.
    if usize::try_from(led) != Ok(groups.len()) || changing > 0 || !is_settled(nodes) {
        let left =
            if changing > 0 { format!("; {changing} of {} groups are left", groups.len()) } else { String::new() };
        return Err(format!("sessions and votes move away from the nodes that are to leave{left}"));
    }
    Ok(())
}

fn wait(reason: String) -> Step {
    Step::Wait { reason }
}

#[cfg(test)]
mod tests {
    use super::super::node_samples::{fail, nodes};
    use super::*;

    /// Five nodes that know this size and have moved all groups.
    fn five(size: u32) -> Vec<Node> {
        let mut nodes = nodes(["new", "new", "new", "new", "new"]);
        for node in &mut nodes {
            let report = node.report.as_mut().unwrap();
            (report.cluster_size, report.groups_led, report.version) = (size, 0, "1".into());
        }
        let report = nodes[0].report.as_mut().unwrap();
        report.groups_led = u32::try_from(report.groups.len()).unwrap();
        nodes
    }

    fn decide(nodes: &[Node], wanted: u32) -> Step {
        let applied = u32::try_from(nodes.len()).unwrap();
        next(nodes, None, Sizes { wanted, applied: applied.max(wanted) }, "mosaic")
    }

    fn waits(step: &Step) -> bool {
        matches!(step, Step::Wait { .. })
    }

    #[test]
    fn growing_needs_no_step_until_the_brokers_were_told_a_smaller_size() {
        assert_eq!(decide(&five(0), 5), Step::Settled);
        assert_eq!(decide(&five(0), 7), Step::Settled);
        assert_eq!(decide(&five(3), 5), Step::Resize { nodes: 5 });
        assert_eq!(decide(&five(5), 5), Step::Settled);
    }

    #[test]
    fn one_node_leaves_at_a_time_the_highest_first() {
        assert_eq!(decide(&five(0), 3), Step::Resize { nodes: 3 });
        assert_eq!(decide(&five(3), 3), Step::RemovePod { replicas: 4, pod: "mosaic-4".into() });
        let mut nodes = five(3);
        nodes.pop();
        let sizes = Sizes { wanted: 3, applied: 4 };
        assert_eq!(next(&nodes, Some("mosaic-4"), sizes, "mosaic"), Step::Stopping { pod: "mosaic-4".into() });
        assert_eq!(decide(&nodes, 3), Step::Leave { node_id: "n4".into(), pod: "mosaic-4".into() });
        for node in &mut nodes {
            node.report.as_mut().unwrap().members.retain(|member| member.ordinal < 4);
        }
        assert_eq!(decide(&nodes, 3), Step::RemovePod { replicas: 3, pod: "mosaic-3".into() });
        nodes.pop();
        for node in &mut nodes {
            node.report.as_mut().unwrap().members.retain(|member| member.ordinal < 3);
        }
        assert_eq!(decide(&nodes, 3), Step::Settled);
    }

    #[test]
    fn no_node_leaves_while_a_group_changes_has_no_leader_or_a_node_is_not_ready() {
        let mut changing = five(3);
        changing[1].report.as_mut().unwrap().groups_changing = 2;
        assert!(waits(&decide(&changing, 3)));
        let mut leaderless = five(3);
        leaderless[0].report.as_mut().unwrap().groups_led -= 1;
        assert!(waits(&decide(&leaderless, 3)));
        let mut behind = five(3);
        behind[0].report.as_mut().unwrap().groups_out_of_sync = 1;
        assert!(waits(&decide(&behind, 3)));
        let mut untold = five(3);
        untold[4].report.as_mut().unwrap().cluster_size = 0;
        assert_eq!(decide(&untold, 3), Step::Resize { nodes: 3 });
        for size in [0, 3] {
            let mut unready = five(size);
            fail(&mut unready[2], 1, None);
            assert!(waits(&decide(&unready, 3)), "{size}");
        }
        let mut mixed = five(0);
        mixed[2].report.as_mut().unwrap().version = "2".into();
        assert!(waits(&decide(&mixed, 3)));
    }

    #[test]
    fn a_member_that_has_no_pod_any_more_leaves_although_another_node_is_unready() {
        let mut nodes = five(3);
        nodes.pop();
        fail(&mut nodes[1], 1, None);
        assert_eq!(decide(&nodes, 3), Step::Leave { node_id: "n4".into(), pod: "mosaic-4".into() });
    }
}
