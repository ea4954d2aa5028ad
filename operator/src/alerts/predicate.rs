//! The built-in conditions: equivalents of the catalogue's PromQL, evaluated over one round of scrapes.
//!
//! Called by `evaluate` once per rule and round. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{
    catalogue::{Builtin, Threshold},
    history::History,
    samples::Samples,
};

const FENCED: &str = "mqtt_broker_fenced";
const RAFT_HAS_LEADER: &str = "mqtt_broker_raft_has_leader";
const DROPPED: &str = "mqtt_broker_messages_dropped_total";
const ACL_REVISION: &str = "mqtt_broker_acl_revision";
const ACL_REJECTED: &str = "mqtt_broker_acl_rejected_revision";
const CPU_SECONDS: &str = "process_cpu_seconds_total";
const CPU_LIMIT: &str = "mqtt_broker_cpu_limit_cores";
const MEMORY: &str = "process_resident_memory_bytes";
const MEMORY_LIMIT: &str = "mqtt_broker_memory_limit_bytes";
const STORAGE_FREE: &str = "mqtt_broker_storage_free_bytes";
const STORAGE_CAPACITY: &str = "mqtt_broker_storage_capacity_bytes";
const LOSS_REASONS: [&str; 3] = ["storage_error", "session_lost", "peer_unreachable"];

/// What the operator observed of one cluster in one round.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Desired number of brokers.
    pub desired: u32,
    /// Number of ready brokers.
    pub ready: u32,
    /// Revision of the access document that brokers should enforce. `None` if the operator does not know it.
    pub acl_revision: Option<u64>,
    /// Every desired pod with its scrape. `None` if the pod did not answer.
    pub scrapes: BTreeMap<String, Option<Samples>>,
}

/// State of a condition in this round.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reading {
    /// It holds. The text contains the value and the threshold.
    Raised(String),
    /// It no longer holds, but the value has not passed `clear`.
    Lingering,
    /// It does not hold.
    Clear,
    /// The facts do not suffice to decide.
    Unknown,
}

/// Readings by pod. The key `None` stands for the whole cluster.
pub(super) type Readings = BTreeMap<Option<String>, Reading>;

/// Adds the counters of this round to the history.
pub(super) fn remember(history: &mut History, now: Timestamp, facts: &Facts) {
    for (pod, samples) in answered(facts) {
        if let Some(value) = samples.value(CPU_SECONDS) {
            history.observe(now, pod, CPU_SECONDS, value);
        }
        for reason in LOSS_REASONS {
            let lost = samples.all(DROPPED).iter().filter(|sample| {
                sample.label("reason") == Some(reason) && matches!(sample.label("qos"), Some("1" | "2"))
            });
            if let Some(total) = lost.map(|sample| sample.value).reduce(|a, b| a + b) {
                history.observe(now, pod, reason, total);
            }
        }
    }
    history.retain(now, |pod| facts.scrapes.contains_key(pod));
}

/// Evaluates one condition.
pub(super) fn judge(builtin: Builtin, threshold: Option<Threshold>, facts: &Facts, history: &History) -> Readings {
    match builtin {
        Builtin::ClusterOffline => cluster(cluster_offline(facts)),
        Builtin::ClusterDegraded => cluster(cluster_degraded(facts)),
        Builtin::RaftNoLeader => cluster(raft_no_leader(facts)),
        Builtin::MessagesLost => cluster(messages_lost(threshold, history)),
        Builtin::BrokerDown => {
            facts.scrapes.iter().map(|(pod, scrape)| (Some(pod.clone()), broker_down(scrape.is_some()))).collect()
        }
        Builtin::NodeFenced => by_pod(facts, |_, samples| node_fenced(samples)),
        Builtin::AclNotSynced => by_pod(facts, |_, samples| acl_not_synced(facts.acl_revision, samples)),
        Builtin::AclRejected => by_pod(facts, |_, samples| acl_rejected(samples)),
        Builtin::CpuHigh => by_pod(facts, |pod, samples| {
            high(threshold, "CPU", history.rate(pod, CPU_SECONDS), samples.value(CPU_LIMIT))
        }),
        Builtin::MemoryHigh => {
            by_pod(facts, |_, samples| high(threshold, "memory", samples.value(MEMORY), samples.value(MEMORY_LIMIT)))
        }
        Builtin::StorageLow => by_pod(facts, |_, samples| storage_low(threshold, samples)),
    }
}

fn cluster(reading: Reading) -> Readings {
    BTreeMap::from([(None, reading)])
}

fn answered(facts: &Facts) -> impl Iterator<Item = (&str, &Samples)> {
    facts.scrapes.iter().filter_map(|(pod, scrape)| Some((pod.as_str(), scrape.as_ref()?)))
}

