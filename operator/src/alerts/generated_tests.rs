//! The checked-in files are the generated ones, and agree with the sources that they name.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{catalogue::Catalogue, render};

const HOW: &str = "stale; run: cargo run -p covey-operator --example generate_monitoring";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn names(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect()
}

#[test]
fn generated_files_are_fresh() {
    for file in render::files(&Catalogue::shipped().unwrap()).unwrap() {
        let found = fs::read_to_string(root().join(&file.path)).unwrap_or_default();
        assert!(found == file.text, "{} is {HOW}", file.path);
    }
}

#[test]
fn every_runbook_page_has_its_alert() {
    let files = render::files(&Catalogue::shipped().unwrap()).unwrap();
    let pages: BTreeSet<String> =
        files.iter().filter_map(|file| file.path.strip_prefix("docs/runbook/")).map(str::to_owned).collect();
    assert_eq!(names(&root().join("docs/runbook")), pages, "{HOW}");
}

#[test]
fn chart_carries_the_crds() {
    let (source, chart) = (root().join("crds/yaml"), root().join("charts/covey/files/crds"));
    assert_eq!(names(&source), names(&chart), "{HOW}");
    for name in names(&source) {
        assert_eq!(fs::read(source.join(&name)).unwrap(), fs::read(chart.join(&name)).unwrap(), "{name} is {HOW}");
    }
}

#[test]
fn every_alert_has_a_fault_case() {
    let cases = names(&root().join("monitoring/tests"));
    for alert in Catalogue::shipped().unwrap().alerts() {
        assert!(cases.contains(&format!("{}.yml", alert.name)), "monitoring/tests/{}.yml is missing", alert.name);
    }
}

/// Returns the names of metrics in a text, without the suffix `_bucket` of histograms.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words
        .filter(|word| ["mqtt_broker_", "mqtt_operator_", "process_"].iter().any(|prefix| word.starts_with(prefix)));
    ours.map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned()).collect()
}

fn sources(path: &Path) -> Option<String> {
    if path.is_file() {
        return fs::read_to_string(path).ok();
    }
    let files = fs::read_dir(path).ok()?.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    Some(files.collect())
}

#[test]
fn rules_and_dashboards_ask_for_metrics_that_exist() {
    let texts = [
        "monitoring/rules.yml",
        "charts/covey/files/dashboards/cluster-overview.json",
        "operator/src/alerts/predicate.rs",
    ];
    let texts: String = texts.iter().map(|path| fs::read_to_string(root().join(path)).unwrap()).collect();
    let places = [("mqtt_operator_", "operator/src/metrics.rs"), ("", "broker/src/metrics")];
    for name in metrics_in(&texts) {
        let (prefix, place) = places.into_iter().find(|(prefix, _)| name.starts_with(prefix)).unwrap();
        let source = sources(&root().join(place)).unwrap();
        let short = name.strip_prefix(if prefix.is_empty() { "mqtt_broker_" } else { prefix }).unwrap_or(&name);
        let exists = [short, &name].iter().any(|name| source.contains(&format!("\"{name}\"")));
        assert!(exists, "{name} does not exist in {place}");
    }
}

#[test]
fn the_runbook_names_panels_that_exist() {
    let dashboard = "charts/covey/files/dashboards/cluster-overview.json";
    let dashboard = fs::read_to_string(root().join(dashboard)).unwrap();
    for alert in Catalogue::shipped().unwrap().alerts() {
        for panel in &alert.panels {
            assert!(dashboard.contains(&format!("\"title\": \"{panel}\"")), "{}: {panel:?}", alert.name);
        }
    }
}

#[test]
fn chart_has_the_version_of_the_program() {
    let chart = fs::read_to_string(root().join("charts/covey/Chart.yaml")).unwrap();
    for field in ["version", "appVersion"] {
        let line = format!("\n{field}: {}\n", env!("CARGO_PKG_VERSION"));
        assert!(chart.contains(&line), "{field} of the chart is not the version of the program");
    }
}
