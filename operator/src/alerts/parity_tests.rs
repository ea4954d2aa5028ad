//! Prometheus (through promtool) and the operator must find the same alerts at the same step of the same scenario.
//!
//! Every scenario is a table of series in steps of 30 s. The operator's evaluator gets each step as metrics pages;
//! promtool gets the same table as input series and must find exactly the alerts that the evaluator found.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    process::Command,
};

use jiff::Timestamp;

use super::{
    catalogue::Catalogue,
    evaluate::{Evaluator, Facts},
    render,
    samples::Samples,
};

const STEP: i64 = 30;
const IDENTITY: &str = r#"namespace="iot",mqtt_cluster="prod""#;

/// Pod, metric with its own labels, values. The metric `up` is 1 while the pod answers.
type Series = (&'static str, &'static str, Values);

/// Values, each valid from a step on. `None` means that the series is absent.
type Values = &'static [(usize, Option<f64>)];

struct Scenario {
    /// The alert that must fire and clear again.
    alert: &'static str,
    steps: usize,
    desired: Values,
    ready: Values,
    revision: Values,
    series: Vec<Series>,
    /// Whether the alert uses rates or increases. Versions of Prometheus differ by one sample at the edge of a window,
    /// so the steps next to a change are not compared.
    is_windowed: bool,
}

type Found = BTreeSet<(String, Option<String>)>;

const UP: Values = &[(0, Some(1.0))];
const NEVER: Values = &[];
const THOUSAND: Values = &[(0, Some(1000.0))];
const THREE: Values = &[(0, Some(3.0))];

fn at(values: Values, step: usize) -> Option<f64> {
    values.iter().rev().find(|(from, _)| *from <= step).and_then(|(_, value)| *value)
}

fn scenario(alert: &'static str, steps: usize, series: Vec<Series>) -> Scenario {
    Scenario { alert, steps, desired: THREE, ready: THREE, revision: NEVER, series, is_windowed: false }
}

fn scenarios() -> Vec<Scenario> {
    [availability(), messages_and_access(), resources()].into_iter().flatten().collect()
}

/// Returns the series of two brokers that are up, with one metric each.
fn both(metric: &'static str, first: Values, second: Values) -> Vec<Series> {
    vec![("prod-0", "up", UP), ("prod-1", "up", UP), ("prod-0", metric, first), ("prod-1", metric, second)]
}

fn with_limits(mut series: Vec<Series>) -> Vec<Series> {
    for pod in ["prod-0", "prod-1"] {
        for what in ["cpu_limit_cores", "memory_limit_bytes", "storage_capacity_bytes"] {
            series.push((pod, format!("mqtt_broker_{what}").leak(), THOUSAND));
        }
    }
    series
}

fn availability() -> Vec<Scenario> {
    let group = r#"mqtt_broker_raft_has_leader{group="shard-1"}"#;
    vec![
        Scenario {
            ready: &[(0, Some(3.0)), (3, Some(0.0)), (9, Some(3.0))],
            ..scenario("MqttClusterOffline", 14, vec![("prod-0", "up", UP)])
        },
        Scenario {
            ready: &[(0, Some(3.0)), (3, Some(2.0)), (20, Some(3.0))],
            ..scenario("MqttClusterDegraded", 24, vec![("prod-0", "up", UP)])
        },
        scenario(
            "MqttBrokerDown",
            14,
            vec![("prod-0", "up", UP), ("prod-1", "up", &[(0, Some(1.0)), (2, Some(0.0)), (10, Some(1.0))])],
        ),
        scenario(
            "MqttNodeFenced",
            12,
            both("mqtt_broker_fenced", &[(0, Some(0.0))], &[(0, Some(0.0)), (2, Some(1.0)), (8, Some(0.0))]),
        ),
        scenario(
            "MqttRaftNoLeader",
            12,
            both(group, &[(0, Some(1.0)), (2, Some(0.0)), (8, Some(1.0))], &[(0, Some(0.0)), (8, Some(1.0))]),
        ),
    ]
}

