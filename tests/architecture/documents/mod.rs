//! Checks that the names in the documentation exist: log lines, conditions, alerts, metrics, panels, fields, commands,
//! files, links and tests.
//!
//! Text between backticks is checked by its shape. The prose of the runbook is checked as well, because its steps are
//! generated from plain text. Sections called "Not yet" may name planned things.

mod facts;
mod members;
mod page;

use std::collections::BTreeSet;

use self::facts::{Facts, extension, words};
use self::page::{Kind, Page, Piece};
use super::{Result, root};

/// Names that look like ours but are not, with their owner.
const FOREIGN: [(&str, &str); 4] = [
    ("OOMKilled", "a reason of the kubelet"),
    ("LimitNOFILE", "a setting of systemd"),
    ("CleanStart", "a flag of CONNECT"),
    ("offline_qos1_message_survives_restart", "shows how tests are named"),
];

/// Programs whose command lines occur in spans.
const PROGRAMS: [&str; 11] =
    ["kubectl", "helm", "cargo", "docker", "go", "gofmt", "make", "rm", "kill", "covey", "mosquitto_sub"];

/// Returns whether a page is about other programs or about decisions. Only its files, tests, metrics and links are
/// checked.
fn is_history(path: &str) -> bool {
    path.starts_with("docs/adr/") || path == "docs/performance.md"
}

fn is_foreign(name: &str) -> bool {
    FOREIGN.iter().any(|(foreign, _)| *foreign == name)
}

/// Returns a sentence for each false claim of a piece.
fn false_claims(page: &Page, piece: &Piece, facts: &Facts) -> Vec<String> {
    let mut wrong = names_anywhere(&piece.text, piece.planned, facts);
    match piece.kind {
        Kind::Span => wrong.extend(span(page, piece, facts)),
        Kind::Fence => wrong.extend(command(&piece.text, piece.planned, facts)),
        Kind::Prose if page.path.starts_with("docs/runbook/") => wrong.extend(runbook_prose(&piece.text, facts)),
        Kind::Prose => {}
    }
    wrong
}

/// Checks names with a prefix of ours, anywhere in a text.
fn names_anywhere(text: &str, planned: bool, facts: &Facts) -> Vec<String> {
    let mut wrong = Vec::new();
    for word in words(text) {
        let metric = ["mqtt_broker_", "mqtt_operator_"].iter().find_map(|prefix| word.strip_prefix(prefix));
        if let Some(short) = metric.filter(|short| !short.is_empty()) {
            let bare = ["_bucket", "_sum", "_count"].iter().find_map(|end| short.strip_suffix(end)).unwrap_or(short);
            if ![short, bare, &word].iter().any(|name| facts.metrics.contains(&format!("\"{name}\""))) {
                wrong.push(format!("{word} is no metric"));
            }
        }
        if word.starts_with("COVEY_") && !facts.words.contains(&word) {
            wrong.push(format!("{word} is read by nothing"));
        }
        let ours = word.strip_prefix("Mqtt").is_some_and(|rest| rest.starts_with(char::is_uppercase));
        let exists = |name: &str| facts.alerts.contains(name) || facts.product_words.contains(name);
        if ours && !planned && !exists(&word) && !exists(word.trim_end_matches('s')) {
            wrong.push(format!("{word} is no alert and no kind"));
        }
    }
    for (at, _) in text.match_indices("covey.io/") {
        let name = text.get(at..).unwrap_or_default();
        let end =
            name.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '/' | '-')).unwrap_or(name.len());
        let name = name.get(..end).unwrap_or_default().trim_end_matches('.');
        let version = name.strip_prefix("covey.io/").is_some_and(|version| facts.product_words.contains(version));
        if !version && !facts.code.contains(&format!("\"{name}\"")) {
            wrong.push(format!("{name} is no label and no annotation"));
        }
    }
    wrong
}

