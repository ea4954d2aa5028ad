//! Voters: which members are voters of a group. It follows from the members alone.

use std::collections::BTreeMap;

use covey_raft::Member;
use covey_types::{GroupId, NodeId, Ordinal};

/// Voters of a shard.
pub(crate) const SHARD_VOTERS: usize = 3;

type Members = BTreeMap<NodeId, Member>;

/// Returns voters and learners of a group. A shard has [`SHARD_VOTERS`] voters, chosen in turn by shard number, and no
/// learners. Meta and retained have an odd number of voters, at most five; the other members are learners.
pub(crate) fn voters_of(group: GroupId, members: &BTreeMap<Ordinal, NodeId>) -> (Members, Members) {
    let all: Vec<(NodeId, Member)> =
        members.iter().map(|(ordinal, node)| (*node, Member { ordinal: *ordinal })).collect();
    if let Some(shard) = group.as_shard() {
        let voters = all.iter().cycle().skip(shard.index() % all.len().max(1)).take(SHARD_VOTERS.min(all.len()));
        return (voters.copied().collect(), Members::new());
    }
    let odd = if all.len().is_multiple_of(2) { all.len().saturating_sub(1) } else { all.len() };
    let voters = odd.clamp(1, 5).min(all.len());
    (all.iter().take(voters).copied().collect(), all.iter().skip(voters).copied().collect())
}

#[cfg(test)]
mod tests {
    use covey_types::ShardId;

    use super::*;

    fn members(count: u32) -> BTreeMap<Ordinal, NodeId> {
        (0..count).map(|ordinal| (Ordinal::new(ordinal), NodeId::new(u64::from(ordinal) + 100))).collect()
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
}
