//! Map from names to values, queried with a filter: an ordered map in which the names below a level are adjacent.
//!
//! A query walks the names in order. At a name that does not match, it skips all names that cannot match either. Its
//! cost is that of the matches, plus one skip for each value of a `+` without a match.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::{Filter, Name, split_level};

/// Map from names to values that finds all names that match a filter.
#[derive(Debug, Clone)]
pub struct Names<V> {
    map: BTreeMap<Key, (Name, V)>,
}

/// A position in the order of names: `topic` itself or, with `after`, the position behind `topic` and everything below
/// it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    topic: Bytes,
    after: bool,
}

impl Key {
    fn of(topic: Bytes) -> Self {
        Self { topic, after: false }
    }

    /// Orders `/` before every other byte: `a` is followed by `a/b` and only then by `a!`.
    fn ranks(&self) -> impl Iterator<Item = u16> {
        let rank = |byte: &u8| if *byte == b'/' { 0 } else { u16::from(*byte) + 2 };
        self.topic.iter().map(rank).chain(self.after.then_some(1))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.ranks().cmp(other.ranks())
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<V> Default for Names<V> {
    fn default() -> Self {
        Self { map: BTreeMap::new() }
    }
}

impl<V> Names<V> {
    /// Returns an empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of names.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Returns whether there are no names.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Sets the value of a name and returns the previous one.
    pub fn insert(&mut self, name: Name, value: V) -> Option<V> {
        let key = Key::of(name.clone().into_inner().into_bytes());
        self.map.insert(key, (name, value)).map(|(_, value)| value)
    }

    /// Removes a name and returns its value.
    pub fn remove(&mut self, name: &Name) -> Option<V> {
        self.map.remove(&Key::of(name.clone().into_inner().into_bytes())).map(|(_, value)| value)
    }

    /// Returns the value of one name.
    pub fn get(&self, name: &Name) -> Option<&V> {
        self.map.get(&Key::of(name.clone().into_inner().into_bytes())).map(|(_, value)| value)
    }

    /// All names with their values; a name comes before the names below it.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &V)> {
        self.map.values().map(|(name, value)| (name, value))
    }

    /// Calls `visit` for every name that matches `filter`, in the order of [`Names::iter`].
    pub fn matches<'a>(&'a self, filter: &Filter, mut visit: impl FnMut(&'a Name, &'a V)) {
        let mut from = Bound::Unbounded;
        while let Some((key, (name, value))) = self.map.range((from, Bound::Unbounded)).next() {
            from = match step(filter.as_bytes(), &key.topic) {
                Step::Match => {
                    visit(name, value);
                    Bound::Excluded(key.clone())
                }
                Step::Next => Bound::Excluded(key.clone()),
                Step::To(bound) => Bound::Included(bound),
                Step::End => return,
            };
        }
    }
}

/// Result of comparing one name with the filter.
enum Step {
    /// The name matches.
    Match,
    /// No match; a name below this one, or further on, may match.
    Next,
    /// No match; no name before this position can match.
    To(Key),
    /// No match, and no name after this one can match.
    End,
}

fn step(filter: &[u8], name: &[u8]) -> Step {
    let (mut filter_rest, mut name_rest) = (Some(filter), Some(name));
    // Length of the name up to and including its last level that matched `+`: the walk resumes there after a mismatch.
    let mut last_plus = None;
    loop {
        let start = name_rest.map_or(name.len(), |rest| name.len() - rest.len());
        match (filter_rest.map(split_level), name_rest.map(split_level)) {
            (Some((b"#" | b"+", _)), Some((level, _))) if start == 0 && level.first() == Some(&b'$') => {
                // [MQTT-4.7.2-1]. `%` follows `$` in byte order.
                return Step::To(Key::of(Bytes::from_static(b"%")));
            }
            (None, None) | (Some((b"#", _)), _) => return Step::Match,
            (Some(_), None) => return Step::Next,
            (None, Some(_)) => return past(name, start.saturating_sub(1)),
            (Some((b"+", filter)), Some((level, rest))) => {
                last_plus = Some(start + level.len());
                (filter_rest, name_rest) = (filter, rest);
            }
            (Some((wanted, filter)), Some((level, rest))) => {
                let prefix = name.get(..start).unwrap_or_default();
                let target = Key::of([prefix, wanted].concat().into());
                match target.cmp(&Key::of([prefix, level].concat().into())) {
                    Ordering::Equal => (filter_rest, name_rest) = (filter, rest),
                    Ordering::Greater => return Step::To(target),
                    Ordering::Less => return last_plus.map_or(Step::End, |end| past(name, end)),
                }
            }
        }
    }
}

/// Skips the first `end` bytes of a name, which are whole levels, and everything below them.
fn past(name: &[u8], end: usize) -> Step {
    Step::To(Key { topic: Bytes::copy_from_slice(name.get(..end).unwrap_or_default()), after: true })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::any::{any_filter, any_name};
    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_list(names in prop::collection::btree_set(any_name(), 0..60), filter in any_filter()) {
            let mut index = Names::new();
            for (number, name) in names.iter().enumerate() {
                prop_assert_eq!(index.insert(name.clone(), number), None);
            }
            let mut found = Vec::new();
            index.matches(&filter, |name, value| found.push((name.clone(), *value)));
            found.sort();
            let naive: Vec<_> = names
                .iter()
                .enumerate()
                .filter(|(_, name)| filter.matches(name))
                .map(|(number, name)| (name.clone(), number))
                .collect();
            prop_assert_eq!(found, naive);
            for (number, name) in names.iter().enumerate() {
                prop_assert_eq!(index.get(name), Some(&number));
                prop_assert_eq!(index.remove(name), Some(number));
            }
            prop_assert!(index.is_empty());
        }
    }

    #[test]
    fn control_characters_do_not_hide_names() {
        let mut index = Names::new();
        for name in ["a", "a\u{1}", "a\u{1}/b", "a/b", "a/c/d"] {
            index.insert(name.parse().unwrap(), ());
        }
        let found = |filter: &str| {
            let mut found = Vec::new();
            index.matches(&filter.parse().unwrap(), |name, ()| found.push(name.as_str().to_owned()));
            found
        };
        assert_eq!(found("+/b"), ["a/b", "a\u{1}/b"]);
        assert_eq!(found("+"), ["a", "a\u{1}"]);
        assert_eq!(found("a/#"), ["a", "a/b", "a/c/d"]);
    }

    #[test]
    fn a_lookup_jumps_over_what_cannot_match() {
        let mut index = Names::new();
        for device in 0..100 {
            for sensor in 0..100 {
                index.insert(format!("{device:03}/{sensor:03}/x").parse().unwrap(), ());
            }
        }
        let filter: Filter = "+/050/x".parse().unwrap();
        let mut steps = 0;
        let mut from = Bound::Unbounded;
        while let Some((key, _)) = index.map.range((from, Bound::Unbounded)).next() {
            steps += 1;
            from = match step(filter.as_bytes(), &key.topic) {
                Step::Match | Step::Next => Bound::Excluded(key.clone()),
                Step::To(bound) => Bound::Included(bound),
                Step::End => break,
            };
        }
        assert!(steps <= 301, "{steps} steps for 100 names");
    }
}
