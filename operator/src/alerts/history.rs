//! Increases and rates of counters over the last minutes, like `increase` and `rate` of Prometheus.
//!
//! Used by `predicate`. Invariant: a counter that falls has been reset and counts from zero; the first observed value
//! is no increase.

use std::collections::{BTreeMap, VecDeque};

use jiff::{SignedDuration, Timestamp};

/// Time window of the rules (`[5m]`).
const WINDOW: SignedDuration = SignedDuration::from_mins(5);

#[derive(Debug)]
struct Counter {
    last_value: f64,
    /// Times of observation, each with the sum of all increases until then.
    points: VecDeque<(Timestamp, f64)>,
}

impl Counter {
    fn observe(&mut self, now: Timestamp, value: f64) {
        let grown = if value < self.last_value { value } else { value - self.last_value };
        let total = self.points.back().map_or(0.0, |(_, total)| *total) + grown;
        self.last_value = value;
        self.points.push_back((now, total));
        while self.points.front().is_some_and(|(time, _)| now.duration_since(*time) > WINDOW) {
            self.points.pop_front();
        }
    }

    fn span(&self) -> Option<(f64, SignedDuration)> {
        let (first, last) = (self.points.front()?, self.points.back()?);
        Some((last.1 - first.1, last.0.duration_since(first.0)))
    }
}

/// Counters of a cluster, by pod and by a name that the caller chooses.
#[derive(Debug, Default)]
pub(super) struct History {
    counters: BTreeMap<(String, String), Counter>,
}

impl History {
    /// Adds the value of a counter at this time.
    pub(super) fn observe(&mut self, now: Timestamp, pod: &str, series: &str, value: f64) {
        let start = || Counter { last_value: value, points: VecDeque::new() };
        self.counters.entry((pod.to_owned(), series.to_owned())).or_insert_with(start).observe(now, value);
    }

    /// Removes the counters of pods that no longer exist, and those without an observation in the window.
    pub(super) fn retain(&mut self, now: Timestamp, is_known: impl Fn(&str) -> bool) {
        let is_fresh =
            |counter: &Counter| counter.points.back().is_some_and(|(time, _)| now.duration_since(*time) <= WINDOW);
        self.counters.retain(|(pod, _), counter| is_known(pod) && is_fresh(counter));
    }

    /// Returns the increase in the window, summed over all pods. `None` until a counter has been observed twice.
    pub(super) fn increase(&self, series: &str) -> Option<f64> {
        let of_series = self.counters.iter().filter(|((_, name), _)| name == series);
        of_series
            .filter_map(|(_, counter)| counter.span())
            .filter(|(_, time)| time.is_positive())
            .map(|(grown, _)| grown)
            .reduce(|a, b| a + b)
    }

    /// Returns the increase per second in the window. `None` until the counter has been observed twice.
    pub(super) fn rate(&self, pod: &str, series: &str) -> Option<f64> {
        let (grown, time) = self.counters.get(&(pod.to_owned(), series.to_owned()))?.span()?;
        time.is_positive().then(|| grown / time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn first_value_is_no_increase() {
        let mut history = History::default();
        history.observe(at(0), "p", "c", 40.0);
        assert_eq!(history.increase("c"), None);
        history.observe(at(10), "p", "c", 40.0);
        assert_eq!(history.increase("c"), Some(0.0));
        history.observe(at(20), "p", "c", 50.0);
        assert_eq!((history.increase("c"), history.rate("p", "c")), (Some(10.0), Some(0.5)));
    }

    #[test]
    fn restarted_process_counts_from_zero() {
        let mut history = History::default();
        history.observe(at(0), "p", "c", 40.0);
        history.observe(at(10), "p", "c", 3.0);
        assert_eq!(history.increase("c"), Some(3.0));
    }

    #[test]
    fn only_the_window_counts() {
        let mut history = History::default();
        for (second, value) in [(0, 0.0), (100, 7.0), (300, 7.0), (390, 7.0)] {
            history.observe(at(second), "p", "c", value);
        }
        assert_eq!(history.increase("c"), Some(0.0));
        history.retain(at(1000), |_| true);
        assert_eq!(history.increase("c"), None);
    }

    #[test]
    fn gone_pod_is_forgotten() {
        let mut history = History::default();
        history.observe(at(0), "p", "c", 0.0);
        history.observe(at(10), "p", "c", 5.0);
        history.retain(at(10), |pod| pod != "p");
        assert_eq!(history.increase("c"), None);
    }
}
