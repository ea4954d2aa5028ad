//! The access document: every user of a cluster, how they prove who they are and what they may do.
//!
//! The operator projects it, the access Secret records it, brokers enforce it. The higher revision wins; a document that
//! does not pass [`Document::check`] is never enforced.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Format that this code writes and reads.
pub const FORMAT: u32 = 1;
/// Key of the index in the access Secret.
pub const INDEX_KEY: &str = "index.json";
/// Bytes of users in one key of the Secret; a Secret holds at most 1 MiB.
pub const PART_BYTES: usize = 256 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Document {
    pub format: u32,
    /// Grows with every change; 0 is never used.
    pub revision: u64,
    pub users: Vec<User>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct User {
    /// The MQTT user name, unique in the document.
    pub name: String,
    /// UID and resource version of what the verifier was made from: same source, same verifier.
    #[serde(default)]
    pub source: String,
    /// Any of them admits. Two during a rotation's overlap.
    pub verifiers: Vec<Verifier>,
    /// Client ids this user may take; `*` is any run without `/ + #`. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id_pattern: Option<String>,
    pub rules: Vec<Rule>,
}

/// What a password is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub enum Verifier {
    /// For generated passwords of at least 128 random bits: HMAC-SHA-256 keyed by the salt over the password, base64.
    HmacSha256 { salt: String, mac: String },
    /// For passwords that people bring: a PHC string.
    Argon2id(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rule {
    pub effect: Effect,
    pub actions: Vec<Action>,
    /// Filters; `{username}` and `{clientId}` stand for one whole level.
    pub topics: Vec<String>,
    /// Highest QoS that the rule speaks of; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_qos: Option<u8>,
    /// Only messages with this retain flag; absent: both. Publish only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    Allow,
    Deny,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Action {
    Publish,
    Subscribe,
}

/// Why a document, or a rule in it, cannot be enforced. The texts are for the person who wrote the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("failed to parse the access document: {0}")]
    Parse(String),
    #[error("access document format {0} is newer than this broker understands (1)")]
    Format(u32),
    #[error("revision 0 is not a revision")]
    Revision,
    #[error("user name {0:?} appears twice")]
    DuplicateUser(String),
    #[error("user {user:?}: {problem}")]
    User { user: String, problem: String },
    #[error("part {0} of the access Secret is missing or does not match its checksum; waiting for the complete set")]
    Incomplete(String),
}

/// What the Secret's index says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Index {
    pub format: u32,
    pub revision: u64,
    /// Key of each part to the SHA-256 of its bytes, in hex.
    pub parts: BTreeMap<String, String>,
}

/// Encodes what the document consists of. A failure must not become an empty document: it would take every user's access.
fn to_json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("texts, numbers and lists of them are JSON")
}

impl Document {
    /// Parses and checks JSON.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let document: Self = serde_json::from_slice(json).map_err(|error| Error::Parse(error.to_string()))?;
        document.check()?;
        Ok(document)
    }

    /// The document as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        to_json(self)
    }

    /// First four hex digits of the SHA-256 over format and users: equal content, equal hash, whatever the revision.
    pub fn hash(&self) -> String {
        let users = to_json(&(self.format, &self.users));
        let mut hash = hex(&Sha256::digest(users));
        hash.truncate(4);
        hash
    }

    /// Everything a broker relies on.
    pub fn check(&self) -> Result<(), Error> {
        if self.format != FORMAT {
            return Err(Error::Format(self.format));
        }
        if self.revision == 0 {
            return Err(Error::Revision);
        }
        let mut names = BTreeSet::new();
        for user in &self.users {
            if !names.insert(user.name.as_str()) {
                return Err(Error::DuplicateUser(user.name.clone()));
            }
            user.check().map_err(|problem| Error::User { user: user.name.clone(), problem })?;
        }
        Ok(())
    }

    /// The keys of the access Secret: the index and the parts.
    pub fn to_files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut parts = BTreeMap::new();
        for (number, users) in split(&self.users).into_iter().enumerate() {
            let bytes = to_json(users);
            let key = format!("users-{number}.json");
            parts.insert(key.clone(), hex(&Sha256::digest(&bytes)));
            files.insert(key, bytes);
        }
        let index = Index { format: self.format, revision: self.revision, parts };
        files.insert(INDEX_KEY.into(), to_json(&index));
        files
    }

    /// Puts a document together from the Secret's keys, `read` giving a key's bytes. Complete sets only.
    pub fn from_files(index: &Index, read: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Self, Error> {
        let mut users = Vec::new();
        for (key, checksum) in &index.parts {
            let bytes = read(key).filter(|bytes| hex(&Sha256::digest(bytes)) == *checksum);
            let bytes = bytes.ok_or_else(|| Error::Incomplete(key.clone()))?;
            let part: Vec<User> = serde_json::from_slice(&bytes).map_err(|error| Error::Parse(error.to_string()))?;
            users.extend(part);
        }
        users.sort_by(|a, b| a.name.cmp(&b.name));
        let document = Self { format: index.format, revision: index.revision, users };
        document.check()?;
        Ok(document)
    }
}

impl Index {
    /// Parses the index.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(json).map_err(|error| Error::Parse(error.to_string()))
    }
}