fn messages_and_access() -> Vec<Scenario> {
    let loss = r#"mqtt_broker_messages_dropped_total{qos="1",reason="session_lost"}"#;
    vec![
        Scenario {
            is_windowed: true,
            ..scenario("MqttQos12MessagesLost", 24, both(loss, &[(0, Some(0.0))], &[(0, Some(0.0)), (5, Some(2.0))]))
        },
        Scenario {
            revision: &[(0, Some(6.0)), (2, Some(7.0))],
            ..scenario(
                "MqttAclNotSynced",
                22,
                both("mqtt_broker_acl_revision", &[(0, Some(6.0)), (3, Some(7.0))], &[(0, Some(6.0)), (18, Some(7.0))]),
            )
        },
        Scenario {
            revision: &[(0, Some(6.0))],
            ..scenario(
                "MqttAclNotSynced",
                9,
                both(
                    "mqtt_broker_acl_rejected_revision",
                    &[(0, Some(0.0))],
                    &[(0, Some(0.0)), (2, Some(7.0)), (6, Some(0.0))],
                ),
            )
        },
    ]
}

fn resources() -> Vec<Scenario> {
    vec![
        Scenario { is_windowed: true, ..scenario("MqttNodeCpuHigh", 90, with_limits(cpu())) },
        scenario(
            "MqttNodeMemoryHigh",
            20,
            with_limits(both(
                "process_resident_memory_bytes",
                &[(0, Some(840.0))],
                &[(0, Some(500.0)), (2, Some(900.0)), (16, Some(700.0))],
            )),
        ),
        scenario(
            "MqttStorageLow",
            12,
            with_limits(both(
                "mqtt_broker_storage_free_bytes",
                &[(0, Some(210.0))],
                &[(0, Some(500.0)), (2, Some(190.0)), (8, Some(300.0))],
            )),
        ),
    ]
}

/// prod-1 uses 500 of 1000 cores for ten minutes, then 970, then none, so that it passes both thresholds within a step;
/// prod-0 always 850.
fn cpu() -> Vec<Series> {
    let grow = |rate: fn(usize) -> f64| -> Values {
        let total = |step: usize| (0..step).map(rate).sum::<f64>() * 30.0;
        (0..90).map(|step| (step, Some(total(step)))).collect::<Vec<_>>().leak()
    };
    let busy = |step: usize| match step {
        0..20 => 500.0,
        20..60 => 970.0,
        _ => 0.0,
    };
    vec![
        ("prod-0", "up", UP),
        ("prod-1", "up", UP),
        ("prod-0", "process_cpu_seconds_total", grow(|_| 850.0)),
        ("prod-1", "process_cpu_seconds_total", grow(busy)),
    ]
}

fn count(values: Values, step: usize) -> Option<u32> {
    at(values, step).map(|value| format!("{value}").parse().unwrap())
}

fn facts(scenario: &Scenario, step: usize) -> Facts {
    let pods: BTreeSet<&str> = scenario.series.iter().map(|(pod, ..)| *pod).collect();
    let page = |pod: &str| {
        let is_up = scenario
            .series
            .iter()
            .any(|(of, metric, values)| *of == pod && *metric == "up" && at(values, step) == Some(1.0));
        is_up.then(|| {
            let mut page = String::new();
            for (_, metric, values) in scenario.series.iter().filter(|(of, metric, _)| *of == pod && *metric != "up") {
                if let Some(value) = at(values, step) {
                    writeln!(page, "{metric} {value}").unwrap();
                }
            }
            Samples::parse(page.as_bytes()).unwrap()
        })
    };
    Facts {
        desired: count(scenario.desired, step).unwrap(),
        ready: count(scenario.ready, step).unwrap(),
        acl_revision: count(scenario.revision, step).map(u64::from),
        scrapes: pods.into_iter().map(|pod| (pod.to_owned(), page(pod))).collect(),
    }
}

/// Returns the alerts that the operator finds at each step.
fn evaluated(scenario: &Scenario) -> Vec<Found> {
    let mut evaluator = Evaluator::new(&Catalogue::shipped().unwrap(), 1.0);
    let observe = |step: usize| {
        let now = Timestamp::from_second(1_800_000_000 + i64::try_from(step).unwrap() * STEP).unwrap();
        evaluator.observe(now, &facts(scenario, step));
        evaluator.active().into_iter().map(|alert| (alert.name, alert.pod)).collect()
    };
    (0..scenario.steps).map(observe).collect()
}

