//! The alert catalogue: the parsed and checked form of `catalogue.yaml`.
//!
//! Used by `render` and `evaluate`. Invariant: every [`Catalogue`] is consistent: each placeholder has its number, each
//! built-in predicate that compares has a threshold, and no two alerts have the same name and labels.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::Deserialize;

const SOURCE: &str = include_str!("catalogue.yaml");
/// Begins the meaning of an alert whose metrics do not move in this version.
const CANNOT_FIRE: &str = "It cannot fire in this version";

/// Why a catalogue was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not valid YAML or does not match the schema.
    #[error("failed to parse the alert catalogue")]
    Parse(#[from] serde_saphyr::Error),
    /// Two rules have the same name and labels.
    #[error("failed to accept alert {name}: a rule with the same name and labels exists")]
    Duplicate {
        /// Name of the alert.
        name: String,
    },
    /// A text contains `{raise}` or `{clear}`, or a predicate needs a threshold, and `threshold` does not define it.
    #[error("failed to accept alert {name}: its threshold is incomplete")]
    Threshold {
        /// Name of the alert.
        name: String,
    },
}

/// Severity of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// For information; no action needed.
    Info,
    /// Act within a day.
    Warning,
    /// Act immediately.
    Critical,
}

impl Severity {
    /// Returns the value of the `severity` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Impact of an alert on the health of the operator itself (label `operator_health_impact`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Impact {
    /// The alert is about brokers, not about the operator.
    #[default]
    None,
    /// The operator works with restrictions.
    Warning,
    /// The operator does not work.
    Critical,
}

impl Impact {
    /// Returns the value of the `operator_health_impact` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Conditions that the operator evaluates without Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Builtin {
    /// No broker is ready, although the desired number is not 0.
    ClusterOffline,
    /// Fewer brokers are ready than desired.
    ClusterDegraded,
    /// A broker's metrics endpoint does not answer.
    BrokerDown,
    /// A broker runs without a lease.
    NodeFenced,
    /// Some Raft group has no leader on any broker.
    RaftNoLeader,
    /// Acknowledged messages were dropped.
    MessagesLost,
    /// A broker enforces another access revision than the current one.
    AclNotSynced,
    /// A broker refused an access document.
    AclRejected,
    /// A broker uses most of its CPU limit.
    CpuHigh,
    /// A broker uses most of its memory limit.
    MemoryHigh,
    /// Little space is free on a broker's volume.
    StorageLow,
}

impl Builtin {
    fn is_comparison(self) -> bool {
        match self {
            Self::CpuHigh | Self::MemoryHigh | Self::StorageLow | Self::MessagesLost => true,
            Self::ClusterOffline
            | Self::ClusterDegraded
            | Self::BrokerDown
            | Self::NodeFenced
            | Self::RaftNoLeader
            | Self::AclNotSynced
            | Self::AclRejected => false,
        }
    }
}

/// Thresholds of an alert. The unit depends on the alert.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// Value beyond which the alert is raised.
    pub raise: f64,
    /// Value at which the operator clears the alert. Absent: `raise`.
    pub clear: Option<f64>,
}

/// One alert rule.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    /// Name, the same in every place where the alert appears.
    pub name: String,
    /// Group of rules, without the prefix `mqtt-`.
    pub group: String,
    /// Severity of the alert.
    pub severity: Severity,
    /// Impact on the health of the operator.
    #[serde(default)]
    pub impact: Impact,
    /// Time that the condition must hold before the alert fires.
    #[serde(rename = "for", deserialize_with = "hold")]
    pub hold: Duration,
    /// Numbers that replace `{raise}` and `{clear}`.
    pub threshold: Option<Threshold>,
    /// Condition in PromQL.
    pub expr: String,
    /// The operator's predicate for the same condition. Absent if only Prometheus evaluates the alert.
    pub builtin: Option<Builtin>,
    /// Labels that distinguish rules of the same name.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Summary in one line, a Prometheus template.
    pub summary: String,
    /// Description with value and threshold, a Prometheus template.
    pub description: String,
    /// Runbook: what the alert means.
    pub meaning: String,
    /// Runbook: what to do first, in order.
    pub steps: Vec<String>,
    /// Runbook: what makes the problem worse.
    pub avoid: String,
    /// Runbook: what clients notice.
    pub clients: String,
    /// Runbook: how to know that it is over.
    pub resolved: String,
    /// Runbook: titles of the dashboard panels that show it.
    #[serde(default)]
    pub panels: Vec<String>,
    /// Runbook: example output of some steps.
    #[serde(default)]
    pub samples: Vec<Sample>,
}

/// Example output of a step that is a command.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Number of the step, counted from 1.
    pub step: usize,
    /// The output, in the shape that the command really has.
    pub prints: String,
}

