//! Decides when a set of nodes with empty disks becomes a cluster, and when it must not. Pure; the reconcile and
//! `covey local` carry out what [`decide`] returns.
//!
//! ```text
//!            every first member answers, all fresh           record is written
//!  nothing ----------------------------------------> Record ----------------------> Initialize ... -> Formed
//!     |    a majority has the same id                                                   (idempotent)
//!     +----------------------------------------------> Adopt
//!     |    disks of a cluster with more members than replicas
//!     +----------------------------------------------> TooFew: the missing nodes hold sessions
//!     |    two ids, or an id that is not the recorded one
//!     +----------------------------------------------> Foreign: nothing is changed
//! ```
//! Invariant: the id and the first members are recorded before any node is initialized, so that an operator that
//! restarts in between continues with the same id and the same members.

use std::collections::BTreeSet;

use covey_crds::{Formation, FormationMember};

/// Maximum number of first members. Other nodes join later.
pub(crate) const FIRST_MEMBERS: u32 = 3;

/// What one node reported about its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub ordinal: u32,
    pub node_id: String,
    /// Empty: the node belongs to no cluster.
    pub cluster_id: String,
    /// Highest ordinal of the members that the node knows of, plus one. 0 if it knows of none.
    pub members: u32,
}

/// What the operator knows without asking the nodes.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub replicas: u32,
    /// `status.formation`.
    pub recorded: Option<&'a Formation>,
    /// `status.clusterId`: set once a node has reported it.
    pub formed: Option<&'a str>,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Wait; these ordinals have not answered. If empty, the answers do not suffice for a decision.
    Wait { missing: Vec<u32> },
    /// Write this to `status.formation`, with a resourceVersion precondition; then decide again.
    Record(Formation),
    /// The disks already hold a cluster: write its id and members.
    Adopt(Formation),
    /// The disks hold a cluster with this many nodes, which is more than the replicas: the missing nodes hold sessions.
    TooFew { members: u32 },
    /// Initialize these ordinals with the recorded members.
    Initialize { ordinals: Vec<u32> },
    /// The cluster exists.
    Formed,
    /// Some disks belong to another cluster: ordinal and cluster id of each.
    Foreign { disks: Vec<(u32, String)> },
    /// Every first member has an empty disk although the cluster was formed before. It is not formed again.
    AllDisksEmpty,
}

/// Decides the next step. `fresh_id` becomes the cluster's id if the cluster is formed now.
pub fn decide(known: Known<'_>, answers: &[Answer], fresh_id: &str) -> Decision {
    match known.recorded {
        Some(recorded) => resume(known, recorded, answers),
        None => begin(known, answers, fresh_id),
    }
}

fn first_members(replicas: u32) -> std::ops::Range<u32> {
    0..replicas.min(FIRST_MEMBERS)
}

fn begin(known: Known<'_>, answers: &[Answer], fresh_id: &str) -> Decision {
    let carried: Vec<&Answer> = answers.iter().filter(|answer| !answer.cluster_id.is_empty()).collect();
    let first_members = first_members(known.replicas);
    let carried_by_first = carried.iter().filter(|answer| first_members.contains(&answer.ordinal)).count();
    let ids: BTreeSet<&str> = carried.iter().map(|answer| answer.cluster_id.as_str()).collect();
    let missing = missing(known.replicas, answers);
    match (ids.len(), ids.first()) {
        (0, _) if missing.is_empty() => Decision::Record(formation(fresh_id, known.replicas, answers.iter())),
        // A single disk may come from another cluster, so a majority of the first members must carry the id. Other
        // nodes are not counted, because two of them with foreign disks may answer before the first members do.
        (1, Some(id)) if carried_by_first * 2 > first_members.len() => {
            let members = carried.iter().map(|answer| answer.members).max().unwrap_or_default();
            if members > known.replicas {
                return Decision::TooFew { members };
            }
            Decision::Adopt(formation(id, known.replicas, carried.iter().copied()))
        }
        (0 | 1, _) => Decision::Wait { missing },
        _ => Decision::Foreign { disks: disks(&carried) },
    }
}