impl User {
    fn check(&self) -> Result<(), String> {
        if let Some(pattern) = &self.client_id_pattern {
            check_client_id_pattern(pattern)?;
        }
        for verifier in &self.verifiers {
            if let Verifier::HmacSha256 { salt, mac } = verifier {
                let base64 = base64::engine::general_purpose::STANDARD;
                if base64.decode(salt).is_err() || !base64.decode(mac).is_ok_and(|mac| mac.len() == 32) {
                    return Err("a verifier is not what HMAC-SHA-256 makes".into());
                }
            }
        }
        self.rules.iter().try_for_each(|rule| rule.check(self.client_id_pattern.is_some()))
    }
}

impl Rule {
    /// Checks a rule by itself; `has_pattern` is whether its user has a client id pattern. The error is a sentence for the
    /// person who wrote the rule.
    pub fn check(&self, has_pattern: bool) -> Result<(), String> {
        if self.actions.is_empty() || self.topics.is_empty() {
            return Err("a rule needs at least one action and one topic".into());
        }
        if self.max_qos.is_some_and(|qos| qos > 2) {
            return Err("maxQos must be 0, 1 or 2".into());
        }
        self.topics.iter().try_for_each(|topic| self.check_topic(topic, has_pattern))
    }

    fn check_topic(&self, topic: &str, has_pattern: bool) -> Result<(), String> {
        check_filter(topic)?;
        if topic.starts_with("$share/") || topic == "$share" {
            return Err(if self.actions.contains(&Action::Publish) {
                format!("topic {topic:?}: nobody publishes to $share; name the topic itself")
            } else {
                format!("topic {topic:?}: a shared subscription is checked by its filter; leave out $share/<name>/")
            });
        }
        if topic.contains("{clientId}") && !has_pattern {
            return Err(format!("topic {topic:?}: {{clientId}} needs a clientIdPattern on the user"));
        }
        Ok(())
    }
}

/// Checks a rule's filter ([MQTT-4.7.1-1], [MQTT-4.7.1-2], and placeholders as whole levels).
pub fn check_filter(filter: &str) -> Result<(), String> {
    if filter.is_empty() || filter.len() > 65_535 || filter.contains('\0') {
        return Err(format!("topic {filter:?}: must have 1 to 65535 bytes and no NUL"));
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains('#') && (level != "#" || levels.peek().is_some()) {
            return Err(format!("topic {filter:?}: # must be the last level and stand alone"));
        }
        if level.contains('+') && level != "+" {
            return Err(format!("topic {filter:?}: + must stand alone in its level"));
        }
        for placeholder in ["{username}", "{clientId}"] {
            if level.contains(placeholder) && level != placeholder {
                return Err(format!("topic {filter:?}: {placeholder} must stand alone in its level"));
            }
        }
    }
    Ok(())
}

/// Checks a client id pattern.
pub fn check_client_id_pattern(pattern: &str) -> Result<(), String> {
    if pattern.is_empty() || pattern.contains(['/', '+', '#', '\0']) {
        return Err(format!("clientIdPattern {pattern:?}: must not be empty or contain / + # or NUL"));
    }
    Ok(())
}

/// Revision as people see it: `r<number>:<hash>`.
pub fn display_revision(revision: u64, hash: &str) -> String {
    format!("r{revision}:{hash}")
}

fn split(users: &[User]) -> Vec<&[User]> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (position, user) in users.iter().enumerate() {
        let size = serde_json::to_vec(user).map_or(0, |json| json.len());
        if bytes + size > PART_BYTES && position > start {
            parts.extend(users.get(start..position));
            (start, bytes) = (position, 0);
        }
        bytes += size;
    }
    parts.extend(users.get(start..));
    parts
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, topic: &str) -> User {
        User {
            name: name.into(),
            source: String::new(),
            verifiers: vec![],
            client_id_pattern: None,
            rules: vec![Rule {
                effect: Effect::Allow,
                actions: vec![Action::Publish],
                topics: vec![topic.into()],
                max_qos: None,
                retain: None,
            }],
        }
    }

    fn document(users: Vec<User>) -> Document {
        Document { format: FORMAT, revision: 7, users }
    }

    #[test]
    fn rules_that_mean_something_else_than_they_look_are_refused() {
        for bad in ["a/#/b", "a#", "a+/b", "+a", "$share/g/a", "x{username}", "a/{clientId}", ""] {
            assert!(document(vec![user("u", bad)]).check().is_err(), "{bad}");
        }
        for good in ["a/#", "#", "+", "+/a/+", "a/{username}/b", "/", "$SYS/#", "部门/消息"] {
            assert_eq!(document(vec![user("u", good)]).check(), Ok(()), "{good}");
        }
    }

    #[test]
    fn files_survive_a_round_trip_and_are_split() {
        let users = (0..3000).map(|n| user(&format!("user-{n:05}"), "a/b/c")).collect();
        let document = document(users);
        let files = document.to_files();
        assert!(files.len() > 2, "expected several parts, got {}", files.len());
        let index = Index::parse(&files[INDEX_KEY]).unwrap();
        let back = Document::from_files(&index, |key| files.get(key).cloned()).unwrap();
        assert_eq!(back, document);
        assert_eq!(back.hash(), document.hash());
    }

    #[test]
    fn half_a_set_is_not_loaded() {
        let files = document(vec![user("u", "a")]).to_files();
        let index = Index::parse(&files[INDEX_KEY]).unwrap();
        assert!(matches!(Document::from_files(&index, |_| None), Err(Error::Incomplete(_))));
        assert!(matches!(Document::from_files(&index, |_| Some(b"[]".to_vec())), Err(Error::Incomplete(_))));
    }

    #[test]
    fn a_user_twice_is_refused() {
        assert!(document(vec![user("u", "a"), user("u", "b")]).check().is_err());
    }
}
