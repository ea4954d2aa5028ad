//! Subscriptions of many sessions: options, one delivery per session, and the counts that become routes. Used by shards
//! and by nodes with transient sessions.

use std::collections::BTreeMap;

use covey_codec::QoS;
use serde::{Deserialize, Serialize};

use crate::topic::{Name, Tree};

/// Options of a subscription that affect each delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Highest QoS of deliveries.
    pub qos: QoS,
    /// No Local: messages that this client published are not delivered to it.
    pub no_local: bool,
    /// Retain As Published: deliveries keep the retain flag of the PUBLISH.
    pub retain_as_published: bool,
    /// Subscription Identifier, sent with each delivery.
    pub identifier: Option<u32>,
}

/// One delivery to a session: all of its subscriptions that a message matched ([MQTT-3.3.4-2]).
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Match {
    /// Highest QoS of the subscriptions. That of the delivery is not above the QoS of the message.
    pub qos: QoS,
    /// True if at least one of the subscriptions has Retain As Published.
    pub retain_as_published: bool,
    /// Their subscription identifiers.
    pub identifiers: Vec<u32>,
}

impl Match {
    /// Adds a matching subscription.
    pub fn add(&mut self, options: Options) {
        self.qos = self.qos.max(options.qos);
        self.retain_as_published |= options.retain_as_published;
        self.identifiers.extend(options.identifier);
    }
}

/// Returns the sessions with a subscription that matches the topic name, each once. `is_own` tells whether a session is
/// the publisher's, for No Local.
pub fn matching<K: Copy + Ord>(tree: &Tree<K, Options>, name: &Name, is_own: impl Fn(K) -> bool) -> BTreeMap<K, Match> {
    let mut matches: BTreeMap<K, Match> = BTreeMap::new();
    tree.matches(name, |session, options| {
        if !(options.no_local && is_own(*session)) {
            matches.entry(*session).or_default().add(*options);
        }
    });
    matches
}

/// Subscriptions with the same filter, counted by QoS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QosCounts {
    /// QoS 0.
    zero: u32,
    /// QoS 1.
    one: u32,
    /// QoS 2.
    two: u32,
}

impl QosCounts {
    /// Counts a subscription.
    pub fn add(&mut self, qos: QoS) {
        *self.count(qos) += 1;
    }

    /// Removes a subscription that was counted with this QoS.
    pub fn remove(&mut self, qos: QoS) {
        let count = self.count(qos);
        *count = count.saturating_sub(1);
    }

    /// Returns the highest QoS of the subscriptions; `None` if there are none.
    pub fn highest(&self) -> Option<QoS> {
        let counts = [(self.two, QoS::ExactlyOnce), (self.one, QoS::AtLeastOnce), (self.zero, QoS::AtMostOnce)];
        counts.into_iter().find(|(count, _)| *count > 0).map(|(_, qos)| qos)
    }

    fn count(&mut self, qos: QoS) -> &mut u32 {
        match qos {
            QoS::AtMostOnce => &mut self.zero,
            QoS::AtLeastOnce => &mut self.one,
            QoS::ExactlyOnce => &mut self.two,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topic::Filter;

    fn any_options() -> impl Strategy<Value = Options> {
        (0_u8..3, any::<bool>(), any::<bool>(), prop::option::of(1_u32..9)).prop_map(
            |(bits, no_local, retain_as_published, identifier)| Options {
                qos: QoS::from_bits(bits).unwrap(),
                no_local,
                retain_as_published,
                identifier,
            },
        )
    }

    proptest! {
        /// Each session gets one delivery, with the highest QoS and all identifiers of the subscriptions that match.
        #[test]
        fn a_session_gets_one_delivery_for_all_its_subscriptions(
            wanted in prop::collection::vec((0_u8..3, 0_usize..5, any_options()), 0..12),
            own in 0_u8..3,
        ) {
            const FILTERS: [&str; 5] = ["a/b", "a/+", "#", "a/#", "b"];
            let name: Name = "a/b".parse().unwrap();
            let (mut tree, mut list) = (Tree::default(), BTreeMap::new());
            for (session, which, options) in wanted {
                let filter: Filter = FILTERS[which].parse().unwrap();
                tree.insert(&filter, session, options);
                list.insert((session, which), options);
            }
            let matches = matching(&tree, &name, |session| session == own);
            for session in 0..3 {
                let counts = |which: &usize, options: &Options| {
                    FILTERS[*which].parse::<Filter>().unwrap().matches(&name) && !(options.no_local && session == own)
                };
                let expected: Vec<&Options> = list
                    .iter()
                    .filter(|((owner, which), options)| *owner == session && counts(which, options))
                    .map(|(_, options)| options)
                    .collect();
                let found = matches.get(&session);
                prop_assert_eq!(found.map(|found| found.qos), expected.iter().map(|options| options.qos).max());
                let Some(found) = found else { continue };
                let kept = expected.iter().any(|options| options.retain_as_published);
                prop_assert_eq!(found.retain_as_published, kept);
                let mut identifiers = found.identifiers.clone();
                identifiers.sort_unstable();
                let mut wanted: Vec<u32> = expected.iter().filter_map(|options| options.identifier).collect();
                wanted.sort_unstable();
                prop_assert_eq!(identifiers, wanted);
            }
        }

        /// The highest QoS is that of a list of the subscriptions.
        #[test]
        fn the_highest_qos_is_that_of_the_subscriptions_that_are_left(
            steps in prop::collection::vec((0_u8..3, any::<prop::sample::Index>()), 0..40)
        ) {
            let (mut counts, mut list) = (QosCounts::default(), Vec::new());
            for (bits, which) in steps {
                // Half of the steps remove a subscription, if there is one.
                if which.index(2) == 0 && !list.is_empty() {
                    counts.remove(list.swap_remove(which.index(list.len())));
                } else {
                    let qos = QoS::from_bits(bits).unwrap();
                    counts.add(qos);
                    list.push(qos);
                }
                prop_assert_eq!(counts.highest(), list.iter().max().copied());
            }
        }
    }
}
