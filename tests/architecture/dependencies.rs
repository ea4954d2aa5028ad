//! Every dependency in a Cargo.toml is named by the sources that it is there for.
//!
//! A normal dependency has to be named in `src/`, where tests within a module count too; one for tests anywhere in the
//! package. A file that `#[path]` includes counts for the package that includes it. A dependency that only the macros of
//! another crate name counts as unused.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Result, tracked};

/// The dependencies of a Cargo.toml.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Manifest {
    dependencies: BTreeMap<String, toml::Value>,
    dev_dependencies: BTreeMap<String, toml::Value>,
    build_dependencies: BTreeMap<String, toml::Value>,
}

#[test]
fn every_dependency_is_used() -> Result<()> {
    let manifests = tracked("*Cargo.toml")?;
    assert!(!manifests.is_empty(), "no manifests: this test reads them through git");
    assert_eq!(unused(&manifests, &tracked("*.rs")?)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn each_kind_of_unused_dependency_is_seen() -> Result<()> {
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let manifests = [
        file("outer/Cargo.toml", "[dependencies]\na-b = '1'\nc = '1'\nd = '1'\n[dev-dependencies]\ne = '1'\nf = '1'"),
        file("other/Cargo.toml", "[dev-dependencies]\ni = '1'\nk = '1'"),
        file("outer/inner/Cargo.toml", "[dependencies]\nd = '1'\n[build-dependencies]\ng = '1'\nh = '1'"),
    ];
    let sources = [
        file("outer/src/lib.rs", "use a_b::X;\n// use c::X;\nuse x::c::X;"),
        file("outer/tests/all.rs", "#[e::test]\nfn c() { c::x() }"),
        file("outer/inner/src/lib.rs", "type D = ::d::D; use f::F; use h::H;"),
        file("outer/inner/build.rs", "use g as x;"),
        file("outer/tests/shared.rs", "use i::I;"),
        file("other/tests/main.rs", "#[path = \"../../outer/tests/shared.rs\"]\nmod shared;"),
    ];
    let unused = unused(&manifests, &sources)?;
    let expected = [
        "outer: c",
        "outer: d",
        "outer: f (for tests)",
        "other: k (for tests)",
        "outer/inner: h (for the build script)",
    ];
    assert_eq!(unused, expected);
    Ok(())
}

/// Whether a source, by its path in the package, may be what a dependency is there for.
type IsFor = fn(&str) -> bool;

/// Dependencies that are in a Cargo.toml for nothing. Arguments: path and text of each file.
fn unused(manifests: &[(String, String)], sources: &[(String, String)]) -> Result<Vec<String>> {
    let folders: Vec<&str> = manifests.iter().filter_map(|(path, _)| path.strip_suffix("/Cargo.toml")).collect();
    let mut found = Vec::new();
    for (path, text) in manifests {
        let Some(folder) = path.strip_suffix("/Cargo.toml") else { continue };
        let manifest: Manifest = toml::from_str(text)?;
        let own: Vec<(&str, &str)> = sources
            .iter()
            .filter(|(source, _)| owner(&folders, source) == Some(folder))
            .flat_map(|(source, text)| {
                let path = source.get(folder.len() + 1..).unwrap_or_default();
                let included = included(source, text).filter_map(|file| sources.iter().find(|(path, _)| *path == file));
                let texts = included.map(|(_, text)| text.as_str()).chain([text.as_str()]);
                texts.map(|text| (path, text)).collect::<Vec<_>>()
            })
            .collect();
        let kinds: [(_, IsFor, _); 3] = [
            (&manifest.dependencies, |path| path.starts_with("src/"), ""),
            (&manifest.dev_dependencies, |path| path != "build.rs", " (for tests)"),
            (&manifest.build_dependencies, |path| path == "build.rs", " (for the build script)"),
        ];
        for (dependencies, is_for, remark) in kinds {
            let named = |name: &str| {
                let library = name.replace('-', "_");
                let mut texts = own.iter().filter(|(path, _)| is_for(path)).map(|(_, text)| text);
                texts.any(|text| text.lines().any(|line| names(line, &library)))
            };
            let missing = dependencies.keys().filter(|name| !named(name));
            found.extend(missing.map(|name| format!("{folder}: {name}{remark}")));
        }
    }
    Ok(found)
}

/// Paths of the files that a source includes with `#[path = "..."]`.
fn included(source: &str, text: &str) -> impl Iterator<Item = String> {
    let paths = text.lines().filter_map(|line| line.trim().strip_prefix("#[path = \"")?.strip_suffix("\"]"));
    let folder: Vec<&str> = source.split('/').rev().skip(1).collect();
    paths.map(move |path| {
        let mut parts: Vec<&str> = folder.iter().rev().copied().collect();
        for part in path.split('/') {
            if part == ".." {
                parts.pop();
            } else {
                parts.push(part);
            }
        }
        parts.join("/")
    })
}

/// The folder of the package that a source belongs to.
fn owner<'a>(folders: &[&'a str], source: &str) -> Option<&'a str> {
    let around = |folder: &&&str| source.strip_prefix(**folder).is_some_and(|rest| rest.starts_with('/'));
    folders.iter().filter(around).max_by_key(|folder| folder.len()).copied()
}

/// Whether a line of code names a library at the root of a path: `x::`, `::x::`, `use x;`, `use x as`.
fn names(line: &str, library: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices(library).any(|(at, _)| {
        let before = code.get(..at).unwrap_or_default();
        let after = code.get(at + library.len()..).unwrap_or_default();
        let head = before.strip_suffix("::").unwrap_or(before);
        let is_root = !head.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '>'));
        let is_use = before.trim_end().ends_with("use") && (after.starts_with(';') || after.starts_with(" as "));
        is_root && (after.starts_with("::") || is_use)
    })
}
