//! Renders the catalogue as Prometheus rules and as the pages of the runbook.
//!
//! Called by the example `generate_monitoring`, which writes the files, and by the test that checks that they are
//! current. Pure: the same catalogue always gives the same bytes.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde::Serialize;

use super::catalogue::{Alert, Catalogue, Severity};

/// Value of the label `kubernetes_operator_part_of`.
pub const PART_OF: &str = "covey";
/// Identifier of the dashboard that alerts point to.
pub const DASHBOARD_UID: &str = "covey-cluster-overview";
const RUNBOOK_URL: &str = "https://github.com/covey-io/covey/blob/main/docs/runbook";
const GENERATED: &str = "Generated from operator/src/alerts/catalogue.yaml; do not edit.";
/// What stands above the tables of the runbook's index.
const INDEX_HEAD: &str = include_str!("runbook.md");
const WAKES: &str = "Wakes somebody";
const WAITS: &str = "Can wait until morning";
const SILENT: &str = "Cannot fire in this version";

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
        section(&mut text, alert);
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

fn section(text: &mut String, alert: &Alert) {
    let hold = match promql_duration(alert.hold) {
        hold if hold == "0s" => "at once".to_owned(),
        hold => format!("after {hold}"),
    };
    let source = if alert.builtin.is_some() { "Prometheus and the operator itself" } else { "Prometheus" };
    push(text, format_args!("\nSeverity **{}**, {hold}. Raised by {source}.\n", alert.severity.as_str()));
    push(text, format_args!("\n**What it means.** {}\n", alert.fill(&alert.meaning)));
    push(text, format_args!("\n**What clients see.** {}\n", alert.fill(&alert.clients)));
    text.push_str("\n**First steps**\n\n");
    for (number, step) in (1..).zip(&alert.steps) {
        push(text, format_args!("{number}. {}\n", step_markdown(&alert.fill(step))));
        for sample in alert.samples.iter().filter(|sample| sample.step == number) {
            push_sample(text, &sample.prints);
        }
    }
    push(text, format_args!("\n**Avoid.** {}\n", alert.fill(&alert.avoid)));
    push(text, format_args!("\n**How to know it is over.** {}\n", alert.fill(&alert.resolved)));
    push_panels(text, &alert.panels);
    push(text, format_args!("\n```promql\n{}\n```\n", alert.fill(&alert.expr)));
}

/// Example output, indented so that it stays part of its step.
fn push_sample(text: &mut String, prints: &str) {
    text.push_str("\n   ```text\n");
    for line in prints.lines() {
        push(text, format_args!("   {line}\n"));
    }
    text.push_str("   ```\n");
}

fn push_panels(text: &mut String, panels: &[String]) {
    let noun = if panels.len() == 1 { "panel" } else { "panels" };
    let titles: Vec<String> = panels.iter().map(|panel| format!("\"{panel}\"")).collect();
    if !titles.is_empty() {
        push(text, format_args!("\n**Dashboard.** The {noun} {}.\n", titles.join(", ")));
    }
}

fn index(catalogue: &Catalogue) -> String {
    let note = "The text above the tables is operator/src/alerts/runbook.md.";
    let mut text = format!("<!-- {GENERATED} {note} -->\n{INDEX_HEAD}");
    for heading in [WAKES, WAITS, SILENT] {
        push(&mut text, format_args!("\n## {heading}\n\n| Alert | Severity | For | In short |\n|---|---|---|---|\n"));
        for alert in catalogue.alerts().iter().filter(|alert| heading_of(alert) == heading) {
            let name = &alert.name;
            let first = alert.meaning.split_inclusive(". ").next().unwrap_or_default().trim();
            let (severity, hold) = (alert.severity.as_str(), promql_duration(alert.hold));
            push(&mut text, format_args!("| [{name}]({name}.md) | {severity} | {hold} | {first} |\n"));
        }
    }
    text
}

/// The table of the index in which an alert stands.
fn heading_of(alert: &Alert) -> &'static str {
    match alert.severity {
        _ if !alert.can_fire() => SILENT,
        Severity::Critical => WAKES,
        Severity::Warning | Severity::Info => WAITS,
    }
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    text.write_fmt(arguments).unwrap_or_default();
}
