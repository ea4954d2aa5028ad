//! Projection of a cluster's users into the access document.
//!
//! The cluster reconcile and `covey local` call [`project`]. Pure but for the verifier maker, which the caller passes in.
//! Invariants: the same users yield the same document and the same revision; a revision is never used twice for
//! different content; a source that did not change keeps its verifier.

use std::collections::{BTreeMap, BTreeSet};

use argon2::Argon2;
use argon2::password_hash::PasswordHasher as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use covey_contract::access::{Document, FORMAT, Index, Rule, User, Verifier};
use covey_crds::MqttUser;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::Sha256;

/// Revisions above this are not counted as seen: a document can be made to claim any number, and the next one must exist.
const MAX_REVISION: u64 = 1 << 53;

/// How a password came to be; it decides what guards it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// 192 random bits: a keyed hash is enough.
    Generated,
    /// Brought by a person: argon2id.
    Brought,
}

/// A password and where it is from.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// Names the exact version of the source: the same text, the same verifier.
    pub source: String,
    pub origin: Origin,
    pub password: Vec<u8>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("source", &self.source).field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// An `MqttUser` on its way into the document.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Name of the object.
    pub object: String,
    /// MQTT user name.
    pub username: String,
    /// Age decides who keeps a name.
    pub created: Option<Timestamp>,
    pub client_id_pattern: Option<String>,
    /// The rules, or a sentence that says what is wrong with them.
    pub rules: Result<Vec<Rule>, String>,
    /// Absent: the Secret is missing or incomplete.
    pub credential: Option<Credential>,
}

/// What became of a candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// In the document as it stands.
    Included,
    /// In the document with the verifier it had: its Secret is missing.
    Kept,
    /// Not in the document: there has never been a password.
    NoCredential,
    /// Another object, older, has the user name.
    Conflict { winner: String },
    /// The rules cannot be enforced; what was in force stays.
    Invalid { problem: String },
}

/// The result of a projection.
#[derive(Debug, Clone)]
pub struct Projection {
    pub document: Document,
    /// By name of the object.
    pub outcomes: BTreeMap<String, Outcome>,
    /// Objects whose entry differs from the previous document.
    pub changed: BTreeSet<String>,
}

impl Projection {
    /// Rules in the document.
    pub fn rules(&self) -> usize {
        self.document.users.iter().map(|user| user.rules.len()).sum()
    }
}

/// Why a verifier could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to hash a password: {0}")]
    Hash(argon2::password_hash::Error),
}

/// Turns an `MqttUser` and its password into a candidate.
pub fn candidate(user: &MqttUser, credential: Option<Credential>) -> Candidate {
    let has_pattern = user.spec.client_id_pattern.is_some();
    Candidate {
        object: user.metadata.name.clone().unwrap_or_default(),
        username: user.username().to_owned(),
        created: user.metadata.creation_timestamp.as_ref().map(|time| time.0),
        client_id_pattern: user.spec.client_id_pattern.clone(),
        rules: user.spec.acl.iter().map(|rule| rule.to_access(has_pattern)).collect(),
        credential,
    }
}

/// Projects all users of a cluster.
///
/// `previous` is the document of record; `seen` is the highest revision that anybody claims to have seen, enforced or
/// refused; `anonymous` are the rules of clients without a user name, absent when those are not admitted.
pub fn project(
    previous: Option<&Document>,
    seen: u64,
    anonymous: Option<&[Rule]>,
    candidates: &[Candidate],
    make: &mut dyn FnMut(&Credential) -> Result<Verifier, Error>,
) -> Result<Projection, Error> {
    let before: BTreeMap<&str, &User> =
        previous.iter().flat_map(|document| &document.users).map(|user| (user.name.as_str(), user)).collect();
    let mut users = Vec::new();
    let mut outcomes = BTreeMap::new();
    let mut changed = BTreeSet::new();
    let mut winners: BTreeMap<&str, &str> = BTreeMap::new();
    for candidate in by_age(candidates) {
        if let Some(winner) = winners.get(candidate.username.as_str()) {
            outcomes.insert(candidate.object.clone(), Outcome::Conflict { winner: (*winner).to_owned() });
            continue;
        }
        winners.insert(&candidate.username, &candidate.object);
        let known = before.get(candidate.username.as_str()).copied();
        let (entry, outcome) = admit(candidate, known, make)?;
        if entry.as_ref() != known {
            changed.insert(candidate.object.clone());
        }
        users.extend(entry);
        outcomes.insert(candidate.object.clone(), outcome);
    }
    users.extend(anonymous.map(anonymous_user));
    users.sort_by(|a, b| a.name.cmp(&b.name));
    let document = number(Document { format: FORMAT, revision: 0, users }, previous, seen);
    Ok(Projection { document, outcomes, changed })
}

