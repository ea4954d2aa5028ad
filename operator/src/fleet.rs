//! Limits how many clusters replace pods at the same time, so that a new operator, which may change the image of all
//! clusters, does not take a node of each at once. A cluster whose rollout has stopped keeps its turn: the next one would
//! probably fail in the same way. Pods that do not run their broker are replaced without a turn.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use crate::context::Key;

/// The clusters that replace pods now. The operator forgets them when it restarts: a cluster whose rollout is under way
/// takes its turn again with its first pass.
#[derive(Debug)]
pub struct Fleet {
    /// Number of clusters that may replace pods at the same time.
    most: usize,
    rolling: Mutex<BTreeSet<Key>>,
}

impl Fleet {
    /// Creates a fleet in which `most` clusters may replace pods at the same time.
    pub fn new(most: usize) -> Self {
        Self { most, rolling: Mutex::default() }
    }

    /// Takes a turn for a cluster, until [`Fleet::leave`].
    ///
    /// # Errors
    /// The clusters that have a turn, as `namespace/name`, if none is free.
    pub fn enter(&self, key: &Key) -> Result<(), Vec<String>> {
        let mut rolling = self.rolling.lock();
        if !rolling.contains(key) && rolling.len() >= self.most {
            return Err(rolling.iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect());
        }
        rolling.insert(key.clone());
        Ok(())
    }

    /// Takes a turn for a cluster whose rollout was under way when the operator started, however many others have one.
    pub(crate) fn resume(&self, key: &Key) {
        self.rolling.lock().insert(key.clone());
    }

    /// Releases the turns of clusters for which `exists` returns false.
    pub(crate) fn retain(&self, exists: impl Fn(&Key) -> bool) {
        self.rolling.lock().retain(exists);
    }

    /// Releases the turn of a cluster.
    pub fn leave(&self, key: &Key) {
        self.rolling.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        ("iot".into(), name.into())
    }

    #[test]
    fn a_cluster_waits_for_the_others_and_goes_on_with_its_own_rollout() {
        let fleet = Fleet::new(2);
        assert_eq!(fleet.enter(&key("a")), Ok(()));
        assert_eq!(fleet.enter(&key("b")), Ok(()));
        assert_eq!(fleet.enter(&key("c")), Err(vec!["iot/a".to_owned(), "iot/b".to_owned()]));
        assert_eq!(fleet.enter(&key("a")), Ok(()));
        fleet.leave(&key("a"));
        assert_eq!(fleet.enter(&key("c")), Ok(()));
        assert!(fleet.enter(&key("a")).is_err());
    }

    #[test]
    fn after_a_restart_a_cluster_whose_rollout_is_under_way_has_its_turn_again() {
        let fleet = Fleet::new(1);
        fleet.resume(&key("a"));
        fleet.resume(&key("b"));
        assert_eq!(fleet.enter(&key("c")), Err(vec!["iot/a".to_owned(), "iot/b".to_owned()]));
        assert_eq!(fleet.enter(&key("b")), Ok(()));
    }
}
