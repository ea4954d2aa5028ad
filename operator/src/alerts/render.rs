//! Renders the catalogue as Prometheus rules and as the pages of the runbook.
//!
//! Called by the example `generate_monitoring`, which writes the files, and by the test that checks that they are
//! current. Pure: the same catalogue always gives the same bytes.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde::Serialize;

use super::catalogue::{Alert, Catalogue};

/// Value of the label `kubernetes_operator_part_of`.
pub const PART_OF: &str = "covey";
/// Identifier of the dashboard that alerts point to.
pub const DASHBOARD_UID: &str = "covey-cluster-overview";
const RUNBOOK_URL: &str = "https://github.com/covey-io/covey/blob/main/docs/runbook";
const GENERATED: &str = "Generated from operator/src/alerts/catalogue.yaml; do not edit.";

/// Why rendering failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules could not be written as YAML.
    #[error("failed to write the rules as YAML")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// One file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Path from the root of the repository.
    pub path: String,
    /// Its whole text.
    pub text: String,
}

#[derive(Serialize)]
struct Rules<'a> {
    groups: Vec<Group<'a>>,
}

#[derive(Serialize)]
struct Group<'a> {
    name: String,
    rules: Vec<Rule<'a>>,
}

#[derive(Serialize)]
struct Rule<'a> {
    alert: &'a str,
    expr: String,
    r#for: String,
    labels: BTreeMap<&'a str, &'a str>,
    annotations: BTreeMap<&'a str, String>,
}

/// Renders every generated file.
///
/// # Errors
/// If the rules cannot be written as YAML.
pub fn files(catalogue: &Catalogue) -> Result<Vec<File>, Error> {
    let rules = rules(catalogue)?;
    let mut files = vec![
        File { path: "monitoring/rules.yml".to_owned(), text: rules.clone() },
        File { path: "charts/covey/files/rules.yml".to_owned(), text: rules },
        File { path: "docs/runbook/README.md".to_owned(), text: index(catalogue) },
    ];
    let pages = pages(catalogue)
        .into_iter()
        .map(|(name, alerts)| File { path: format!("docs/runbook/{name}.md"), text: page(name, &alerts) });
    files.extend(pages);
    Ok(files)
}

/// Renders the rule file that Prometheus reads.
///
/// # Errors
/// If the rules cannot be written as YAML.
pub fn rules(catalogue: &Catalogue) -> Result<String, Error> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for alert in catalogue.alerts() {
        let name = format!("mqtt-{}", alert.group);
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.rules.push(rule(alert)),
            None => groups.push(Group { name, rules: vec![rule(alert)] }),
        }
    }
    let yaml = serde_saphyr::to_string(&Rules { groups })?;
    Ok(format!("# {GENERATED}\n{yaml}"))
}

fn rule(alert: &Alert) -> Rule<'_> {
    let mut labels = BTreeMap::from([
        ("severity", alert.severity.as_str()),
        ("kubernetes_operator_part_of", PART_OF),
        ("operator_health_impact", alert.impact.as_str()),
    ]);
    labels.extend(alert.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    let variables = "var-namespace={{ $labels.namespace }}&var-cluster={{ $labels.mqtt_cluster }}";
    let annotations = BTreeMap::from([
        ("summary", alert.fill(&alert.summary)),
        ("description", alert.fill(&alert.description)),
        ("runbook_url", format!("{RUNBOOK_URL}/{}.md", alert.name)),
        ("dashboard_url", format!("/d/{DASHBOARD_UID}?{variables}")),
    ]);
    Rule { alert: &alert.name, expr: alert.fill(&alert.expr), r#for: promql_duration(alert.hold), labels, annotations }
}

/// Returns the duration in PromQL notation: `0s`, `30s`, `5m`, `1h`.
fn promql_duration(duration: Duration) -> String {
    match duration.as_secs() {
        0 => "0s".to_owned(),
        seconds if seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

fn pages(catalogue: &Catalogue) -> Vec<(&str, Vec<&Alert>)> {
    let mut pages: Vec<(&str, Vec<&Alert>)> = Vec::new();
    for alert in catalogue.alerts() {
        match pages.iter_mut().find(|(name, _)| *name == alert.name) {
            Some((_, alerts)) => alerts.push(alert),
            None => pages.push((&alert.name, vec![alert])),
        }
    }
    pages
}

fn page(name: &str, alerts: &[&Alert]) -> String {
    let mut text = format!("<!-- {GENERATED} -->\n# {name}\n");
    for alert in alerts {
        for (key, value) in &alert.labels {
            push(&mut text, format_args!("\n## With `{key}={value}`\n"));
        }
        let hold = match promql_duration(alert.hold) {
            hold if hold == "0s" => "at once".to_owned(),
            hold => format!("after {hold}"),
        };
        let source = if alert.builtin.is_some() { "Prometheus and the operator itself" } else { "Prometheus" };
        push(&mut text, format_args!("\nSeverity **{}**, {hold}. Raised by {source}.\n", alert.severity.as_str()));
        push(&mut text, format_args!("\n**What it means.** {}\n", alert.fill(&alert.meaning)));
        text.push_str("\n**First steps**\n\n");
        for (number, step) in alert.steps.iter().enumerate() {
            push(&mut text, format_args!("{}. {}\n", number + 1, step_markdown(&alert.fill(step))));
        }
        push(&mut text, format_args!("\n**Avoid.** {}\n", alert.fill(&alert.avoid)));
        push(&mut text, format_args!("\n```promql\n{}\n```\n", alert.fill(&alert.expr)));
    }
    text
}

/// Returns a step as Markdown. A step that begins with `kubectl` is a command up to the first `; `, followed by prose.
fn step_markdown(step: &str) -> String {
    if !step.starts_with("kubectl") {
        return step.to_owned();
    }
    match step.split_once("; ") {
        Some((command, words)) => format!("`{command}`: {words}"),
        None => format!("`{step}`"),
    }
}

fn index(catalogue: &Catalogue) -> String {
    let mut text = format!(
        "<!-- {GENERATED} -->\n# Runbook\n\nOne page per alert: what it means, what to do first, what not to do.\n\n\
         In the commands `NAMESPACE` is the namespace of the `MqttCluster`, `CLUSTER` its name and `POD` the broker's pod; \
         all three are labels of the alert (`namespace`, `mqtt_cluster`, `pod`). Where a command names `deploy/covey-operator`, \
         `NAMESPACE` is the operator's.\n\n| Alert | Severity | For | In short |\n|---|---|---|---|\n"
    );
    for (name, alerts) in pages(catalogue) {
        for alert in alerts {
            let first = alert.meaning.split_inclusive(". ").next().unwrap_or_default().trim();
            let (severity, hold) = (alert.severity.as_str(), promql_duration(alert.hold));
            push(&mut text, format_args!("| [{name}]({name}.md) | {severity} | {hold} | {first} |\n"));
        }
    }
    text
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    text.write_fmt(arguments).unwrap_or_default();
}
