//! The users of one document, compiled.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use covey_codec::{MqttStr, QoS};
use covey_contract::access::{self as contract, Document, Error, User, Verifier};
use covey_core::access::{Action, ClientIdPattern, Decision, Effect, Identity, RuleParts, Rules};
use covey_core::topic::{Name, Subscription};

use super::hashing::Argon2id;
use super::observer::Observer;

/// A verifier of a password.
#[derive(Debug)]
pub(super) enum Proof {
    HmacSha256 { salt: Vec<u8>, mac: Vec<u8> },
    Argon2id(Argon2id),
}

/// All users of one document.
pub(super) struct Users {
    /// Revision of the document.
    pub(super) revision: u64,
    /// Hash of the document's content.
    pub(super) hash: String,
    /// Number of rules of all users.
    pub(super) rules: u32,
    /// Users by user name.
    by_name: HashMap<Arc<str>, Arc<Principal>>,
    /// User of clients without user name; it has no rights if the document does not define it.
    anonymous: Arc<Principal>,
    /// Number of argon2id verifiers of the user with the most of them: what every failure costs.
    pub(super) most_argon2id: usize,
    /// An argon2id verifier that pads failures; `None` if no user has one.
    pub(super) sample: Option<Argon2id>,
}

impl Users {
    /// Compiles all users of the document.
    ///
    /// # Errors
    /// Returns an error that names the first user that does not compile.
    pub(super) fn compile(document: &Document, observer: &Arc<dyn Observer>) -> Result<Self, Error> {
        let compile = |user: &User| {
            let compiled = Principal::compile(user, observer);
            compiled.map(Arc::new).map_err(|problem| Error::User { user: user.name.clone(), problem })
        };
        let list: Vec<Arc<Principal>> = document.users.iter().map(compile).collect::<Result<_, _>>()?;
        let named = list.iter().find(|principal| principal.name.is_empty());
        let anonymous = match named {
            Some(principal) => principal.clone(),
            None => Arc::new(Principal::without_rights("", observer)),
        };
        let argon2id =
            |principal: &Principal| principal.proofs.iter().filter(|proof| matches!(proof, Proof::Argon2id(_))).count();
        let sample = list.iter().flat_map(|principal| &principal.proofs).find_map(|proof| match proof {
            Proof::Argon2id(verifier) => Some(verifier.clone()),
            Proof::HmacSha256 { .. } => None,
        });
        Ok(Self {
            revision: document.revision,
            hash: document.hash(),
            rules: count(list.iter().map(|principal| principal.rules.len()).sum()),
            most_argon2id: list.iter().map(|principal| argon2id(principal)).max().unwrap_or(0),
            sample,
            anonymous,
            by_name: list.into_iter().map(|principal| (principal.name.clone(), principal)).collect(),
        })
    }

    pub(super) fn len(&self) -> u32 {
        count(self.by_name.len())
    }

    pub(super) fn get(&self, name: &str) -> Option<&Arc<Principal>> {
        self.by_name.get(name)
    }

