//! The operator's own evaluation of the built-in alerts of one cluster, without Prometheus.
//!
//! The reconciler calls [`Evaluator::observe`] at most every 10 s, publishes the changes as Events, and writes the
//! active alerts to `status.alerts` and the condition `Alerting`. Invariant: an alert is active from the end of its
//! `for` until its condition has passed `clear`, and each (name, pod) is active at most once, even if several rules
//! have that name.
//!
//! ```text
//!            raised              for has passed            clear, pod gone, or unknown too long
//!  quiet ----------> pending ----------------------> firing ----------------> quiet
//!    ^   not raised     |                              ^ | lingering, unknown: stays
//!    +------------------+                              +-+
//! ```

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};

pub use super::predicate::Facts;
use super::{
    catalogue::{Alert, Builtin, Catalogue, Severity, Threshold},
    history::History,
    predicate::{self, Reading},
};

/// Time after which an alert about a broker that does not answer is resolved. `MqttBrokerDown` reports the broker then.
const UNKNOWN_FOR: SignedDuration = SignedDuration::from_mins(1);

/// A firing alert.
#[derive(Clone, Debug, PartialEq)]
pub struct Active {
    /// Name in the catalogue.
    pub name: String,
    /// Pod that the alert is about. `None` if it is about the cluster.
    pub pod: Option<String>,
    /// Severity of the alert.
    pub severity: Severity,
    /// When it began to fire.
    pub since: Timestamp,
    /// Text with value and threshold of the last round in which the condition held.
    pub message: String,
}

/// How an alert changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// It began to fire.
    Fired,
    /// It no longer fires.
    Resolved,
}

/// One alert that began or ended in this round.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The alert as it is now (fired) or was in the previous round (resolved).
    pub alert: Active,
    /// Whether the alert began or ended.
    pub transition: Transition,
}

/// A firing alert as recorded in `status.alerts[]`, from which the operator resumes after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Name in the catalogue.
    pub name: String,
    /// Pod that the alert is about. `None` if it is about the cluster.
    pub pod: Option<String>,
    /// When it began to fire.
    pub since: Timestamp,
}

#[derive(Debug)]
struct Rule {
    name: String,
    severity: Severity,
    hold: Duration,
    builtin: Builtin,
    threshold: Option<Threshold>,
}

#[derive(Debug)]
enum State {
    Pending { since: Timestamp },
    Firing { since: Timestamp, known: Timestamp, message: String },
}

type Key = (usize, Option<String>);
type ActiveKey = (String, Option<String>);

/// The state of the built-in alerts of one cluster.
#[derive(Debug)]
pub struct Evaluator {
    rules: Vec<Rule>,
    states: BTreeMap<Key, State>,
    history: History,
}

impl Evaluator {
    /// Creates an evaluator in which nothing fires. Every `for` is multiplied by `for_scale` (1.0 in production; tests
    /// take less to be quick).
    pub fn new(catalogue: &Catalogue, for_scale: f64) -> Self {
        let rule = |alert: &Alert| {
            let hold = Duration::try_from_secs_f64(alert.hold.as_secs_f64() * for_scale).unwrap_or(alert.hold);
            let (name, severity, threshold) = (alert.name.clone(), alert.severity, alert.threshold);
            Some(Rule { name, severity, hold, builtin: alert.builtin?, threshold })
        };
        let rules = catalogue.alerts().iter().filter_map(rule).collect();
        Self { rules, states: BTreeMap::new(), history: History::default() }
    }

    /// Takes over the alerts that fired before the operator restarted, so that they do not fire a second time and keep
    /// their `since`. The next round resolves those whose condition no longer holds.
    pub fn restore(&mut self, remembered: &[Remembered], now: Timestamp) {
        for Remembered { name, pod, since } in remembered {
            for (index, _) in self.rules.iter().enumerate().filter(|(_, rule)| rule.name == *name) {
                let state = State::Firing { since: *since, known: now, message: String::new() };
                self.states.insert((index, pod.clone()), state);
            }
        }
    }

    /// Evaluates one round and returns the alerts that began or ended. `now` must not go back: the caller adds elapsed
    /// time to the wall time of its start, so that a change of the wall clock neither raises nor delays an alert.
    pub fn observe(&mut self, now: Timestamp, facts: &Facts) -> Vec<Change> {
        let before = self.active_by_key();
        predicate::remember(&mut self.history, now, facts);
        for (index, rule) in self.rules.iter().enumerate() {
            let readings = predicate::judge(rule.builtin, rule.threshold, facts, &self.history);
            self.states.retain(|(of, pod), _| *of != index || readings.contains_key(pod));
            for (pod, reading) in readings {
                let key = (index, pod);
                let state = step(self.states.remove(&key), reading, rule.hold, now);
                if let Some(state) = state {
                    self.states.insert(key, state);
                }
            }
        }
        changes(&before, &self.active_by_key())
    }

