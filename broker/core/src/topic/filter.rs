//! Topic filters and their relations to names and to other filters.
//!
//! The relations are exact, with filters as sets of names: `a.contains(b)` is true if and only if `a` matches every
//! name that `b` matches; `a.intersects(b)` if and only if some name matches both.

use covey_codec::MqttStr;
use covey_codec::topic::{check_filter, split_shared};
use serde::{Deserialize, Serialize};

use super::{Error, Name, levels};

/// A topic filter without a share name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Filter(MqttStr);

impl Filter {
    /// Checks and wraps a text. The bytes are shared, not copied.
    ///
    /// # Errors
    /// Returns [`Error`] for a text that is not a filter, and for a shared subscription: see [`super::Subscription`].
    pub fn new(text: MqttStr) -> Result<Self, Error> {
        check_filter(&text)?;
        if split_shared(&text).is_some() {
            return Err(Error::Shared);
        }
        Ok(Self(text))
    }

    /// Returns the filter as text. Takes one pass over the bytes.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Returns the bytes of the filter.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Levels of the filter: at least one; a level may be empty.
    pub fn levels(&self) -> impl Iterator<Item = &[u8]> {
        levels(self.as_bytes())
    }

    /// Returns the shared text.
    pub fn into_inner(self) -> MqttStr {
        self.0
    }

    /// Returns whether the filter matches the name (section 4.7).
    pub fn matches(&self, name: &Name) -> bool {
        if name.is_reserved() && self.begins_with_wildcard() {
            return false;
        }
        let mut names = name.levels();
        for level in self.levels() {
            if level == b"#" {
                return true;
            }
            match names.next() {
                Some(name) if level == b"+" || level == name => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }

    /// Returns whether this filter matches every name that `other` matches.
    pub fn contains(&self, other: &Self) -> bool {
        if self.begins_with_wildcard() && other.begins_with_dollar() {
            return false;
        }
        let mut others = levels(other.without_empty_name());
        for level in levels(self.without_empty_name()) {
            if level == b"#" {
                return true;
            }
            match others.next() {
                Some(b"#") | None => return false,
                Some(other) if level == b"+" || level == other => {}
                Some(_) => return false,
            }
        }
        others.next().is_none()
    }

    /// Returns whether some name matches both filters.
    pub fn intersects(&self, other: &Self) -> bool {
        let hidden = |a: &Self, b: &Self| a.begins_with_wildcard() && b.begins_with_dollar();
        if hidden(self, other) || hidden(other, self) {
            return false;
        }
        let (mut left, mut right) = (levels(self.without_empty_name()), levels(other.without_empty_name()));
        loop {
            match (left.next(), right.next()) {
                (None, None) | (Some(b"#"), _) | (_, Some(b"#")) => return true,
                (Some(a), Some(b)) if a == b || a == b"+" || b == b"+" => {}
                _ => return false,
            }
        }
    }

    /// Returns an equivalent filter for `#` and `/#` that does not match the empty name, which is not a valid name
    /// ([MQTT-4.7.3-1]).
    fn without_empty_name(&self) -> &[u8] {
        match self.as_bytes() {
            b"#" => b"+/#",
            b"/#" => b"/+/#",
            spelling => spelling,
        }
    }

    fn begins_with_wildcard(&self) -> bool {
        matches!(self.as_bytes().first(), Some(b'+' | b'#'))
    }

    fn begins_with_dollar(&self) -> bool {
        self.as_bytes().first() == Some(&b'$')
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::any::{LEVELS, any_filter};
    use super::*;

    fn filter(text: &str) -> Filter {
        text.parse().unwrap()
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn matching_follows_the_examples_of_the_standard() {
        for (pattern, matched, passed_by) in [
            (
                "sport/tennis/player1/#",
                vec!["sport/tennis/player1", "sport/tennis/player1/ranking", "sport/tennis/player1/score/wimbledon"],
                vec!["sport/tennis", "sport/tennis/player10"],
            ),
            ("sport/#", vec!["sport", "sport/", "sport/a"], vec!["sports"]),
            ("#", vec!["a", "/", "a/$b"], vec!["$SYS", "$SYS/a"]),
            ("sport/tennis/+", vec!["sport/tennis/player1", "sport/tennis/"], vec!["sport/tennis/player1/ranking"]),
            ("sport/+", vec!["sport/"], vec!["sport"]),
            ("+/+", vec!["/finance"], vec!["a", "$SYS/a"]),
            ("/+", vec!["/finance"], vec!["finance"]),
            ("+", vec!["finance"], vec!["/finance", "$finance"]),
            ("$SYS/#", vec!["$SYS", "$SYS/monitor/Clients"], vec!["SYS"]),
            ("$SYS/monitor/+", vec!["$SYS/monitor/Clients"], vec!["$SYS/monitor"]),
            ("+/monitor/Clients", vec!["a/monitor/Clients"], vec!["$SYS/monitor/Clients"]),
            ("ACCOUNTS", vec!["ACCOUNTS"], vec!["Accounts"]),
        ] {
            for matched in matched {
                assert!(filter(pattern).matches(&name(matched)), "{pattern} must match {matched}");
            }
            for other in passed_by {
                assert!(!filter(pattern).matches(&name(other)), "{pattern} must not match {other}");
            }
        }
    }

    #[test]
    fn everything_has_two_spellings() {
        assert!(filter("+/#").contains(&filter("#")));
        assert!(filter("#").contains(&filter("+/#")));
        assert!(!filter("a/+/#").contains(&filter("a/#")));
        assert!(!filter("#").contains(&filter("$SYS/#")));
        assert!(!filter("#").intersects(&filter("$SYS/#")));
    }

    #[test]
    fn the_deepest_topic_is_compared() {
        let deep = filter(&"+/".repeat(32_767));
        assert!(deep.matches(&name(&"/".repeat(32_767))));
        assert!(deep.contains(&deep) && deep.intersects(&filter("#")));
    }

    /// Every name up to five levels over the alphabet and one level that no filter spells: enough to tell two filters of
    /// at most five levels apart.
    fn all_names() -> Vec<Name> {
        let mut texts: Vec<String> = vec![String::new()];
        let mut all = Vec::new();
        for depth in 0..6 {
            texts = texts
                .iter()
                .flat_map(|text| {
                    LEVELS.iter().chain(&["other"]).map(move |level| match depth {
                        0 => (*level).to_owned(),
                        _ => format!("{text}/{level}"),
                    })
                })
                .collect();
            all.extend(texts.iter().filter_map(|text| text.parse().ok()));
        }
        all
    }

    #[test]
    fn relations_agree_with_the_names_they_are_about() {
        let names = all_names();
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(60));
        runner
            .run(&(any_filter(), any_filter()), |(a, b)| {
                let mut contains = true;
                let mut intersects = false;
                for name in &names {
                    let (in_a, in_b) = (a.matches(name), b.matches(name));
                    contains &= in_a || !in_b;
                    intersects |= in_a && in_b;
                }
                prop_assert_eq!(a.contains(&b), contains, "{:?} contains {:?}", &a, &b);
                prop_assert_eq!(a.intersects(&b), intersects, "{:?} intersects {:?}", &a, &b);
                Ok(())
            })
            .unwrap();
    }
}