    /// Returns the user of clients without user name.
    pub(super) fn anonymous(&self) -> Arc<Principal> {
        self.anonymous.clone()
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A user with the rights of one revision.
pub struct Principal {
    /// User name; "" is the user of clients without one.
    name: Arc<str>,
    /// Client ids that the user may use; `None` admits every client id.
    pattern: Option<ClientIdPattern>,
    /// Compiled rules of the user.
    rules: Rules,
    /// Verifiers of the user's passwords.
    pub(super) proofs: Vec<Proof>,
    observer: Arc<dyn Observer>,
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Principal").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Principal {
    fn without_rights(name: &str, observer: &Arc<dyn Observer>) -> Self {
        Self {
            name: name.into(),
            pattern: None,
            rules: Rules::default(),
            proofs: Vec::new(),
            observer: observer.clone(),
        }
    }

    fn compile(user: &User, observer: &Arc<dyn Observer>) -> Result<Self, String> {
        let rules = user.rules.iter().map(Parts::new).collect::<Result<Vec<_>, _>>()?;
        let rules = Rules::compile(rules.iter().map(Parts::borrow)).map_err(|error| error.to_string())?;
        // No password authenticates as the user without a name.
        let verifiers = user.verifiers.iter().filter(|_| !user.name.is_empty());
        Ok(Self {
            pattern: user.client_id_pattern.as_deref().map(ClientIdPattern::new),
            rules,
            proofs: verifiers.map(Proof::new).collect::<Result<_, _>>()?,
            ..Self::without_rights(&user.name, observer)
        })
    }

    /// Returns the user name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether this is the user of clients without user name.
    pub fn is_anonymous(&self) -> bool {
        self.name.is_empty()
    }

    /// Returns whether the user may use the client id.
    pub fn may_take(&self, client_id: &str) -> bool {
        self.pattern.as_ref().is_none_or(|pattern| pattern.admits(client_id))
    }

    /// Returns whether the user may publish to the topic. An invalid topic name is denied.
    pub fn may_publish(&self, client_id: &str, topic: &str, qos: QoS, retain: bool) -> bool {
        let decision = topic.parse::<Name>().map_or(Decision::NoMatch, |topic| {
            self.rules.decide_publish(self.identity(client_id), &topic, qos, retain)
        });
        self.count(Action::Publish, decision)
    }

    /// Returns whether the user may receive every topic that the filter matches. A shared subscription is checked by
    /// its filter, without `$share/<group>/`. An invalid filter is denied.
    pub fn may_subscribe(&self, client_id: &str, filter: &str, qos: QoS) -> bool {
        let asked = MqttStr::new(filter).ok().and_then(|text| Subscription::new(&text).ok());
        let decision = asked.map_or(Decision::NoMatch, |asked| {
            self.rules.decide_subscribe(self.identity(client_id), &asked.filter, qos)
        });
        self.count(Action::Subscribe, decision)
    }

    fn identity<'a>(&'a self, client_id: &'a str) -> Identity<'a> {
        Identity { username: &self.name, client_id }
    }

    fn count(&self, action: Action, decision: Decision) -> bool {
        self.observer.decided(action, decision);
        decision.is_allowed()
    }
}

impl Proof {
    fn new(verifier: &Verifier) -> Result<Self, String> {
        match verifier {
            Verifier::HmacSha256 { salt, mac } => {
                let decode = |text: &String| STANDARD.decode(text).map_err(|error| format!("a verifier: {error}"));
                Ok(Self::HmacSha256 { salt: decode(salt)?, mac: decode(mac)? })
            }
            Verifier::Argon2id(phc) => Ok(Self::Argon2id(Argon2id::new(phc)?)),
        }
    }
}

/// A rule of the document, converted to the types of the core.
struct Parts<'a> {
    rule: &'a contract::Rule,
    actions: Vec<Action>,
    max_qos: Option<QoS>,
}

impl<'a> Parts<'a> {
    fn new(rule: &'a contract::Rule) -> Result<Self, String> {
        let actions = rule.actions.iter().map(|action| match action {
            contract::Action::Publish => Action::Publish,
            contract::Action::Subscribe => Action::Subscribe,
        });
        let max_qos = rule.max_qos.map(|qos| QoS::from_bits(qos).ok_or("maxQos must be 0, 1 or 2")).transpose()?;
        Ok(Self { rule, actions: actions.collect(), max_qos })
    }

    fn borrow(&self) -> RuleParts<'_> {
        RuleParts {
            effect: match self.rule.effect {
                contract::Effect::Allow => Effect::Allow,
                contract::Effect::Deny => Effect::Deny,
            },
            actions: &self.actions,
            topics: &self.rule.topics,
            max_qos: self.max_qos,
            retain: self.rule.retain,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::access::tests::Counts;

    /// Texts that are valid in one field and invalid in another.
    fn any_text() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("{username}".to_owned()),
            Just("$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$MTIzNDU2Nzg5MDEyMzQ1Ng".to_owned()),
            Just("AAAA".to_owned()),
            "[a-z/+#${}*=,\\x00é]{0,12}",
        ]
    }

    fn any_document() -> impl Strategy<Value = serde_json::Value> {
        let rule = (any_text(), any_text(), 0..5u8, any::<bool>()).prop_map(|(one, two, qos, deny)| {
            let effect = if deny { "Deny" } else { "Allow" };
            serde_json::json!({"effect": effect, "actions": ["Publish"], "topics": [one, two], "maxQos": qos})
        });
        let verifier = (any_text(), any_text(), any::<bool>()).prop_map(|(one, two, slow)| {
            let quick = serde_json::json!({"hmacSha256": {"salt": one, "mac": two}});
            if slow { serde_json::json!({"argon2id": one}) } else { quick }
        });
        let user = (any_text(), any_text(), prop::collection::vec(rule, 0..3), prop::collection::vec(verifier, 0..3));
        let user = user.prop_map(|(name, pattern, rules, verifiers)| {
            serde_json::json!({"name": name, "clientIdPattern": pattern, "rules": rules, "verifiers": verifiers})
        });
        prop::collection::vec(user, 0..3)
            .prop_map(|users| serde_json::json!({"format": 1, "revision": 1, "users": users}))
    }

    proptest! {
        #[test]
        fn no_document_makes_the_broker_panic(document in any_document(), topic in any_text(), client_id in any_text()) {
            let observer: Arc<dyn Observer> = Arc::new(Counts::default());
            let parsed = Document::parse(document.to_string().as_bytes());
            let Ok(users) = parsed.and_then(|document| Users::compile(&document, &observer)) else { return Ok(()) };
            for principal in users.by_name.values() {
                principal.may_take(&client_id);
                principal.may_publish(&client_id, &topic, QoS::AtMostOnce, false);
                principal.may_subscribe(&client_id, &topic, QoS::AtMostOnce);
            }
        }
    }
}
