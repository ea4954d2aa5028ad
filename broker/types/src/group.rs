//! Ids of shards and of the Raft groups.

use std::fmt;

use crate::{decimal, id};

id! {
    /// One of the parts that the sessions of a cluster are divided into, counted from 0.
    ///
    /// The shard of a client follows from its client id and the number of shards, which is fixed when the cluster is
    /// formed.
    ShardId(u16)
}

decimal!(ShardId);

impl ShardId {
    /// Shards of a cluster that has so many.
    pub fn all(shards: u16) -> impl ExactSizeIterator<Item = Self> + use<> {
        (0..shards).map(Self)
    }

    /// Returns the place of the shard in a list of all shards.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

id! {
    /// One of the Raft groups of a cluster.
    ///
    /// The number is fixed for each group and is part of the format on disk.
    GroupId(u16)
}

impl GroupId {
    /// Members, epochs of nodes, and routes.
    pub const META: Self = Self(0);
    /// Retained messages.
    pub const RETAINED: Self = Self(1);
    /// Number of the group of shard 0.
    const FIRST_SHARD: u16 = 2;

    /// Returns the group of a shard.
    pub const fn shard(shard: ShardId) -> Self {
        Self(shard.0.saturating_add(Self::FIRST_SHARD))
    }

    /// Returns the shard whose group this is; `None` for meta and retained.
    pub const fn as_shard(self) -> Option<ShardId> {
        match self.0.checked_sub(Self::FIRST_SHARD) {
            Some(number) => Some(ShardId(number)),
            None => None,
        }
    }
}

/// `meta`, `retained` or `shard/3`.
impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_shard() {
            Some(shard) => write!(f, "shard/{shard}"),
            None if *self == Self::META => f.write_str("meta"),
            None => f.write_str("retained"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_fixed_numbers_and_names() {
        let shards = ShardId::all(3).map(GroupId::shard);
        let groups: Vec<_> = [GroupId::META, GroupId::RETAINED].into_iter().chain(shards).collect();
        assert_eq!(groups.iter().map(|group| group.get()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        let names: Vec<_> = groups.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["meta", "retained", "shard/0", "shard/1", "shard/2"]);
        let shards: Vec<_> = groups.iter().filter_map(|group| group.as_shard()).map(ShardId::index).collect();
        assert_eq!(shards, [0, 1, 2]);
    }
}
