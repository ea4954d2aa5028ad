//! What is generated is what is checked in.

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
