//! The access document: every user of a cluster with its password verifiers and access rules.
//!
//! The operator derives it from the `MqttCluster` and its `MqttUser`s, the access Secret stores it, and brokers enforce
//! it. The higher revision wins. A document that does not pass [`Document::check`] is never enforced.
//! `docs/design/access.md` describes the document and its way to the brokers.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Format of the document that this version writes and reads.
pub const FORMAT: u32 = 1;
/// Key of the index in the access Secret.
pub const INDEX_KEY: &str = "index.json";
/// Bytes of users in one key of the Secret, unless a single user is larger. A Secret holds at most 1 MiB.
pub const PART_BYTES: usize = 256 * 1024;
/// Bytes of all users of a document ([`User::bytes`]). With the index they fit in a Secret.
pub const DOCUMENT_BYTES: usize = (1 << 20) - (32 << 10);
/// Bytes of one user ([`User::bytes`]), so that one cannot fill the document.
pub const USER_BYTES: usize = 64 * 1024;

/// Longest password in bytes. Brokers hash no longer one, so that a client cannot make hashing expensive; the operator
/// refuses a longer one, because no client could log in with it.
pub const MAX_PASSWORD_BYTES: usize = 1024;

/// Users of one cluster at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Document {
    /// Always [`FORMAT`].
    pub format: u32,
    /// Increases with every change; 0 is never used.
    pub revision: u64,
    /// All users.
    pub users: Vec<User>,
}

/// A user with its verifiers and rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct User {
    /// MQTT user name, unique in the document; "" is the user of clients without a user name.
    pub name: String,
    /// Version of the Secret that the verifier was made from, then `@` and the UID of the `MqttUser`. The operator keeps
    /// the verifier while the version is the same. Brokers do not read it.
    #[serde(default)]
    pub source: String,
    /// Verifiers of the password. A password that matches any of them is accepted.
    pub verifiers: Vec<Verifier>,
    /// Client ids that the user may use; `*` matches any text without `/`, `+` and `#`. `None` allows all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id_pattern: Option<String>,
    /// Access rules.
    pub rules: Vec<Rule>,
}

/// Verifier of a password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub enum Verifier {
    /// HMAC-SHA-256 over the password, keyed by the salt; both in base64. Only for generated passwords of at least 128
    /// random bits.
    HmacSha256 { salt: String, mac: String },
    /// PHC string of argon2id, for passwords chosen by people.
    Argon2id(String),
}

/// One access rule of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rule {
    /// Whether the rule allows or denies.
    pub effect: Effect,
    /// Actions that the rule applies to; at least one.
    pub actions: Vec<Action>,
    /// Topic filters; at least one. `{username}` and `{clientId}` replace one whole level.
    pub topics: Vec<String>,
    /// Highest QoS that the rule applies to; `None` means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_qos: Option<u8>,
    /// RETAIN flag of the publishes that the rule applies to; `None` means both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain: Option<bool>,
}

/// Effect of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    Allow,
    Deny,
}

/// Action of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Action {
    Publish,
    Subscribe,
}

/// Reason why a document, or a rule in it, cannot be enforced. The texts are for the author of the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("failed to parse the access document: {0}")]
    Parse(String),
    #[error("access document has format {0}, this broker reads format 1")]
    Format(u32),
    #[error("access document has revision 0, which is never used")]
    Revision,
    #[error("user name {0:?} appears twice")]
    DuplicateUser(String),
    #[error("user {user:?}: {problem}")]
    User { user: String, problem: String },
    #[error("part {0} of the access Secret is missing or does not match its checksum; waiting for the complete set")]
    Incomplete(String),
}

/// Index of the access Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Index {
    /// Format of the document.
    pub format: u32,
    /// Revision of the document.
    pub revision: u64,
    /// SHA-256 in hexadecimal of each part, by its key in the Secret.
    pub parts: BTreeMap<String, String>,
}

/// Encodes what the document consists of. A failure must not become an empty document: it would take every user's access.
fn to_json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("texts, numbers and lists of them are JSON")
}

impl Document {
    /// Parses and checks JSON.
    ///
    /// # Errors
    /// Fails if the text does not parse or does not pass [`Document::check`].
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let document: Self = serde_json::from_slice(json).map_err(|error| Error::Parse(error.to_string()))?;
        document.check()?;
        Ok(document)
    }

    /// Returns the document as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        to_json(self)
    }

    /// Returns the first four hexadecimal digits of the SHA-256 over format and users. It does not depend on the
    /// revision.
    pub fn hash(&self) -> String {
        let users = to_json(&(self.format, &self.users));
        let mut hash = hex(&Sha256::digest(users));
        hash.truncate(4);
        hash
    }

    /// Checks everything that a broker relies on.
    ///
    /// # Errors
    /// Fails on another format, revision 0, a duplicate user name, or an invalid pattern, verifier or rule.
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

    /// Returns the keys of the access Secret with their content: the index and the parts.
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

    /// Assembles a document from the parts of the access Secret. `read` returns the bytes of a key.
    ///
    /// # Errors
    /// Fails if a part is missing or does not match its checksum, does not parse, or the document does not pass
    /// [`Document::check`].
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
    /// Parses the index from JSON.
    ///
    /// # Errors
    /// Fails if the text does not parse.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(json).map_err(|error| Error::Parse(error.to_string()))
    }
}

impl User {
    /// Returns the bytes that the user takes in the document, as JSON with a separator.
    pub fn bytes(&self) -> usize {
        serde_json::to_vec(self).map_or(0, |json| json.len() + 1)
    }

    fn check(&self) -> Result<(), String> {
        if let Some(pattern) = &self.client_id_pattern {
            check_client_id_pattern(pattern)?;
        }
        for verifier in &self.verifiers {
            if let Verifier::HmacSha256 { salt, mac } = verifier {
                let base64 = base64::engine::general_purpose::STANDARD;
                if base64.decode(salt).is_err() || !base64.decode(mac).is_ok_and(|mac| mac.len() == 32) {
                    return Err("a verifier is no HMAC-SHA-256 with a base64 salt".into());
                }
            }
        }
        self.rules.iter().try_for_each(|rule| rule.check(self.client_id_pattern.is_some()))
    }
}

impl Rule {
    /// Checks a rule. `has_pattern` says whether its user has a client id pattern, which `{clientId}` requires.
    ///
    /// # Errors
    /// Returns a sentence for the author of the rule.
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

/// Checks the filter of a rule ([MQTT-4.7.1-1], [MQTT-4.7.1-2]). A placeholder must be a whole level.
///
/// # Errors
/// Returns a sentence for the author of the rule.
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
///
/// # Errors
/// Returns a sentence for the author of the user.
pub fn check_client_id_pattern(pattern: &str) -> Result<(), String> {
    if pattern.is_empty() || pattern.contains(['/', '+', '#', '\0']) {
        return Err(format!("clientIdPattern {pattern:?}: must not be empty or contain / + # or NUL"));
    }
    Ok(())
}

/// Returns the displayed form of a revision: `r<number>:<hash>`.
pub fn display_revision(revision: u64, hash: &str) -> String {
    format!("r{revision}:{hash}")
}

fn split(users: &[User]) -> Vec<&[User]> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (position, user) in users.iter().enumerate() {
        let size = user.bytes();
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