/// Checks a text between backticks by its shape.
fn span(page: &Page, piece: &Piece, facts: &Facts) -> Vec<String> {
    let text = piece.text.as_str();
    let mut wrong = command(text, piece.planned, facts);
    let word = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let camel = text.starts_with(char::is_uppercase) && text.contains(char::is_lowercase);
    if is_foreign(text) {
        return wrong;
    }
    if word && text.matches('_').count() > 2 && text.starts_with(char::is_lowercase) && !text.starts_with("mqtt_") {
        if !facts.functions.contains(text) && !facts.code.contains(&format!("\"{text}\"")) {
            wrong.push(format!("no function is called {text}"));
        }
    } else if word && text.starts_with("Test") && camel && !facts.functions.contains(text) {
        wrong.push(format!("no test is called {text}"));
    }
    if is_file_name(text) && !facts.code.contains(text) && !is_history(&page.path) {
        let end = format!("/{text}");
        if !facts.paths.iter().any(|path| path == text || path.ends_with(&end)) {
            wrong.push(format!("no file is called {text}"));
        }
    }
    if is_history(&page.path) || piece.planned {
        return wrong;
    }
    let snake = word && text.contains('_') && text.starts_with(char::is_lowercase) && !text.starts_with("mqtt_");
    if snake && wrong.is_empty() && !facts.words.contains(text) && !facts.functions.contains(text) {
        wrong.push(format!("{text} is named nowhere in the sources"));
    }
    if word && camel && !text.starts_with("Test") && !text.starts_with("Mqtt") && !facts.product_words.contains(text) {
        wrong.push(format!("{text} is no condition, reason, kind or type"));
    }
    if is_message(text) {
        wrong.extend(
            message_fragments(text)
                .filter(|part| !facts.code.contains(part.as_str()))
                .map(|part| format!("no log line and no error says {part:?}")),
        );
    }
    wrong.extend(field(text, facts));
    wrong.extend(facts.members.fault(text));
    wrong
}

fn is_file_name(text: &str) -> bool {
    let extension = text.rsplit_once('.').filter(|(name, _)| !name.is_empty()).map(|(_, extension)| extension);
    extension.is_some_and(|extension| ["rs", "md", "yml", "yaml", "json", "toml", "proto", "go"].contains(&extension))
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Returns whether a text is a message: several words that begin in lower case and are no command line.
fn is_message(text: &str) -> bool {
    let mut all = text.split_whitespace();
    let first = all.next().unwrap_or_default();
    all.next().is_some()
        && (first == "..." || first.chars().all(|c| c.is_ascii_lowercase()))
        && !PROGRAMS.contains(&first)
        && !text.contains(['→', '=', '{', '(', '<', '/', '"'])
}

/// Returns the parts of a message between its values, for which `...` and single capital letters stand.
fn message_fragments(text: &str) -> impl Iterator<Item = String> + '_ {
    let mut parts = vec![String::new()];
    for word in text.split_whitespace() {
        let value = word == "..." || (word.len() <= 2 && word.starts_with(char::is_uppercase));
        if value {
            let comma = if word.ends_with(',') { ", " } else { "" };
            parts.push(comma.trim_start_matches(", ").to_owned());
        } else if let Some(part) = parts.last_mut() {
            if !part.is_empty() {
                part.push(' ');
            }
            part.push_str(word);
        }
    }
    parts.into_iter().filter(|part| !part.is_empty())
}

/// Checks a path such as `sessions.expiryMax`: a field of a custom resource or a value of the chart.
fn field(text: &str, facts: &Facts) -> Option<String> {
    let path = text.split(": ").next().unwrap_or_default().replace("[]", "");
    let plain = path.split('.').all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric()));
    let first = path.split('.').next().unwrap_or_default();
    if !plain || !path.contains('.') || is_file_name(&path) || is_foreign(&path) {
        return None;
    }
    let ours = ["", "spec.", "status."].iter().any(|prefix| facts.fields.contains(&format!("{prefix}{first}")));
    let exists = ["", "spec.", "status."].iter().any(|prefix| facts.fields.contains(&format!("{prefix}{path}")));
    ((ours || facts.values.contains(first)) && !exists && !facts.values.contains(&path))
        .then(|| format!("{path} is no field and no value of the chart"))
}