fn input_series(out: &mut String, metric: &str, labels: &str, values: Values, steps: usize) {
    let metric = match metric.strip_suffix('}') {
        Some(open) => format!("{open},{labels}}}"),
        None => format!("{metric}{{{labels}}}"),
    };
    let values: Vec<String> =
        (0..steps).map(|step| at(values, step).map_or_else(|| "stale".to_owned(), |v| v.to_string())).collect();
    writeln!(out, "  - {{series: '{metric}', values: '{}'}}", values.join(" ")).unwrap();
}

/// Returns the promtool test: the same series, with the operator's findings as the expectation.
fn promtool_test(scenario: &Scenario, found: &[Found]) -> String {
    let mut out = format!(
        "rule_files: [rules.yml]\nevaluation_interval: {STEP}s\ntests:\n- interval: {STEP}s\n  input_series:\n"
    );
    let operator = format!(r#"{IDENTITY},job="mqtt-operator""#);
    input_series(&mut out, "up", r#"job="mqtt-operator""#, UP, scenario.steps);
    input_series(&mut out, "mqtt_operator_cluster_replicas_desired", &operator, scenario.desired, scenario.steps);
    input_series(&mut out, "mqtt_operator_cluster_replicas_ready", &operator, scenario.ready, scenario.steps);
    input_series(&mut out, "mqtt_operator_acl_revision", &operator, scenario.revision, scenario.steps);
    for (pod, metric, values) in &scenario.series {
        let labels = format!(r#"{IDENTITY},pod="{pod}",job="mqtt-broker""#);
        input_series(&mut out, metric, &labels, values, scenario.steps);
    }
    out.push_str("  promql_expr_test:\n");
    for (step, now) in found.iter().enumerate() {
        let near = found.get(step.saturating_sub(1)..(step + 2).min(found.len())).unwrap();
        if scenario.is_windowed && near.iter().any(|other| other != now) {
            continue;
        }
        writeln!(out, "  - expr: group by (alertname, pod) (ALERTS{{alertstate=\"firing\"}})").unwrap();
        writeln!(out, "    eval_time: {}s\n    exp_samples:", i64::try_from(step).unwrap() * STEP).unwrap();
        if now.is_empty() {
            out.push_str("      []\n");
        }
        for (name, pod) in now {
            let pod = pod.as_ref().map(|pod| format!(r#",pod="{pod}""#)).unwrap_or_default();
            writeln!(out, "    - {{labels: '{{alertname=\"{name}\"{pod}}}', value: 1}}").unwrap();
        }
    }
    out
}

#[test]
fn every_builtin_alert_fires_and_clears_in_its_scenario() {
    let mut names = BTreeSet::new();
    for scenario in scenarios() {
        let found = evaluated(&scenario);
        let fires = |found: &Found| found.iter().any(|(name, _)| name == scenario.alert);
        assert!(!fires(&found[0]), "{} fires before the fault", scenario.alert);
        assert!(found.iter().any(fires), "{} does not fire", scenario.alert);
        assert!(!fires(found.last().unwrap()), "{} does not clear", scenario.alert);
        names.insert(scenario.alert);
    }
    let catalogue = Catalogue::shipped().unwrap();
    let builtin: BTreeSet<&str> =
        catalogue.alerts().iter().filter(|alert| alert.builtin.is_some()).map(|alert| alert.name.as_str()).collect();
    assert_eq!(names, builtin, "a built-in alert without a scenario");
}

#[test]
#[ignore = "needs promtool in PATH (tests/kubernetes/prometheus builds it)"]
fn prometheus_and_the_operator_name_the_same_alerts() {
    let folder = std::env::temp_dir().join(format!("covey-alert-parity-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("rules.yml"), render::rules(&Catalogue::shipped().unwrap()).unwrap()).unwrap();
    let mut failures = BTreeMap::new();
    for (number, scenario) in scenarios().iter().enumerate() {
        let file = folder.join(format!("{number}.yml"));
        fs::write(&file, promtool_test(scenario, &evaluated(scenario))).unwrap();
        let output = Command::new("promtool").args(["test", "rules"]).arg(&file).output().unwrap();
        if !output.status.success() {
            let text = [output.stdout, output.stderr].concat();
            failures.insert(file, format!("{}\n{}", scenario.alert, String::from_utf8_lossy(&text)));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    fs::remove_dir_all(&folder).unwrap();
}
