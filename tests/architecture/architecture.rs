//! Architecture rules that the compiler does not check: dependencies between crates (deny.toml), libraries that the
//! inner crates must not reach, licences and sources of dependencies, and the size of files.

mod dependencies;
mod documents;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Deserialize)]
struct Deny {
    bans: Bans,
    licenses: Licenses,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    /// The only crates that may depend on it. If empty, the crate may not be in the tree at all.
    #[serde(default)]
    wrappers: Vec<String>,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Deserialize)]
struct EdgeKind {
    /// `None` for a normal dependency.
    kind: Option<String>,
}

/// The dependency tree by package name. Versions are ignored.
struct Tree {
    packages: Vec<Package>,
    /// Dependent, dependency, and whether it is a normal dependency.
    edges: Vec<(String, String, bool)>,
}

fn root() -> Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?)
}

fn deny() -> Result<Deny> {
    Ok(toml::from_str(&std::fs::read_to_string(root()?.join("deny.toml"))?)?)
}

fn tree() -> Result<Tree> {
    // Not `--offline`: crates of other platforms are in the tree too, and a build does not download them.
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root()?)
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
    let names: BTreeMap<&str, &str> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package.name.as_str())).collect();
    let mut edges = Vec::new();
    for node in &metadata.resolve.nodes {
        for edge in &node.deps {
            let normal = edge.dep_kinds.iter().any(|kind| kind.kind.is_none());
            let [Some(from), Some(to)] = [&node.id, &edge.pkg].map(|id| names.get(id.as_str())) else {
                return Err("cargo metadata names a package that it does not list".into());
            };
            edges.push(((*from).to_owned(), (*to).to_owned(), normal));
        }
    }
    Ok(Tree { packages: metadata.packages, edges })
}

/// Returns a sentence for each violated ban.
fn broken_bans(bans: &[Ban], edges: &[(String, String, bool)], packages: &BTreeSet<&str>) -> Vec<String> {
    let mut broken = Vec::new();
    for ban in bans {
        if ban.wrappers.is_empty() && packages.contains(ban.name.as_str()) {
            broken.push(format!("{} may not be in the tree", ban.name));
        }
        for (dependent, dependency, _) in edges {
            if *dependency == ban.name && !ban.wrappers.is_empty() && !ban.wrappers.contains(dependent) {
                broken.push(format!("{dependent} may not depend on {dependency}"));
            }
        }
    }
    broken
}

#[test]
fn arrows_between_crates_are_those_of_deny_toml() -> Result<()> {
    let tree = tree()?;
    let names = tree.packages.iter().map(|package| package.name.as_str()).collect();
    let bans = deny()?.bans.deny;
    for ban in bans.iter().filter(|ban| ban.name.starts_with("covey-")) {
        assert!(
            tree.packages.iter().any(|package| package.name == ban.name),
            "deny.toml names {}, which is gone",
            ban.name
        );
    }
    assert_eq!(broken_bans(&bans, &tree.edges, &names), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_forbidden_arrow_is_seen() {
    let bans = [Ban { name: "b".into(), wrappers: vec!["a".into()] }, Ban { name: "c".into(), wrappers: vec![] }];
    let edges = [("a".into(), "b".into(), true), ("x".into(), "b".into(), false)];
    let broken = broken_bans(&bans, &edges, &BTreeSet::from(["a", "b", "c", "x"]));
    assert_eq!(broken, ["x may not depend on b", "c may not be in the tree"]);
}

#[test]
fn the_inner_crates_know_no_runtime_and_no_sockets() -> Result<()> {
    let tree = tree()?;
    for inner in ["covey-codec", "covey-core", "covey-types"] {
        let mut reached = BTreeSet::from([inner]);
        loop {
            let more: Vec<&str> = tree
                .edges
                .iter()
                .filter(|(from, to, normal)| {
                    *normal && reached.contains(from.as_str()) && !reached.contains(to.as_str())
                })
                .map(|(_, to, _)| to.as_str())
                .collect();
            if more.is_empty() {
                break;
            }
            reached.extend(more);
        }
        for outside in ["tokio", "mio", "socket2", "rustix", "jiff", "chrono", "tracing", "kube", "tonic"] {
            assert!(!reached.contains(outside), "{inner} reaches {outside}");
        }
    }
    Ok(())
}

#[test]
fn every_licence_is_allowed_and_every_source_is_the_registry() -> Result<()> {
    let allowed: Vec<spdx::Licensee> =
        deny()?.licenses.allow.iter().map(|name| spdx::Licensee::parse(name)).collect::<std::result::Result<_, _>>()?;
    for package in tree()?.packages {
        let Some(source) = &package.source else { continue };
        assert!(source.starts_with("registry+"), "{} comes from {source}", package.name);
        let license = package.license.unwrap_or_default();
        let expression = spdx::Expression::parse_mode(&license, spdx::ParseMode::LAX)?;
        assert!(
            expression.evaluate(|wanted| allowed.iter().any(|licensee| licensee.satisfies(wanted))),
            "{}: {license} is not allowed by deny.toml",
            package.name
        );
    }
    Ok(())
}

#[test]
fn files_are_short_and_say_what_they_own() -> Result<()> {
    let mut broken = Vec::new();
    for (path, text) in sources()? {
        if text.lines().count() > 500 {
            broken.push(format!("{path} has more than 500 lines"));
        }
        if path.contains("/src/") && !path.ends_with("tests.rs") && !text.starts_with("//!") {
            broken.push(format!("{path} does not begin with a module comment (//!)"));
        }
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.starts_with("//") && ["TODO", "FIXME", "XXX"].iter().any(|mark| line.contains(mark)) {
                broken.push(format!("{path}:{}: unfinished work belongs in an issue", number + 1));
            }
        }
    }
    assert_eq!(broken, Vec::<String>::new());
    Ok(())
}

/// How a generated source begins.
const GENERATED: &str = "// This file is @generated";

/// Returns path and text of every Rust source that git tracks, with paths relative to the root; generated ones are left out.
fn sources() -> Result<Vec<(String, String)>> {
    let all = tracked("*.rs")?.into_iter();
    let found: Vec<(String, String)> = all
        .filter(|(path, text)| path != "tests/architecture/architecture.rs" && !text.starts_with(GENERATED))
        .collect();
    assert!(!found.is_empty(), "git lists no sources");
    Ok(found)
}

/// Path from the root and text of the files that git knows by a pattern.
fn tracked(pattern: &str) -> Result<Vec<(String, String)>> {
    let root = root()?;
    let output = Command::new("git").args(["ls-files", "-z", pattern]).current_dir(&root).output()?;
    let list = String::from_utf8(output.stdout)?;
    let paths = list.split('\0').filter(|path| !path.is_empty());
    Ok(paths.filter_map(|path| Some((path.to_owned(), std::fs::read_to_string(root.join(path)).ok()?))).collect())
}
