//! Retained messages for a new subscription: which of them a live copy has made obsolete. Used by shards and by nodes
//! with transient sessions.
//!
//! While a subscription awaits its retained messages, it receives live messages too. A retained message must not follow
//! a live copy of the same topic that is as new or newer, so the index of each live copy is noted until then.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Highest retained index of a live copy, by topic. Encoded as the map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LiveCopies {
    highest: BTreeMap<Box<str>, u64>,
}

impl LiveCopies {
    /// Notes a live copy. Copies of several publishers may arrive in another order than the retained group stored them;
    /// the highest index stays. Returns whether it is a new highest one.
    pub fn note(&mut self, topic: &str, index: u64) -> bool {
        if self.highest.get(topic).is_some_and(|highest| *highest >= index) {
            return false;
        }
        self.highest.insert(topic.into(), index);
        true
    }

    /// Returns whether a retained message is newer than every live copy of its topic that was noted. A message without
    /// an index counts as older than any live copy.
    pub fn is_newer(&self, topic: &str, index: Option<u64>) -> bool {
        self.highest.get(topic).is_none_or(|highest| index > Some(*highest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOPICS: [&str; 3] = ["a", "a/b", "b"];

    proptest! {
        /// A retained message is newer exactly if no live copy of its topic has its index or a higher one, whatever the
        /// order of the copies.
        #[test]
        fn a_retained_message_is_newer_than_all_live_copies_or_obsolete(
            copies in prop::collection::vec((0_usize..3, 1_u64..20), 0..20),
            topic in 0_usize..3,
            index in 1_u64..20,
        ) {
            let mut live = LiveCopies::default();
            for (topic, index) in &copies {
                live.note(TOPICS[*topic], *index);
            }
            let obsolete = copies.iter().any(|(copied, at)| *copied == topic && *at >= index);
            prop_assert_eq!(live.is_newer(TOPICS[topic], Some(index)), !obsolete);
            let is_copied = copies.iter().any(|(copied, _)| *copied == topic);
            prop_assert_eq!(live.is_newer(TOPICS[topic], None), !is_copied);
        }

        /// Another order of the same live copies gives the same state, and so the same bytes.
        #[test]
        fn the_order_of_live_copies_does_not_matter(
            copies in prop::collection::vec((0_usize..3, 1_u64..20), 0..20),
        ) {
            let noted = |copies: &mut dyn Iterator<Item = &(usize, u64)>| {
                let mut live = LiveCopies::default();
                copies.for_each(|(topic, index)| {
                    live.note(TOPICS[*topic], *index);
                });
                live
            };
            prop_assert_eq!(noted(&mut copies.iter()), noted(&mut copies.iter().rev()));
        }
    }
}
