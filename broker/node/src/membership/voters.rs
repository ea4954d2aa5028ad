//! Voters: which members are voters of a group. It follows from the members, and from which of them retire.

use std::collections::BTreeMap;

use covey_core::meta::MetaState;
use covey_raft::Member;
use covey_types::{GroupId, NodeId, Ordinal};

/// Voters of a shard.
pub(crate) const SHARD_VOTERS: usize = 3;

type Members = BTreeMap<NodeId, Member>;

/// The members of the cluster that were not removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Roster {
    /// Members that stay.
    pub staying: BTreeMap<Ordinal, NodeId>,
    /// Members that are to leave: they serve their clients, but hold no replica of a shard and vote in no group.
    pub retiring: BTreeMap<Ordinal, NodeId>,
}

impl Roster {
    /// Returns the roster of an applied meta state.
    pub(crate) fn of(state: &MetaState) -> Self {
        let mut roster = Self::default();
        for (node, member) in state.present_members() {
            let part = if state.retires(member.ordinal) { &mut roster.retiring } else { &mut roster.staying };
            part.insert(member.ordinal, node);
        }
        roster
    }

    /// Returns whether there are no members, as before the cluster is formed.
    pub(crate) fn is_empty(&self) -> bool {
        self.staying.is_empty() && self.retiring.is_empty()
    }
}

/// Returns voters and learners of a group. A shard has [`SHARD_VOTERS`] voters, chosen in turn by shard number, and no
/// learners. Meta and retained have an odd number of voters, at most five; the other members are learners, since they
/// need these groups to serve clients. A retiring member is a voter of no group.
pub(crate) fn voters_of(group: GroupId, roster: &Roster) -> (Members, Members) {
    let members = |part: &BTreeMap<Ordinal, NodeId>| -> Vec<(NodeId, Member)> {
        part.iter().map(|(ordinal, node)| (*node, Member { ordinal: *ordinal })).collect()
    };
    let staying = members(&roster.staying);
    if let Some(shard) = group.as_shard() {
        let first = shard.index() % staying.len().max(1);
        let voters = staying.iter().cycle().skip(first).take(SHARD_VOTERS.min(staying.len()));
        return (voters.copied().collect(), Members::new());
    }
    let odd = if staying.len().is_multiple_of(2) { staying.len().saturating_sub(1) } else { staying.len() };
    let voters = odd.clamp(1, 5).min(staying.len());
    let learners = staying.iter().skip(voters).copied().chain(members(&roster.retiring));
    (staying.iter().take(voters).copied().collect(), learners.collect())
}

#[cfg(test)]
mod tests {
    use covey_types::ShardId;

    use super::*;

    /// Returns a roster of `count` members, of which those from `size` on retire.
    fn roster(count: u32, size: u32) -> Roster {
        let member = |ordinal: u32| (Ordinal::new(ordinal), NodeId::new(u64::from(ordinal) + 100));
        Roster { staying: (0..size).map(member).collect(), retiring: (size..count).map(member).collect() }
    }

    fn members(count: u32) -> Roster {
        roster(count, count)
    }

    #[test]
    fn shards_have_three_voters_and_meta_an_odd_number() {
        for (count, shard_voters, meta_voters) in [(1, 1, 1), (3, 3, 3), (4, 3, 3), (5, 3, 5), (7, 3, 5)] {
            let (voters, learners) = voters_of(GroupId::shard(ShardId::new(6)), &members(count));
            assert_eq!((voters.len(), learners.len()), (shard_voters, 0), "{count}");
            let (voters, learners) = voters_of(GroupId::META, &members(count));
            assert_eq!((voters.len(), voters.len() + learners.len()), (meta_voters, count as usize), "{count}");
        }
    }

    #[test]
    fn retiring_members_vote_nowhere_and_follow_meta_and_retained() {
        let roster = roster(5, 3);
        for group in [GroupId::META, GroupId::RETAINED] {
            let (voters, learners) = voters_of(group, &roster);
            assert_eq!(voters.keys().map(|node| node.get()).collect::<Vec<_>>(), [100, 101, 102], "{group}");
            assert_eq!(learners.keys().map(|node| node.get()).collect::<Vec<_>>(), [103, 104], "{group}");
        }
        for shard in ShardId::all(8) {
            let (voters, learners) = voters_of(GroupId::shard(shard), &roster);
            assert!(voters.len() == 3 && learners.is_empty(), "{shard}");
            assert!(voters.keys().all(|node| node.get() < 103), "{shard}");
        }
    }
}