/// Checks files, flags, subcommands and fields in a command line or a path.
fn command(text: &str, planned: bool, facts: &Facts) -> Vec<String> {
    let mut wrong = Vec::new();
    let (mut script, mut previous) = (None, "");
    for (at, word) in text.split_whitespace().enumerate() {
        let word = word.trim_matches(['\'', '"', ',', ';', '(', ')']);
        let lower = !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        let path = word.trim_end_matches('/').trim_end_matches(':');
        let ours = path.split_once('/').is_some_and(|(top, _)| facts.paths.contains(top));
        if ours && !path.contains("...") {
            let exists = |path: &String| facts.paths.contains(path) || facts.paths.contains(&format!("{path}.rs"));
            let missing = braces(path).into_iter().filter(|path| !exists(path));
            wrong.extend(missing.map(|path| format!("there is no {path}")));
            script = facts.scripts.get(path).map(String::as_str).filter(|text| text.starts_with("#!")).or(script);
        }
        let section = format!("section_{word}()");
        if previous == "tests/run" && lower && !script.is_some_and(|script| script.contains(&section)) {
            wrong.push(format!("tests/run has no section {word}"));
        }
        let verb = (at == 1 && previous == "covey") || (previous == "--" && text.contains("-p covey -- "));
        if verb && lower && !planned {
            let files = [format!("covey/src/{word}.rs"), format!("covey/src/{word}/mod.rs")];
            if !files.iter().any(|file| facts.paths.contains(file)) {
                wrong.push(format!("covey has no command {word}"));
            }
        }
        if let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty()) {
            let flag = flag.split('=').next().unwrap_or_default();
            let argument = format!(" {}: ", flag.replace('-', "_"));
            let exists = match script {
                Some(script) => script.contains(&format!("--{flag}")),
                // A flag alone between backticks is an option of `covey`.
                None => at > 0 || facts.code.contains(&argument),
            };
            if !exists {
                wrong.push(format!("--{flag} is no option"));
            }
        }
        previous = word;
    }
    wrong.extend(["spec.", "status."].iter().flat_map(|root| paths_in_objects(text, root, facts)));
    wrong
}

/// Checks paths in objects, such as `.status.nodes[*]` and `spec.paused`: the part after the root must be a field.
fn paths_in_objects(text: &str, root: &str, facts: &Facts) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, _) in text.match_indices(root) {
        let before = text.get(..at).and_then(|text| text.chars().next_back());
        let path = text.get(at..).unwrap_or_default();
        let end = path.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(path.len());
        let path = path.get(..end).unwrap_or_default().trim_end_matches('.');
        let begins = before.is_none_or(|c| matches!(c, '.' | '{' | ' '));
        if begins && extension(path) != "rs" && !facts.fields.contains(path) {
            wrong.push(format!("{path} is no field"));
        }
    }
    wrong
}

/// Expands `a/{b,c}` to `a/b` and `a/c`.
fn braces(path: &str) -> Vec<String> {
    let Some((head, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let Some((middle, tail)) = rest.split_once('}') else { return vec![path.to_owned()] };
    middle.split(',').map(|part| format!("{head}{part}{tail}")).collect()
}

/// Checks the prose of the runbook, whose steps contain names without backticks.
fn runbook_prose(text: &str, facts: &Facts) -> Vec<String> {
    let mut wrong = Vec::new();
    let tokens = text.split(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | ':' | '(' | ')' | '|' | '"' | '/'));
    for token in tokens.map(|token| token.trim_end_matches(['.', '?'])) {
        let word = token.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let humps = word
            && token.starts_with(char::is_uppercase)
            && token.contains(char::is_lowercase)
            && token.chars().skip(1).any(char::is_uppercase);
        if humps && !token.starts_with("Mqtt") && !is_foreign(token) && !facts.product_words.contains(token) {
            wrong.push(format!("{token} is no condition, reason, kind or type"));
        }
        if word && token.contains('_') && !token.contains("mqtt_") && !facts.code.contains(&format!("\"{token}\"")) {
            wrong.push(format!("{token} is no value of a label"));
        }
        wrong.extend(field(token, facts));
    }
    if text.contains("panel") {
        let panels = text.split('"').skip(1).step_by(2);
        wrong.extend(
            panels.filter(|panel| !facts.panels.contains(*panel)).map(|panel| format!("no panel is called {panel:?}")),
        );
    }
    wrong
}

/// Checks the patterns of `grep` in a pipe: the first one must match a log line of the default level, a further one may
/// match a value in it.
fn greps(text: &str, facts: &Facts) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, grep) in text.split("| grep ").skip(1).enumerate() {
        let quoted: Vec<&str> = grep.split('\'').skip(1).step_by(2).collect();
        let bare = grep.split_whitespace().filter(|word| !word.starts_with('-')).take(1);
        for pattern in if quoted.is_empty() { bare.collect() } else { quoted } {
            let carried = at > 0 && facts.code.contains(&format!("\"{pattern}\""));
            if !carried && !facts.logs.iter().any(|log| log.to_lowercase().contains(&pattern.to_lowercase())) {
                wrong.push(format!("no log line of the default level has {pattern:?}"));
            }
        }
    }
    wrong
}

