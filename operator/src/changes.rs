//! Which clusters have changed in the API server since a pass has read them.
//!
//! The watches of the controllers mark a cluster whenever one of its objects changes. A pass over a cluster that is not
//! marked may use what an earlier pass has read: an idle cluster costs no requests to the API server.
//!
//! An event can arrive late, but it is not lost silently: a watch that was interrupted is reported as an error, after
//! which every cluster counts as changed. What is not watched is found by the full read every [`FULL_READ`].

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::context::Key;

/// Time after which a pass reads its inputs again although nothing has changed.
pub(crate) const FULL_READ: Duration = Duration::from_mins(10);

/// Counters of changes.
#[derive(Debug, Default)]
pub(crate) struct Changes(Mutex<Marks>);

#[derive(Debug, Default)]
struct Marks {
    /// Number of the last mark.
    last: u64,
    /// Number of the last mark of all clusters.
    all: u64,
    /// Number of the last mark, by cluster.
    clusters: HashMap<Key, u64>,
}

impl Changes {
    /// Notes a change of an object of this cluster.
    pub(crate) fn mark(&self, namespace: &str, name: &str) {
        let mut marks = self.0.lock();
        marks.last += 1;
        let number = marks.last;
        marks.clusters.insert((namespace.to_owned(), name.to_owned()), number);
    }

    /// Notes that objects of any cluster may have changed.
    pub(crate) fn mark_all(&self) {
        let mut marks = self.0.lock();
        marks.last += 1;
        marks.all = marks.last;
    }

    /// Returns the number of the last change of a cluster. While it stays the same, nothing was marked.
    pub(crate) fn of(&self, key: &Key) -> u64 {
        let marks = self.0.lock();
        marks.clusters.get(key).copied().unwrap_or_default().max(marks.all)
    }

    /// Forgets the clusters for which `exists` returns false.
    pub(crate) fn retain(&self, exists: impl Fn(&Key) -> bool) {
        self.0.lock().clusters.retain(|key, _| exists(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_changes_one_cluster_or_all() {
        let changes = Changes::default();
        let (one, other) = (("a".into(), "one".into()), ("a".into(), "other".into()));
        let before = (changes.of(&one), changes.of(&other));
        changes.mark("a", "one");
        let marked = (changes.of(&one), changes.of(&other));
        assert!(marked.0 != before.0 && marked.1 == before.1);
        changes.mark_all();
        assert!(changes.of(&one) != marked.0 && changes.of(&other) != marked.1);
        let all = changes.of(&one);
        changes.mark("a", "one");
        assert_ne!(changes.of(&one), all, "a mark after one of all counts");
    }
}
