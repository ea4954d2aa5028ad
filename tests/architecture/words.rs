//! Words that a reader has to guess at, with what to write instead. The list is short on purpose: it keeps phrases out
//! that once stood in many places.

use super::{Result, tracked};

/// A phrase in lower case, and what to write instead.
const UNCLEAR: [(&str, &str); 9] = [
    ("see the module", "what the item does, or no comment"),
    ("birth certificate", "cluster id"),
    ("sign of life", "reply, or heartbeat"),
    ("speaks of", "describes, or contains"),
    ("whoever", "the component by its name"),
    ("everybody", "all clients, all nodes"),
    ("anybody", "a client, a node"),
    ("was told to nobody", "was not reported"),
    ("gave up the ghost", "stopped"),
];

/// Files that people read: sources, pages, manifests, scripts.
const KINDS: [&str; 8] = ["*.rs", "*.md", "*.go", "*.yaml", "*.yml", "*.proto", "*.toml", "tests/run"];

#[test]
fn unclear_phrases_do_not_come_back() -> Result<()> {
    let mut found = Vec::new();
    for kind in KINDS {
        for (path, text) in tracked(kind)?.into_iter().filter(|(path, _)| path != "tests/architecture/words.rs") {
            found.extend(unclear(&text).map(|(line, advice)| format!("{path}:{line}: {advice}")));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

#[test]
fn an_unclear_phrase_is_found_with_its_line() {
    let found: Vec<_> = unclear("one\n/// For Whoever asks.\nwhoeverx").collect();
    assert_eq!(found, [(2, "instead of \"whoever\" write: the component by its name".to_owned())]);
}

/// Number and advice for each line with such a phrase.
fn unclear(text: &str) -> impl Iterator<Item = (usize, String)> {
    text.lines().zip(1..).filter_map(|(line, number)| {
        let line = line.to_lowercase();
        let (phrase, advice) = UNCLEAR.iter().find(|(phrase, _)| has(&line, phrase))?;
        Some((number, format!("instead of {phrase:?} write: {advice}")))
    })
}

/// Whether a line has the phrase, not as a part of longer words.
fn has(line: &str, phrase: &str) -> bool {
    line.match_indices(phrase).any(|(at, _)| {
        let before = line.get(..at).and_then(|head| head.chars().next_back());
        let after = line.get(at + phrase.len()..).and_then(|tail| tail.chars().next());
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    })
}