/// Who was here first keeps a name; names break ties.
fn by_age(candidates: &[Candidate]) -> Vec<&Candidate> {
    let mut sorted: Vec<&Candidate> = candidates.iter().collect();
    sorted.sort_by_key(|candidate| (candidate.created.unwrap_or(Timestamp::MAX), &candidate.object));
    sorted
}

fn admit(
    candidate: &Candidate,
    known: Option<&User>,
    make: &mut dyn FnMut(&Credential) -> Result<Verifier, Error>,
) -> Result<(Option<User>, Outcome), Error> {
    let checked = candidate.rules.clone().and_then(|rules| {
        let pattern = candidate.client_id_pattern.as_deref();
        pattern.map_or(Ok(()), covey_contract::access::check_client_id_pattern)?;
        rules.iter().try_for_each(|rule| rule.check(pattern.is_some())).map(|()| rules)
    });
    let rules = match checked {
        Ok(rules) => rules,
        Err(problem) => return Ok((known.cloned(), Outcome::Invalid { problem })),
    };
    let (source, verifiers, outcome) = match (&candidate.credential, known) {
        (Some(credential), Some(known)) if known.source == credential.source && !known.verifiers.is_empty() => {
            (known.source.clone(), known.verifiers.clone(), Outcome::Included)
        }
        (Some(credential), _) => (credential.source.clone(), vec![make(credential)?], Outcome::Included),
        (None, Some(known)) if !known.verifiers.is_empty() => {
            (known.source.clone(), known.verifiers.clone(), Outcome::Kept)
        }
        (None, _) => return Ok((None, Outcome::NoCredential)),
    };
    let client_id_pattern = candidate.client_id_pattern.clone();
    Ok((Some(User { name: candidate.username.clone(), source, verifiers, client_id_pattern, rules }), outcome))
}

/// Nobody has the empty user name: it stands for clients that bring none.
fn anonymous_user(rules: &[Rule]) -> User {
    User {
        name: String::new(),
        source: String::new(),
        verifiers: vec![],
        client_id_pattern: None,
        rules: rules.to_vec(),
    }
}

fn number(mut document: Document, previous: Option<&Document>, seen: u64) -> Document {
    let seen = if seen > MAX_REVISION { 0 } else { seen };
    let revision = previous.map(|document| document.revision).filter(|revision| *revision <= MAX_REVISION).unwrap_or(0);
    let unchanged = previous.is_some_and(|previous| previous.users == document.users);
    document.revision = if unchanged && revision >= seen.max(1) { revision } else { revision.max(seen) + 1 };
    document
}

/// Reads the document of record from the Secret's keys. The second value is the highest revision that the Secret claims,
/// whether or not it can be read.
pub fn read_record(data: &BTreeMap<String, Vec<u8>>) -> (Option<Document>, u64) {
    let Some(json) = data.get(covey_contract::access::INDEX_KEY) else { return (None, 0) };
    let Ok(index) = Index::parse(json) else { return (None, claimed_revision(json)) };
    let document = Document::from_files(&index, |key| data.get(key).cloned()).ok();
    (document, index.revision)
}

fn claimed_revision(json: &[u8]) -> u64 {
    let value = serde_json::from_slice::<serde_json::Value>(json).unwrap_or_default();
    value.get("revision").and_then(serde_json::Value::as_u64).unwrap_or(0)
}

/// A password of 192 random bits.
pub fn generate_password() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 24]>())
}

/// Makes what a password is compared with. argon2id takes tens of milliseconds.
pub fn make_verifier(credential: &Credential) -> Result<Verifier, Error> {
    match credential.origin {
        Origin::Generated => Ok(hmac_verifier(&credential.password, &rand::random::<[u8; 16]>())),
        Origin::Brought => {
            let hash = Argon2::default().hash_password(&credential.password).map_err(Error::Hash)?;
            Ok(Verifier::Argon2id(hash.to_string()))
        }
    }
}

fn hmac_verifier(password: &[u8], salt: &[u8]) -> Verifier {
    let keyed = Hmac::<Sha256>::new_from_slice(salt).expect("HMAC takes a key of any length");
    let mac = keyed.chain_update(password).finalize().into_bytes();
    Verifier::HmacSha256 { salt: STANDARD.encode(salt), mac: STANDARD.encode(mac) }
}

#[cfg(test)]
mod tests;
