//! Generates the Prometheus rules and the runbook from the alert catalogue, and copies the CRDs into the chart.
//!
//! Run `cargo run -p covey-operator --example generate_monitoring` after each change of the catalogue or of the CRDs.

use std::{fs, path::Path};

use anyhow::Context as _;
use covey_operator::alerts::{catalogue::Catalogue, render};

const CRDS: &str = "crds/yaml";
const CHART_CRDS: &str = "charts/covey/files/crds";

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate has no parent folder")?;
    clear_runbook(&root.join("docs/runbook"))?;
    for file in render::files(&Catalogue::shipped()?)? {
        let path = root.join(&file.path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, file.text).with_context(|| format!("failed to write {}", path.display()))?;
    }
    copy_crds(&root.join(CRDS), &root.join(CHART_CRDS))
}

/// Removes all pages, so that no page of a removed alert is left.
fn clear_runbook(folder: &Path) -> anyhow::Result<()> {
    if folder.is_dir() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                fs::remove_file(path)?;
            }
        }
    }
    Ok(())
}

fn copy_crds(from: &Path, to: &Path) -> anyhow::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let path = entry?.path();
            let name = path.file_name().context("a CRD file has no name")?;
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}