fn by_pod(facts: &Facts, reading: impl Fn(&str, &Samples) -> Reading) -> Readings {
    let one = |(pod, scrape): (&String, &Option<Samples>)| {
        (Some(pod.clone()), scrape.as_ref().map_or(Reading::Unknown, |samples| reading(pod, samples)))
    };
    facts.scrapes.iter().map(one).collect()
}

fn when(holds: bool, text: impl FnOnce() -> String) -> Reading {
    if holds { Reading::Raised(text()) } else { Reading::Clear }
}

fn cluster_offline(facts: &Facts) -> Reading {
    when(facts.ready == 0 && facts.desired > 0, || format!("none of {} brokers is ready", facts.desired))
}

fn cluster_degraded(facts: &Facts) -> Reading {
    when(facts.ready < facts.desired, || format!("{} of {} brokers are ready", facts.ready, facts.desired))
}

fn broker_down(is_up: bool) -> Reading {
    when(!is_up, || "the metrics endpoint does not answer".to_owned())
}

fn node_fenced(samples: &Samples) -> Reading {
    samples.value(FENCED).map_or(Reading::Unknown, |fenced| when(fenced > 0.0, || "the broker has no lease".to_owned()))
}

fn raft_no_leader(facts: &Facts) -> Reading {
    let mut has_leader: BTreeMap<&str, bool> = BTreeMap::new();
    for (_, samples) in answered(facts) {
        for sample in samples.all(RAFT_HAS_LEADER) {
            *has_leader.entry(sample.label("group").unwrap_or_default()).or_default() |= sample.value > 0.0;
        }
    }
    if has_leader.is_empty() {
        return Reading::Unknown;
    }
    let leaderless: Vec<&str> = has_leader.into_iter().filter(|(_, has)| !has).map(|(group, _)| group).collect();
    when(!leaderless.is_empty(), || format!("no leader in group {}", leaderless.join(", ")))
}

fn messages_lost(threshold: Option<Threshold>, history: &History) -> Reading {
    let lost: Vec<(&str, f64)> =
        LOSS_REASONS.into_iter().filter_map(|reason| Some((reason, history.increase(reason)?))).collect();
    let (Some(Threshold { raise, .. }), false) = (threshold, lost.is_empty()) else { return Reading::Unknown };
    let worst: Vec<String> = lost
        .iter()
        .filter(|(_, count)| *count > raise)
        .map(|(reason, count)| format!("{count} for {reason}"))
        .collect();
    when(!worst.is_empty(), || format!("acknowledged messages dropped in 5 minutes: {}", worst.join(", ")))
}

fn acl_not_synced(wanted: Option<u64>, samples: &Samples) -> Reading {
    let (Some(wanted), Some(enforced)) = (wanted, samples.value(ACL_REVISION)) else { return Reading::Unknown };
    // Revisions count up from 1 and stay below 2^53, so both texts are exact.
    when(wanted.to_string() != enforced.to_string(), || {
        format!("enforces access revision {enforced} instead of {wanted}")
    })
}

fn acl_rejected(samples: &Samples) -> Reading {
    samples
        .value(ACL_REJECTED)
        .map_or(Reading::Unknown, |revision| when(revision > 0.0, || format!("refused access revision {revision}")))
}

fn high(threshold: Option<Threshold>, what: &str, used: Option<f64>, limit: Option<f64>) -> Reading {
    let (Some(Threshold { raise, clear }), Some(used), Some(limit)) = (threshold, used, limit) else {
        return Reading::Unknown;
    };
    if limit <= 0.0 {
        return Reading::Unknown;
    }
    let ratio = used / limit;
    if ratio > raise {
        Reading::Raised(format!("{what} at {:.0} % of its limit, above {:.0} %", ratio * 100.0, raise * 100.0))
    } else if ratio > clear.unwrap_or(raise) {
        Reading::Lingering
    } else {
        Reading::Clear
    }
}

fn storage_low(threshold: Option<Threshold>, samples: &Samples) -> Reading {
    let (Some(Threshold { raise, clear }), Some(free), Some(capacity)) =
        (threshold, samples.value(STORAGE_FREE), samples.value(STORAGE_CAPACITY))
    else {
        return Reading::Unknown;
    };
    if capacity <= 0.0 {
        return Reading::Unknown;
    }
    let ratio = free / capacity;
    if ratio < raise {
        Reading::Raised(format!("{:.0} % of the disk is free, below {:.0} %", ratio * 100.0, raise * 100.0))
    } else if ratio < clear.unwrap_or(raise) {
        Reading::Lingering
    } else {
        Reading::Clear
    }
}
