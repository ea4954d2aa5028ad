//! Index of the names that each type and each module declares. Pages use such names: `Router::route`, `rollout::next`.
//!
//! Reads the shape that rustfmt gives: items begin in the first column and end with a brace there.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::words;

/// Owners that other libraries declare.
const FOREIGN: [&str; 3] = ["std", "derive_more", "SnapshotPolicy"];

/// Names by what declares them: a type, a trait or a module.
#[derive(Debug, Default)]
pub(crate) struct Members(BTreeMap<String, BTreeSet<String>>);

impl Members {
    /// Adds the declarations of a source file.
    pub(crate) fn add(&mut self, path: &str, text: &str) {
        let mut owners: Vec<String> = Vec::new();
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            if line.starts_with(|c: char| c.is_ascii_alphabetic()) {
                let modules = path.trim_end_matches(".rs").split('/');
                for module in modules {
                    self.declare(module, declared(line));
                    self.declare(&format!("covey_{module}"), declared(line));
                }
                owners = if is_item(line) { words(line).collect() } else { Vec::new() };
            } else if line == "}" {
                owners.clear();
            }
            for owner in &owners {
                self.declare(owner, declared(line.trim_start()));
            }
        }
    }

    fn declare(&mut self, owner: &str, name: Option<String>) {
        self.0.entry(owner.to_owned()).or_default().extend(name);
    }

    /// Returns what is wrong with a name such as `Router::route`, if it has that form.
    pub(crate) fn fault(&self, text: &str) -> Option<String> {
        let parts: Vec<&str> = text.split("::").collect();
        let is_name = |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if parts.len() < 2 || !parts.iter().all(is_name) || parts.first().is_some_and(|first| FOREIGN.contains(first)) {
            return None;
        }
        let wrong = parts.windows(2).find(|pair| {
            let [owner, name] = pair else { return false };
            !self.0.get(*owner).is_some_and(|names| names.contains(*name))
        });
        wrong.map(|pair| format!("nothing declares {}", pair.join("::")))
    }
}

fn is_item(line: &str) -> bool {
    let words: Vec<String> = words(line).collect();
    ["impl", "struct", "enum", "trait"].iter().any(|keyword| words.iter().any(|word| word == keyword))
}

/// Returns the name that a line declares: that of an item, or else its first word, as of a field or a variant.
fn declared(line: &str) -> Option<String> {
    let all: Vec<String> = words(line).collect();
    let keyword =
        |word: &String| ["fn", "struct", "enum", "trait", "type", "mod", "const", "static"].contains(&word.as_str());
    let visibility = |word: &&String| ["pub", "crate", "super", "in", "async", "use"].contains(&word.as_str());
    match all.iter().position(keyword) {
        // `const fn` has two keywords.
        Some(at) => all.iter().skip(at).find(|word| !keyword(word)).cloned(),
        None => all.iter().find(|word| !visibility(word)).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_looked_up_in_what_declares_it() {
        let mut members = Members::default();
        let text = "pub struct Router {\n    shards: Vec<u8>,\n}\n\nimpl Router {\n    pub(crate) async fn route(&self) {}\n}\n\n\
                    enum Step {\n    /// Waits.\n    Wait { reason: String },\n}\n\npub fn next() {}\n";
        members.add("operator/src/cluster/rollout.rs", text);
        for right in
            ["Router::route", "Router::shards", "Step::Wait", "rollout::next", "rollout::Step::Wait", "std::fs"]
        {
            assert_eq!(members.fault(right), None, "{right}");
        }
        for wrong in ["Router::next", "Step::Done", "rollout::route", "Rooter::route", "covey_rollout::last"] {
            assert!(members.fault(wrong).is_some(), "{wrong}");
        }
    }
}
