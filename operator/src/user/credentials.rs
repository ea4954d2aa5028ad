//! Builds and reads the Secret with a user's password. Pure; the cluster's reconcile creates the Secret.

use std::collections::BTreeMap;

use covey_contract::access::MAX_PASSWORD_BYTES;
use covey_contract::names;
use covey_crds::MqttUser;
use covey_crds::condition::reason;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use kube::{Resource as _, ResourceExt as _};

use crate::access::{Credential, Origin};

const PASSWORD: &str = "password";

/// What is wrong with the source of a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is no password to read.
    #[error("{0}")]
    Missing(String),
    /// There is a password, but it cannot be the one that clients send.
    #[error("{0}")]
    Invalid(String),
}

impl Problem {
    /// Returns the reason of the user's Ready condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing(_) => reason::SECRET_MISSING,
            Self::Invalid(_) => reason::INVALID_PASSWORD,
        }
    }
}

/// Returns the name of the Secret with the user's password, whether or not it exists.
pub fn secret_name(user: &MqttUser) -> String {
    match &user.spec.authentication.password.secret_ref {
        Some(reference) => reference.name.clone(),
        None => generated_name(user),
    }
}

fn generated_name(user: &MqttUser) -> String {
    format!("{}-mqtt", user.name_any())
}

/// Returns whether the operator generates the password.
pub fn is_generated(user: &MqttUser) -> bool {
    user.spec.authentication.password.secret_ref.is_none()
}

/// Returns the Secret of the generated password if the user owns it and takes its password from another Secret by now.
/// `labelled` are the Secrets with the user label, by name.
pub fn replaced<'a>(user: &MqttUser, labelled: &'a BTreeMap<String, Secret>) -> Option<&'a Secret> {
    let name = generated_name(user);
    let secret = labelled.get(&name).filter(|_| secret_name(user) != name)?;
    let owned = secret.owner_references().iter().any(|owner| owner.controller == Some(true) && is_owner(user, owner));
    owned.then_some(secret)
}

fn is_owner(user: &MqttUser, owner: &OwnerReference) -> bool {
    user.metadata.uid.as_ref() == Some(&owner.uid)
}

