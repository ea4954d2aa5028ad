//! The names that exist, read from the sources, the generated CRDs, the alert rules and the dashboards.

use std::collections::{BTreeMap, BTreeSet};

use super::members::Members;

/// Everything that a page may name.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Files that git tracks, and their directories.
    pub(crate) paths: BTreeSet<String>,
    /// Rust code of the product without comments and tests; line ends are replaced by spaces.
    pub(crate) code: String,
    /// Identifiers in all sources, tests and scripts.
    pub(crate) words: BTreeSet<String>,
    /// Identifiers in the product's Rust and in the chart.
    pub(crate) product_words: BTreeSet<String>,
    /// Names of Rust functions and of Go's tests.
    pub(crate) functions: BTreeSet<String>,
    /// Messages that are logged at the default level.
    pub(crate) logs: Vec<String>,
    /// Code of the metrics, which contains their names without the prefix.
    pub(crate) metrics: String,
    /// Condition types and reasons.
    pub(crate) reasons: BTreeSet<String>,
    /// Names of alerts.
    pub(crate) alerts: BTreeSet<String>,
    /// Titles of the dashboards' panels.
    pub(crate) panels: BTreeSet<String>,
    /// Fields of both custom resources, as `spec.image.tag`.
    pub(crate) fields: BTreeSet<String>,
    /// Values of the chart, as `monitoring.enabled`.
    pub(crate) values: BTreeSet<String>,
    /// Texts of scripts and commands, for their flags and variables.
    pub(crate) scripts: BTreeMap<String, String>,
    /// Names that each type and module of the product declares.
    pub(crate) members: Members,
}

impl Facts {
    /// Collects the names from `files`: path and text of every file in the tree.
    pub(crate) fn read(files: &[(String, String)]) -> Self {
        let mut facts = Self::default();
        for (path, text) in files {
            facts.paths.insert(path.clone());
            for (at, _) in path.match_indices('/') {
                facts.paths.extend(path.get(..at).map(str::to_owned));
            }
            if extension(path) == "rs" {
                facts.functions.extend(after(text, "fn "));
            }
            // The false claims that the test contains must not count as names.
            if path.starts_with("tests/architecture") || path.starts_with("docs/") || extension(path) == "md" {
                continue;
            }
            facts.words.extend(words(text));
            if path.ends_with("_test.go") {
                facts.functions.extend(after(text, "func "));
            }
            if extension(path) == "rs" && !is_test(path) {
                facts.members.add(path, text);
                let code = product(text);
                facts.product_words.extend(words(&code));
                facts.logs.extend(messages(&code));
                if path.starts_with("broker/src/metrics/") || path == "operator/src/metrics.rs" {
                    facts.metrics.push_str(&code);
                }
                if path == "crds/src/condition.rs" {
                    facts.reasons.extend(code.split('"').skip(1).step_by(2).map(str::to_owned));
                }
                facts.code.push_str(&code);
            }
            facts.other(path, text);
        }
        facts
    }

    fn other(&mut self, path: &str, text: &str) {
        if path.starts_with("charts/covey/templates/") {
            self.product_words.extend(words(text));
        }
        if path == "monitoring/rules.yml" {
            self.alerts
                .extend(text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned));
        }
        if path.starts_with("charts/covey/files/dashboards/") {
            let titles = text.lines().filter_map(|line| line.trim().strip_prefix("\"title\": \""));
            self.panels.extend(titles.filter_map(|title| title.split('"').next()).map(str::to_owned));
        }
        if path.starts_with("crds/yaml/") {
            self.fields.extend(fields(text));
        }
        if path == "charts/covey/values.yaml" {
            self.values.extend(keys(text).into_iter().map(|(path, _)| path.join(".")));
        }
        self.scripts.insert(path.to_owned(), text.to_owned());
    }
}

/// Returns the extension of a file name, or "".
pub(crate) fn extension(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(_, extension)| extension)
}

fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("tests.rs") || path.contains("/examples/")
}

/// Returns the words of letters, digits and `_`.
pub(crate) fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    let all = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    all.filter(|word| !word.is_empty()).map(str::to_owned)
}

fn after<'a>(text: &'a str, keyword: &'a str) -> impl Iterator<Item = String> + 'a {
    text.split(keyword).skip(1).filter_map(|rest| words(rest).next())
}

/// Returns the code without comments and without the tests at its end. A string over several lines becomes one line.
fn product(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    let mut code = String::new();
    for line in lines {
        if let Some(begun) = line.strip_suffix('\\') {
            code.push_str(begun);
        } else {
            code.push_str(line);
            code.push(' ');
        }
    }
    code
}

/// Returns the last string of each `info!`, `warn!` and `error!`.
fn messages(code: &str) -> Vec<String> {
    let calls = ["info!(", "warn!(", "error!("].iter().flat_map(|call| code.split(call).skip(1));
    calls.filter_map(message).collect()
}

fn message(arguments: &str) -> Option<String> {
    let (mut depth, mut quoted, mut escaped) = (1_usize, false, false);
    let (mut literal, mut last) = (String::new(), None);
    for c in arguments.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => {
                if quoted && depth == 1 {
                    last = Some(std::mem::take(&mut literal));
                }
                literal.clear();
                quoted = !quoted;
            }
            _ if quoted => literal.push(c),
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    last
}

/// Returns the keys of block-style YAML with their parent keys and their indentation.
fn keys(text: &str) -> Vec<(Vec<String>, usize)> {
    let mut found = Vec::new();
    let mut above: Vec<(usize, String)> = Vec::new();
    for line in text.lines() {
        let rest = line.trim_start();
        let depth = line.len() - rest.len();
        let Some((key, _)) = rest.split_once(':') else { continue };
        if !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric()) {
            above.retain(|(other, _)| *other < depth);
            above.push((depth, key.to_owned()));
            found.push((above.iter().map(|(_, key)| key.clone()).collect(), depth));
        }
    }
    found
}

/// Returns the fields of a custom resource: the keys under `properties` in the schema.
fn fields(crd: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (path, _) in keys(crd) {
        let Some(schema) = path.iter().position(|key| key == "openAPIV3Schema") else { continue };
        let mut rest = path.iter().skip(schema + 1);
        let mut field: Vec<&str> = Vec::new();
        while let Some(key) = rest.next() {
            match key.as_str() {
                "properties" => field.extend(rest.next().map(String::as_str)),
                "items" => {}
                // Another keyword of the schema.
                _ => {
                    field.clear();
                    break;
                }
            }
        }
        if path.last().is_some_and(|last| field.last().is_some_and(|field| field == last)) {
            found.insert(field.join("."));
        }
    }
    found
}