fn resume(known: Known<'_>, recorded: &Formation, answers: &[Answer]) -> Decision {
    let foreign: Vec<&Answer> = answers
        .iter()
        .filter(|answer| !answer.cluster_id.is_empty() && answer.cluster_id != recorded.cluster_id)
        .collect();
    if !foreign.is_empty() {
        return Decision::Foreign { disks: disks(&foreign) };
    }
    let listed = |answer: &&Answer| {
        recorded.members.iter().any(|member| member.ordinal == answer.ordinal && member.node_id == answer.node_id)
    };
    let to_tell: Vec<u32> = answers
        .iter()
        .filter(|answer| answer.cluster_id.is_empty())
        .filter(listed)
        .map(|answer| answer.ordinal)
        .collect();
    if answers.iter().any(|answer| !answer.cluster_id.is_empty()) {
        return if to_tell.is_empty() { Decision::Formed } else { Decision::Initialize { ordinals: to_tell } };
    }
    let missing = missing(known.replicas, answers);
    if !missing.is_empty() {
        return Decision::Wait { missing };
    }
    match known.formed {
        _ if to_tell.len() == recorded.members.len() => Decision::Initialize { ordinals: to_tell },
        Some(_) => Decision::AllDisksEmpty,
        // No disk has ever carried the id: a disk was replaced before its node was initialized, and initializing the
        // others could form a cluster without a majority. Record the members again.
        None => Decision::Record(formation(&recorded.cluster_id, known.replicas, answers.iter())),
    }
}

fn missing(replicas: u32, answers: &[Answer]) -> Vec<u32> {
    first_members(replicas).filter(|ordinal| !answers.iter().any(|answer| answer.ordinal == *ordinal)).collect()
}

fn formation<'a>(id: &str, replicas: u32, answers: impl Iterator<Item = &'a Answer>) -> Formation {
    let first = first_members(replicas);
    let members = answers
        .filter(|answer| first.contains(&answer.ordinal))
        .map(|answer| FormationMember { ordinal: answer.ordinal, node_id: answer.node_id.clone() });
    Formation { cluster_id: id.to_owned(), members: members.collect() }
}