    /// Returns the firing alerts, sorted by name and pod.
    pub fn active(&self) -> Vec<Active> {
        self.active_by_key().into_values().collect()
    }

    fn active_by_key(&self) -> BTreeMap<ActiveKey, Active> {
        let mut active: BTreeMap<ActiveKey, Active> = BTreeMap::new();
        for ((index, pod), state) in &self.states {
            let (Some(rule), State::Firing { since, message, .. }) = (self.rules.get(*index), state) else { continue };
            let alert = Active {
                name: rule.name.clone(),
                pod: pod.clone(),
                severity: rule.severity,
                since: *since,
                message: message.clone(),
            };
            let entry = active.entry((alert.name.clone(), alert.pod.clone())).or_insert_with(|| alert.clone());
            entry.since = entry.since.min(alert.since);
            if entry.message.is_empty() {
                entry.message = alert.message;
            }
        }
        active
    }
}

fn step(state: Option<State>, reading: Reading, hold: Duration, now: Timestamp) -> Option<State> {
    match (state, reading) {
        (Some(State::Firing { since, .. }), Reading::Raised(message))
        | (Some(State::Firing { since, message, .. }), Reading::Lingering) => {
            Some(State::Firing { since, known: now, message })
        }
        (Some(State::Firing { since, known, message }), Reading::Unknown) => {
            (now.duration_since(known) < UNKNOWN_FOR).then_some(State::Firing { since, known, message })
        }
        (pending, Reading::Raised(message)) => {
            let since = match pending {
                Some(State::Pending { since }) => since,
                _ => now,
            };
            let held = Duration::try_from(now.duration_since(since)).unwrap_or_default();
            Some(if held >= hold {
                State::Firing { since: now, known: now, message }
            } else {
                State::Pending { since }
            })
        }
        (_, Reading::Lingering | Reading::Unknown | Reading::Clear) => None,
    }
}