impl Alert {
    /// Returns `text` with `{raise}` and `{clear}` replaced by the alert's thresholds.
    pub fn fill(&self, text: &str) -> String {
        let Some(Threshold { raise, clear }) = self.threshold else { return text.to_owned() };
        let text = text.replace("{raise}", &raise.to_string());
        match clear {
            Some(clear) => text.replace("{clear}", &clear.to_string()),
            None => text,
        }
    }

    /// Returns whether this version moves the metrics that the alert needs; its meaning says so where it does not.
    pub fn can_fire(&self) -> bool {
        !self.meaning.starts_with(CANNOT_FIRE)
    }

    fn is_complete(&self) -> bool {
        let texts =
            [&self.expr, &self.summary, &self.description, &self.meaning, &self.avoid, &self.clients, &self.resolved];
        let filled = texts.iter().all(|text| {
            let text = self.fill(text);
            !text.contains("{raise}") && !text.contains("{clear}")
        });
        filled && (self.threshold.is_some() || !self.builtin.is_some_and(Builtin::is_comparison))
    }
}

/// All alerts, in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Catalogue {
    alerts: Vec<Alert>,
}

impl Catalogue {
    /// Returns the catalogue that this version ships.
    ///
    /// # Errors
    /// If the embedded file is invalid, which a test excludes.
    pub fn shipped() -> Result<Self, Error> {
        Self::parse(SOURCE)
    }

    /// Parses and checks a catalogue.
    ///
    /// # Errors
    /// If the text does not match the schema, or the catalogue is inconsistent.
    pub fn parse(text: &str) -> Result<Self, Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Document {
            alerts: Vec<Alert>,
        }
        let Document { alerts } = serde_saphyr::from_str(text)?;
        let mut seen = BTreeSet::new();
        for alert in &alerts {
            if !seen.insert((&alert.name, &alert.labels)) {
                return Err(Error::Duplicate { name: alert.name.clone() });
            }
            if !alert.is_complete() {
                return Err(Error::Threshold { name: alert.name.clone() });
            }
        }
        Ok(Self { alerts })
    }

    /// Returns the rules in the order of the file.
    pub fn alerts(&self) -> &[Alert] {
        &self.alerts
    }
}

fn hold<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed: jiff::SignedDuration = text.parse().map_err(serde::de::Error::custom)?;
    parsed.try_into().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "alerts:\n- {name: A, group: g, severity: info, for: 5m, expr: 'up > {raise}', threshold: {raise: 0.5}, \
                       summary: s, description: d, meaning: m, steps: [x], clients: c, resolved: r, avoid: y}\n";

    #[test]
    fn shipped_catalogue_is_accepted() {
        let catalogue = Catalogue::shipped().unwrap();
        assert!(catalogue.alerts().len() >= 30);
        for alert in catalogue.alerts() {
            assert!(alert.name.starts_with("Mqtt"), "{}", alert.name);
            assert!(alert.description.contains("$value"), "{} does not state its value", alert.name);
            assert!(
                alert.threshold.is_none() || alert.description.contains("{raise}"),
                "{} does not state its threshold",
                alert.name
            );
            assert!(!alert.steps.is_empty(), "{} has no first step", alert.name);
            for sample in &alert.samples {
                let step = alert.steps.iter().zip(1..).find(|(_, number)| *number == sample.step);
                let is_command = step.is_some_and(|(step, _)| step.starts_with("kubectl "));
                assert!(is_command, "{}: step {} prints nothing", alert.name, sample.step);
            }
        }
    }

    #[test]
    fn placeholder_takes_the_threshold() {
        let catalogue = Catalogue::parse(ONE).unwrap();
        let alert = catalogue.alerts().first().unwrap();
        assert_eq!(alert.fill(&alert.expr), "up > 0.5");
        assert_eq!(alert.hold, Duration::from_mins(5));
    }

    #[test]
    fn missing_threshold_is_refused() {
        let text = ONE.replace("threshold: {raise: 0.5}, ", "");
        assert!(matches!(Catalogue::parse(&text), Err(Error::Threshold { name }) if name == "A"));
        let text = ONE.replace("avoid: y", "avoid: y, builtin: cpu_high").replace("threshold: {raise: 0.5}, ", "");
        assert!(matches!(Catalogue::parse(&text), Err(Error::Threshold { .. })));
    }

    #[test]
    fn same_name_needs_other_labels() {
        let line = ONE.lines().nth(1).unwrap();
        assert!(matches!(Catalogue::parse(&format!("{ONE}{line}\n")), Err(Error::Duplicate { name }) if name == "A"));
        let other = line.replace("avoid: y", "avoid: y, labels: {reason: other}");
        assert!(Catalogue::parse(&format!("{ONE}{other}\n")).is_ok());
    }

    #[test]
    fn unknown_field_is_refused() {
        assert!(matches!(Catalogue::parse(&ONE.replace("avoid: y", "avoid: y, sevrity: x")), Err(Error::Parse(_))));
    }
}
