//! Exactly-once delivery: which numbers of a key were seen. Used by shards and by nodes with transient sessions.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Numbers of one key that were seen. All below a floor count as seen, so that the memory is bounded by what the sender
/// has not finished.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Numbers below this one count as seen.
    floor: u64,
    /// Numbers at or above the floor that were seen.
    numbers: BTreeSet<u64>,
}

impl Window {
    /// Records a number and returns whether it was seen before. `floor` is the lowest number that the sender may still
    /// send; the highest one that was ever given counts.
    pub fn is_repeated(&mut self, number: u64, floor: u64) -> bool {
        self.floor = self.floor.max(floor);
        let repeated = number < self.floor || !self.numbers.insert(number);
        self.numbers = self.numbers.split_off(&self.floor);
        repeated
    }

    /// Removes a number, so that it is new again, unless it is below the floor.
    pub fn forget(&mut self, number: u64) {
        self.numbers.remove(&number);
    }

    #[cfg(test)]
    pub(crate) fn new(floor: u64, numbers: impl IntoIterator<Item = u64>) -> Self {
        Self { floor, numbers: numbers.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The window answers like a sender's full history, and holds nothing below the floor.
        #[test]
        fn a_window_answers_as_the_full_history_would(
            steps in prop::collection::vec((0_u64..20, 0_u64..20, prop::bool::weighted(0.2)), 0..60)
        ) {
            let (mut window, mut history, mut highest) = (Window::default(), BTreeSet::new(), 0);
            for (number, floor, forget) in steps {
                highest = highest.max(floor);
                let expected = number < highest || history.contains(&number);
                prop_assert_eq!(window.is_repeated(number, floor), expected);
                history.insert(number);
                if forget {
                    window.forget(number);
                    history.remove(&number);
                }
                prop_assert!(window.numbers.iter().all(|seen| *seen >= highest));
            }
        }
    }
}