fn changes(before: &BTreeMap<ActiveKey, Active>, after: &BTreeMap<ActiveKey, Active>) -> Vec<Change> {
    let missing_from =
        |from: &BTreeMap<ActiveKey, Active>, of: &BTreeMap<ActiveKey, Active>, transition| -> Vec<Change> {
            let missing = of.iter().filter(|(key, _)| !from.contains_key(*key));
            missing.map(|(_, alert)| Change { alert: alert.clone(), transition }).collect()
        };
    let mut changes = missing_from(before, after, Transition::Fired);
    changes.extend(missing_from(after, before, Transition::Resolved));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::samples::Samples;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn evaluator(for_scale: f64) -> Evaluator {
        Evaluator::new(&Catalogue::shipped().unwrap(), for_scale)
    }

    fn facts(page: &str) -> Facts {
        let scrape = Some(Samples::parse(page.as_bytes()).unwrap());
        Facts { desired: 1, ready: 1, acl_revision: Some(7), scrapes: BTreeMap::from([("prod-0".to_owned(), scrape)]) }
    }

    fn names(changes: &[Change]) -> Vec<(Transition, &str, Option<&str>)> {
        changes.iter().map(|c| (c.transition, c.alert.name.as_str(), c.alert.pod.as_deref())).collect()
    }

    fn memory(ratio: f64) -> Facts {
        facts(&format!("process_resident_memory_bytes {}\nmqtt_broker_memory_limit_bytes 1000\n", ratio * 1000.0))
    }

    #[test]
    fn alert_fires_when_its_for_has_passed_and_not_before() {
        let mut evaluator = evaluator(1.0);
        for second in (0..300).step_by(10) {
            assert_eq!(evaluator.observe(at(second), &memory(0.9)), []);
        }
        let changes = evaluator.observe(at(300), &memory(0.9));
        assert_eq!(names(&changes), [(Transition::Fired, "MqttNodeMemoryHigh", Some("prod-0"))]);
        let active = evaluator.active();
        assert_eq!((active[0].since, active[0].message.as_str()), (at(300), "memory at 90 % of its limit, above 85 %"));
        assert_eq!(evaluator.observe(at(310), &memory(0.95)), [], "it fires once");
    }

    #[test]
    fn pending_alert_starts_over_after_a_gap() {
        let mut evaluator = evaluator(1.0);
        evaluator.observe(at(0), &memory(0.9));
        evaluator.observe(at(290), &memory(0.84));
        assert_eq!(evaluator.observe(at(300), &memory(0.9)), []);
        assert_eq!(evaluator.observe(at(599), &memory(0.9)), []);
        assert_eq!(evaluator.observe(at(600), &memory(0.9)).len(), 1);
    }

    #[test]
    fn firing_alert_stays_until_the_clear_threshold() {
        let mut evaluator = evaluator(0.0);
        assert_eq!(evaluator.observe(at(0), &memory(0.9)).len(), 1, "a scale of 0 takes every `for` away");
        assert_eq!(evaluator.observe(at(10), &memory(0.82)), []);
        let changes = evaluator.observe(at(20), &memory(0.79));
        assert_eq!(names(&changes), [(Transition::Resolved, "MqttNodeMemoryHigh", Some("prod-0"))]);
        assert_eq!(evaluator.observe(at(30), &memory(0.82)), [], "between the thresholds nothing is raised");
    }

    #[test]
    fn lost_scrape_keeps_an_alert_for_a_minute() {
        let mut evaluator = evaluator(0.01);
        evaluator.observe(at(0), &memory(0.9));
        evaluator.observe(at(10), &memory(0.9));
        let mut silent = memory(0.9);
        silent.scrapes.insert("prod-0".to_owned(), None);
        assert_eq!(evaluator.observe(at(20), &silent), []);
        let changes = evaluator.observe(at(70), &silent);
        assert_eq!(
            names(&changes),
            [
                (Transition::Fired, "MqttBrokerDown", Some("prod-0")),
                (Transition::Resolved, "MqttNodeMemoryHigh", Some("prod-0"))
            ]
        );
    }

    #[test]
    fn removed_pod_takes_its_alerts_along() {
        let mut evaluator = evaluator(0.0);
        evaluator.observe(at(0), &memory(0.9));
        let changes = evaluator.observe(at(10), &Facts { desired: 0, ..Facts::default() });
        assert_eq!(names(&changes), [(Transition::Resolved, "MqttNodeMemoryHigh", Some("prod-0"))]);
    }

    #[test]
    fn restart_of_the_operator_keeps_since_and_does_not_fire_again() {
        let mut evaluator = evaluator(1.0);
        let pod = Some("prod-0".to_owned());
        let remembered =
            [("MqttNodeMemoryHigh", at(-500)), ("MqttStorageLow", at(-400)), ("MqttNoSuchAlert", at(-300))];
        let remembered = remembered.map(|(name, since)| Remembered { name: name.to_owned(), pod: pod.clone(), since });
        evaluator.restore(&remembered, at(0));
        let storage = "mqtt_broker_storage_free_bytes 90\nmqtt_broker_storage_capacity_bytes 100\n";
        let page = format!("process_resident_memory_bytes 900\nmqtt_broker_memory_limit_bytes 1000\n{storage}");
        let changes = evaluator.observe(at(0), &facts(&page));
        assert_eq!(names(&changes), [(Transition::Resolved, "MqttStorageLow", Some("prod-0"))]);
        assert_eq!(evaluator.active().iter().map(|a| a.since).collect::<Vec<_>>(), [at(-500)]);
    }

    #[test]
    fn two_rules_of_one_name_are_one_alert() {
        let mut evaluator = evaluator(1.0);
        let page = "mqtt_broker_acl_revision 6\nmqtt_broker_acl_rejected_revision 7\n";
        let changes = evaluator.observe(at(0), &facts(page));
        assert_eq!(names(&changes), [(Transition::Fired, "MqttAclNotSynced", Some("prod-0"))]);
        assert_eq!(changes[0].alert.message, "refused access revision 7");
        assert_eq!(evaluator.observe(at(300), &facts(page)), [], "the second rule adds nothing");
        let old = "mqtt_broker_acl_revision 6\nmqtt_broker_acl_rejected_revision 0\n";
        assert_eq!(evaluator.observe(at(310), &facts(old)), [], "one of the two still holds");
        let good = "mqtt_broker_acl_revision 7\nmqtt_broker_acl_rejected_revision 0\n";
        let changes = evaluator.observe(at(320), &facts(good));
        assert_eq!(names(&changes), [(Transition::Resolved, "MqttAclNotSynced", Some("prod-0"))]);
    }

    #[test]
    fn clock_that_goes_back_does_not_fire() {
        let mut evaluator = evaluator(1.0);
        evaluator.observe(at(0), &memory(0.9));
        assert_eq!(evaluator.observe(at(-100_000), &memory(0.9)), []);
    }
}