/// Returns every false claim of a page.
fn faults(page: &Page, pages: &[Page], facts: &Facts) -> Vec<String> {
    let mut found = Vec::new();
    for piece in &page.pieces {
        let mut wrong = false_claims(page, piece, facts);
        if piece.kind == Kind::Span && piece.text.contains(" logs ") {
            wrong.extend(greps(&piece.text, facts));
        }
        found.extend(wrong.into_iter().map(|wrong| format!("{}:{}: {wrong}", page.path, piece.line)));
    }
    for (line, target) in page.links.iter().filter(|(_, target)| !target.contains("://")) {
        let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
        let path = if file.is_empty() { page.path.clone() } else { resolve(&page.path, file) };
        let anchors = pages.iter().find(|page| page.path == path).map(|page| &page.anchors);
        let anchored = anchor.is_empty() || anchors.is_some_and(|anchors| anchors.iter().any(|known| known == anchor));
        if !facts.paths.contains(&path) || !anchored {
            found.push(format!("{}:{line}: the link to {target} leads nowhere", page.path));
        }
    }
    found
}

fn resolve(page: &str, file: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in file.trim_end_matches('/').split('/') {
        match part {
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

fn tree() -> Result<(Vec<Page>, Facts)> {
    let root = root()?;
    let output = std::process::Command::new("git").args(["ls-files", "-z"]).current_dir(&root).output()?;
    let list = String::from_utf8(output.stdout)?;
    // Of a file that is no text only the path counts.
    let read =
        |path: &str| std::fs::read(root.join(path)).ok().map(|bytes| String::from_utf8(bytes).unwrap_or_default());
    let files: Vec<(String, String)> = list
        .split('\0')
        .filter(|path| !path.is_empty())
        .filter_map(|path| Some((path.to_owned(), read(path)?)))
        .collect();
    let is_page = |path: &str| extension(path) == "md" && (path.starts_with("docs/") || !path.contains('/'));
    let pages = files.iter().filter(|(path, _)| is_page(path)).map(|(path, text)| Page::parse(path, text)).collect();
    Ok((pages, Facts::read(&files)))
}

#[test]
fn what_the_pages_name_exists() -> Result<()> {
    let (pages, facts) = tree()?;
    assert!(pages.len() > 40 && facts.logs.len() > 50 && facts.fields.len() > 80, "the tree was not read: {facts:?}");
    let found: Vec<String> = pages.iter().flat_map(|page| faults(page, &pages, &facts)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

fn spans(page: &Page) -> impl Iterator<Item = &str> {
    page.pieces.iter().filter(|piece| piece.kind == Kind::Span).map(|piece| piece.text.as_str())
}

#[test]
fn every_exception_is_needed() -> Result<()> {
    let (pages, facts) = tree()?;
    for (name, _) in FOREIGN {
        let named = pages.iter().flat_map(|page| &page.pieces).any(|piece| piece.text.contains(name));
        assert!(named && !facts.product_words.contains(name) && !facts.functions.contains(name), "{name}");
    }
    Ok(())
}

#[test]
fn every_condition_and_every_field_has_its_page() -> Result<()> {
    let (pages, facts) = tree()?;
    let named = |paths: &[&str]| -> BTreeSet<String> {
        let pages = pages.iter().filter(|page| paths.contains(&page.path.as_str()));
        pages.flat_map(spans).map(|span| span.replace("[]", "")).collect()
    };
    let conditions = named(&["docs/operations.md", "docs/access.md"]);
    let operations = pages.iter().find(|page| page.path == "docs/operations.md").ok_or("no docs/operations.md")?;
    let prose: BTreeSet<String> = operations.pieces.iter().flat_map(|piece| words(&piece.text)).collect();
    let missing: Vec<&String> =
        facts.reasons.iter().filter(|reason| !conditions.contains(*reason) && !prose.contains(*reason)).collect();
    assert!(missing.is_empty(), "docs/operations.md and docs/access.md do not name {missing:?}");
    let configuration = named(&["docs/configuration.md"]);
    let is_leaf = |field: &str| !facts.fields.iter().any(|other| other.starts_with(&format!("{field}.")));
    // Rules of users and of anonymous clients have their own table, and so do the sources of connections.
    let shared = ["acl.anonymousRules.", "acl.", "listeners.from.", "networkPolicy.monitoringFrom."];
    let fields = facts.fields.iter().filter_map(|field| field.strip_prefix("spec.").filter(|_| is_leaf(field)));
    let fields: Vec<&str> = fields
        .map(|field| shared.iter().find_map(|list| field.strip_prefix(list)).unwrap_or(field))
        .filter(|field| !configuration.contains(*field) && !configuration.contains(&format!("acl.{field}")))
        .collect();
    assert!(fields.is_empty(), "docs/configuration.md does not name {fields:?}");
    Ok(())
}

#[test]
fn alerts_that_cannot_fire_say_so_on_their_pages() -> Result<()> {
    let (pages, _) = tree()?;
    let operations = pages.iter().find(|page| page.path == "docs/operations.md").ok_or("no docs/operations.md")?;
    let line = |words: &str| operations.pieces.iter().find(|piece| piece.text.contains(words)).map(|piece| piece.line);
    let begin = line("So these alerts cannot fire").ok_or("docs/operations.md lists no alerts that cannot fire")?;
    let end = line("What they are for").ok_or("the list of alerts that cannot fire has no end")?;
    let listed =
        operations.pieces.iter().filter(|piece| piece.kind == Kind::Span && (begin..=end).contains(&piece.line));
    let listed: BTreeSet<&str> = listed.map(|piece| piece.text.as_str()).collect();
    let say = |page: &&Page| page.pieces.iter().any(|piece| piece.text.contains("It cannot fire in this version"));
    let said: BTreeSet<&str> = pages
        .iter()
        .filter(say)
        .filter_map(|page| page.path.strip_prefix("docs/runbook/")?.strip_suffix(".md"))
        .collect();
    let said: BTreeSet<&str> = said.into_iter().filter(|name| *name != "README").collect();
    assert_eq!(listed, said);
    Ok(())
}

/// One false claim of each kind. `docs/runbook/x.md` is checked like a page of the runbook.
const PLANTED: [(&str, &str); 21] = [
    ("docs/x.md", "`Router::teleport`"),
    ("docs/x.md", "`the queue was emptied by hand`"),
    ("docs/x.md", "`... is damaged beyond hope`"),
    ("docs/x.md", "`AclChangeHeld`"),
    ("docs/x.md", "MqttNothingAtAll"),
    ("docs/x.md", "mqtt_broker_nothing_total"),
    ("docs/x.md", "covey.io/approve-access"),
    ("docs/x.md", "COVEY_NOTHING"),
    ("docs/x.md", "`sessions.expiryNever`"),
    ("docs/x.md", "`kubectl get mqc -o jsonpath='{.status.nothing}'`"),
    ("docs/x.md", "`covey can-i`"),
    ("docs/x.md", "`--nothing`"),
    ("docs/x.md", "`tests/run nothing`"),
    ("docs/x.md", "`broker/src/nothing.rs`"),
    ("docs/x.md", "`a_test_that_is_not_there`"),
    ("docs/x.md", "[x](operations.md#nothing)"),
    ("docs/x.md", "`TestNothing`"),
    ("docs/runbook/x.md", "`kubectl logs x | grep -i queue_full`"),
    ("docs/runbook/x.md", "panel \"Nothing\""),
    ("docs/runbook/x.md", "AclChangeHeld means"),
    ("docs/runbook/x.md", "raise sessions.maxNothing"),
];

#[test]
fn each_kind_of_falsehood_is_seen() -> Result<()> {
    let (pages, facts) = tree()?;
    for (path, text) in PLANTED {
        let found = faults(&Page::parse(path, text), &pages, &facts);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        let planned = format!("## Not yet\n\n{text}\n");
        assert!(faults(&Page::parse(path, &planned), &pages, &facts).len() <= 1, "{text}");
    }
    let planned = Page::parse("docs/x.md", "## Not yet\n\n`DiskRolledBack`, `MqttAcl`\n\n## Now\n\n`DiskRolledBack`\n");
    assert_eq!(faults(&planned, &pages, &facts).len(), 1, "only below Not yet");
    Ok(())
}