/// Builds the Secret for a generated password. The user owns it, so that it is deleted with the user.
pub fn generated(user: &MqttUser, password: &str) -> Secret {
    let labels =
        [(names::LABEL_USER, user.name_any()), ("app.kubernetes.io/managed-by", names::FIELD_MANAGER.to_owned())];
    let data = [("username", user.username()), (PASSWORD, password)];
    Secret {
        metadata: ObjectMeta {
            name: Some(secret_name(user)),
            namespace: user.namespace(),
            labels: Some(labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            owner_references: Some(vec![OwnerReference {
                api_version: MqttUser::api_version(&()).into_owned(),
                kind: MqttUser::kind(&()).into_owned(),
                name: user.name_any(),
                uid: user.uid().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".into()),
        data: Some(
            data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec()))).collect(),
        ),
        ..Secret::default()
    }
}

/// Reads the user's password from the Secrets that have the user label, by name.
///
/// # Errors
/// If the Secret or the key does not exist, the label is not this user's, or clients cannot send the password.
pub fn read(user: &MqttUser, labelled: &BTreeMap<String, Secret>) -> Result<Credential, Problem> {
    let name = secret_name(user);
    let label = names::LABEL_USER;
    let object = user.name_any();
    let secret = labelled.get(&name).filter(|secret| secret.labels().get(label) == Some(&object));
    let secret = secret.ok_or_else(|| {
        let sentence = format!("Secret {name} does not exist in this namespace, or lacks the label {label}: {object}");
        Problem::Missing(sentence)
    })?;
    let key = user.spec.authentication.password.secret_ref.as_ref().map_or(PASSWORD, |reference| &reference.key);
    let password = secret.data.as_ref().and_then(|data| data.get(key));
    let password = password.ok_or_else(|| Problem::Missing(format!("Secret {name} has no value under key {key}")))?;
    check(&password.0).map_err(|problem| {
        Problem::Invalid(format!(
            "key {key} of Secret {name} {problem}; correct it, for example with `kubectl patch secret {name} --type=merge -p '{{\"stringData\":{{\"{key}\":\"...\"}}}}'`, or with `printf %s ... | base64` where a manifest needs base64"
        ))
    })?;
    let version = secret.resource_version().unwrap_or_default();
    Ok(Credential {
        source: format!("{}:{version}:{key}", secret.uid().unwrap_or_default()),
        origin: if is_ours(user, secret, &password.0) { Origin::Generated } else { Origin::Brought },
        password: password.0.clone(),
    })
}

/// Checks that clients can send a password unchanged. It is not trimmed, because a client that mounts the same Secret
/// sends what the Secret holds. Spaces are permitted anywhere.
fn check(password: &[u8]) -> Result<(), &'static str> {
    match password {
        [] => Err("is empty"),
        [.., b'\n' | b'\r'] => Err("ends in a line break, which clients would have to send as part of the password"),
        _ if password.iter().any(u8::is_ascii_control) => {
            Err("contains a control character, which clients would have to send as part of the password")
        }
        _ if password.len() > MAX_PASSWORD_BYTES => Err("has more than 1024 bytes, which brokers do not hash"),
        _ => Ok(()),
    }
}

/// Returns whether the operator generated the password. Only then it has enough random bits for a keyed hash. A
/// password that was written into the generated Secret by hand is recognised by its length.
fn is_ours(user: &MqttUser, secret: &Secret, password: &[u8]) -> bool {
    let owned = secret.owner_references().iter().any(|owner| is_owner(user, owner));
    is_generated(user) && owned && password.len() == crate::access::generate_password().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::user;

    fn stored(mut secret: Secret, version: &str) -> BTreeMap<String, Secret> {
        secret.metadata.uid = Some("s-uid".into());
        secret.metadata.resource_version = Some(version.into());
        BTreeMap::from([(secret.name_any(), secret)])
    }

    #[test]
    fn a_generated_secret_is_named_after_the_object_and_holds_the_user_name() {
        let user = user("line-7", "username: press");
        let secret = generated(&user, "pw");
        assert_eq!(secret.name_any(), "line-7-mqtt");
        let data = secret.data.unwrap();
        assert_eq!((data["username"].0.as_slice(), data["password"].0.as_slice()), (&b"press"[..], &b"pw"[..]));
        assert_eq!(secret.metadata.owner_references.unwrap()[0].uid, "uid-line-7");
    }

    #[test]
    fn a_generated_password_is_recognised_and_its_version_recorded() {
        let user = user("a", "acl: []");
        let password = crate::access::generate_password();
        let credential = read(&user, &stored(generated(&user, &password), "41")).unwrap();
        assert_eq!((credential.origin, credential.source.as_str()), (Origin::Generated, "s-uid:41:password"));
        let weak = read(&user, &stored(generated(&user, "1234"), "42")).unwrap();
        assert_eq!(weak.origin, Origin::Brought);
    }

    #[test]
    fn a_generated_secret_that_another_one_replaced_is_found_if_it_is_the_users() {
        let generates = user("a", "acl: []");
        let brings = user("a", "authentication: {password: {secretRef: {name: mine}}}");
        let reads_it = user("a", "authentication: {password: {secretRef: {name: a-mqtt}}}");
        let secret = generated(&generates, "x");
        let found = |user: &MqttUser, secret: &Secret| replaced(user, &stored(secret.clone(), "1")).is_some();
        assert!(found(&brings, &secret));
        assert!(!found(&generates, &secret) && !found(&reads_it, &secret), "it is in use");
        let mut other = secret;
        other.owner_references_mut()[0].uid = "of-a-former-user".into();
        assert!(!found(&brings, &other));
        other.metadata.owner_references = None;
        assert!(!found(&brings, &other), "a Secret that somebody made");
    }

    #[test]
    fn a_secret_that_does_not_consent_is_not_read() {
        let user = user("a", "authentication: {password: {secretRef: {name: mine, key: pin}}}");
        let mut secret = generated(&user, "x");
        secret.data = Some(BTreeMap::from([("pin".into(), ByteString(b"1234".to_vec()))]));
        let credential = read(&user, &stored(secret.clone(), "1")).unwrap();
        assert_eq!((credential.origin, credential.password.as_slice()), (Origin::Brought, &b"1234"[..]));
        secret.labels_mut().insert(names::LABEL_USER.into(), "another".into());
        assert!(read(&user, &stored(secret, "1")).unwrap_err().to_string().contains("covey.io/user: a"));
        let missing = read(&user, &BTreeMap::new()).unwrap_err();
        assert!(missing.to_string().contains("Secret mine does not exist"));
        assert_eq!(missing.reason(), reason::SECRET_MISSING);
    }

    #[test]
    fn a_password_that_no_client_would_send_is_refused_and_names_its_secret() {
        let user = user("a", "acl: []");
        let (longest, too_long) = ("x".repeat(MAX_PASSWORD_BYTES), "x".repeat(MAX_PASSWORD_BYTES + 1));
        for (bad, sentence) in [
            ("", "key password of Secret a-mqtt is empty"),
            ("secret\n", "ends in a line break"),
            ("secret\r\n", "ends in a line break"),
            ("\n", "ends in a line break"),
            ("sec\0ret", "contains a control character"),
            ("sec\nret", "contains a control character"),
            ("\tsecret", "contains a control character"),
            ("secret\u{7f}", "contains a control character"),
            (too_long.as_str(), "more than 1024 bytes"),
        ] {
            let problem = read(&user, &stored(generated(&user, bad), "1")).unwrap_err();
            assert_eq!(problem.reason(), reason::INVALID_PASSWORD);
            let text = problem.to_string();
            assert!(
                text.contains(sentence) && text.contains(r#"{"stringData":{"password":"..."}}"#),
                "{bad:.20?}: {text}"
            );
        }
        for good in [" secret ", "two words", "пароль", longest.as_str()] {
            let credential = read(&user, &stored(generated(&user, good), "1")).unwrap();
            assert_eq!(credential.password, good.as_bytes());
        }
    }
}