fn disks(answers: &[&Answer]) -> Vec<(u32, String)> {
    answers.iter().map(|answer| (answer.ordinal, answer.cluster_id.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(ordinal: u32, cluster_id: &str) -> Answer {
        Answer { ordinal, node_id: format!("n{ordinal}"), cluster_id: cluster_id.into(), members: 0 }
    }

    fn answers(ids: &[&str]) -> Vec<Answer> {
        ids.iter().zip(0..).map(|(id, ordinal)| answer(ordinal, id)).collect()
    }

    fn recorded() -> Formation {
        formation("c1", 3, answers(&["", "", ""]).iter())
    }

    fn begin(answers: &[Answer]) -> Decision {
        decide(Known { replicas: 3, recorded: None, formed: None }, answers, "c1")
    }

    fn go_on(formed: Option<&str>, answers: &[Answer]) -> Decision {
        decide(Known { replicas: 3, recorded: Some(&recorded()), formed }, answers, "unused")
    }

    #[test]
    fn nothing_is_written_until_every_first_member_answered() {
        assert_eq!(begin(&answers(&["", ""])), Decision::Wait { missing: vec![2] });
        assert_eq!(begin(&[]), Decision::Wait { missing: vec![0, 1, 2] });
        assert_eq!(begin(&answers(&["", "", ""])), Decision::Record(recorded()));
    }

    #[test]
    fn the_first_members_are_at_most_three() {
        let all = answers(&["", "", "", "", ""]);
        let Decision::Record(formation) = decide(Known { replicas: 5, recorded: None, formed: None }, &all, "c1")
        else {
            panic!("not recorded")
        };
        assert_eq!(formation.members.iter().map(|member| member.ordinal).collect::<Vec<_>>(), [0, 1, 2]);
        let one = decide(Known { replicas: 1, recorded: None, formed: None }, &answers(&[""]), "c1");
        assert!(matches!(one, Decision::Record(formation) if formation.members.len() == 1));
    }

    #[test]
    fn a_recorded_formation_is_carried_out_node_by_node() {
        assert_eq!(go_on(None, &answers(&["", "", ""])), Decision::Initialize { ordinals: vec![0, 1, 2] });
        assert_eq!(go_on(None, &answers(&["c1", "", "c1"])), Decision::Initialize { ordinals: vec![1] });
        assert_eq!(go_on(None, &answers(&["c1", "c1", "c1"])), Decision::Formed);
        assert_eq!(go_on(None, &[answer(1, "")]), Decision::Wait { missing: vec![0, 2] });
        assert_eq!(go_on(None, &[answer(1, ""), answer(2, "c1")]), Decision::Initialize { ordinals: vec![1] });
    }

    #[test]
    fn a_node_that_is_not_listed_is_never_initialized() {
        let mut nodes = answers(&["c1", "c1", ""]);
        nodes[2].node_id = "another-disk".into();
        assert_eq!(go_on(Some("c1"), &nodes), Decision::Formed);
    }

    #[test]
    fn a_disk_swapped_before_the_formation_does_not_leave_a_cluster_without_majority() {
        let mut nodes = answers(&["", "", ""]);
        nodes[1].node_id = "swapped".into();
        let Decision::Record(formation) = go_on(None, &nodes) else { panic!("not recorded anew") };
        assert_eq!((formation.cluster_id.as_str(), formation.members[1].node_id.as_str()), ("c1", "swapped"));
    }

    #[test]
    fn disks_of_another_cluster_stop_everything() {
        assert_eq!(
            begin(&answers(&["x", "y", ""])),
            Decision::Foreign { disks: vec![(0, "x".into()), (1, "y".into())] }
        );
        assert_eq!(go_on(Some("c1"), &answers(&["c1", "x", ""])), Decision::Foreign { disks: vec![(1, "x".into())] });
        assert_eq!(go_on(None, &answers(&["", "x", ""])), Decision::Foreign { disks: vec![(1, "x".into())] });
    }

    #[test]
    fn disks_that_agree_are_adopted_by_a_majority() {
        let Decision::Adopt(formation) = begin(&answers(&["c9", "c9", "c9"])) else { panic!("not adopted") };
        assert_eq!((formation.cluster_id.as_str(), formation.members.len()), ("c9", 3));
        assert!(matches!(begin(&answers(&["c9", "c9"])), Decision::Adopt(_)));
        assert_eq!(begin(&answers(&["c9"])), Decision::Wait { missing: vec![1, 2] });
        assert_eq!(begin(&answers(&["c9", "", ""])), Decision::Wait { missing: vec![] });
    }

    #[test]
    fn disks_of_five_nodes_are_not_adopted_by_three() {
        let mut disks = answers(&["c9", "c9", "c9"]);
        disks[2].members = 5;
        assert_eq!(begin(&disks), Decision::TooFew { members: 5 });
        let known = Known { replicas: 5, recorded: None, formed: None };
        assert!(matches!(decide(known, &disks, "fresh"), Decision::Adopt(_)));
    }

    #[test]
    fn a_born_cluster_whose_disks_are_all_empty_is_not_born_again() {
        let mut swapped = answers(&["", "", ""]);
        for node in &mut swapped {
            node.node_id.push('x');
        }
        assert_eq!(go_on(Some("c1"), &swapped), Decision::AllDisksEmpty);
        assert!(matches!(go_on(None, &swapped), Decision::Record(formation) if formation.cluster_id == "c1"));
        assert_eq!(go_on(Some("c1"), &swapped[..2]), Decision::Wait { missing: vec![2] });
    }

    #[test]
    fn disks_that_are_not_first_members_alone_are_not_adopted() {
        let known = Known { replicas: 5, recorded: None, formed: None };
        let late = [answer(3, "other"), answer(4, "other")];
        assert_eq!(decide(known, &late, "fresh"), Decision::Wait { missing: vec![0, 1, 2] });
        let two_of_three = [answer(0, "c1"), answer(1, "c1"), answer(4, "c1")];
        assert!(matches!(decide(known, &two_of_three, "fresh"), Decision::Adopt(_)));
    }
}
