//! The users of a cluster: their passwords, which are generated once and kept, and the resulting access document.

use std::collections::BTreeMap;

use covey_contract::access::{Document, Rule};
use covey_crds::MqttUser;
use covey_operator::access::{self, Candidate, Credential, Outcome, Projection};
use covey_operator::cluster::build;
use covey_operator::user::credentials;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use uuid::Uuid;

use super::directory::UserState;

/// A user with its credential.
#[derive(Debug, Clone)]
pub(super) struct User {
    pub(super) object: MqttUser,
    /// Credential, or a sentence that says why there is none.
    pub(super) credential: Result<Credential, String>,
}

impl User {
    /// Returns the password; `None` if there is none or it is not text.
    pub(super) fn password(&self) -> Option<String> {
        let credential = self.credential.as_ref().ok()?;
        String::from_utf8(credential.password.clone()).ok()
    }
}

/// Updates the stored users to those in the manifests: a new user gets a password, a removed one is deleted.
pub(super) fn keep(kept: &mut BTreeMap<String, UserState>, users: &[MqttUser]) {
    kept.retain(|name, _| users.iter().any(|user| user.name_any() == *name));
    for user in users {
        kept.entry(user.name_any()).or_insert_with(|| UserState {
            uid: Uuid::new_v4().to_string(),
            created: Timestamp::now(),
            password: access::generate_password(),
        });
    }
}

/// Resolves every user's password as the operator does from Secrets.
pub(super) fn resolve(
    users: &[MqttUser],
    kept: &BTreeMap<String, UserState>,
    secrets: &BTreeMap<String, Secret>,
) -> Vec<User> {
    let mut secrets: BTreeMap<String, Secret> = secrets.clone();
    for (name, secret) in &mut secrets {
        identify(secret, name);
    }
    let mut resolved = Vec::new();
    for user in users {
        let mut object = user.clone();
        if let Some(state) = kept.get(&user.name_any()) {
            object.metadata.uid = Some(state.uid.clone());
            object.metadata.creation_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(state.created));
            if credentials::is_generated(&object) {
                let mut secret = credentials::generated(&object, &state.password);
                identify(&mut secret, &state.uid);
                secrets.insert(secret.name_any(), secret);
            }
        }
        let credential = credentials::read(&object, &secrets).map_err(|problem| problem.to_string());
        resolved.push(User { object, credential });
    }
    resolved
}

/// Sets UID and resource version, which the API server would set. The version is a hash of the content.
fn identify(secret: &mut Secret, uid: &str) {
    secret.metadata.uid = Some(uid.to_owned());
    secret.metadata.resource_version = Some(build::hash(&secret.data));
}

/// Projects the users into an access document. Takes an argon2id hash for each new password that was not generated, so
/// it must run on a blocking thread.
pub(super) fn project(
    users: &[User],
    previous: Option<&Document>,
    seen: u64,
    anonymous: Option<&[Rule]>,
) -> Result<Projection, access::Error> {
    let candidate = |user: &User| access::candidate(&user.object, user.credential.clone().ok());
    let candidates: Vec<Candidate> = users.iter().map(candidate).collect();
    access::project(previous, seen, anonymous, &candidates, &mut access::make_verifier)
}

/// Returns a sentence for each user that is not in the document as its manifest defines it.
pub(super) fn complaints(users: &[User], projection: &Projection) -> Vec<String> {
    let mut complaints = Vec::new();
    for user in users {
        let name = user.object.name_any();
        let complaint = match projection.outcomes.get(&name) {
            Some(Outcome::Conflict { winner }) => format!("its user name is taken by MqttUser {winner}"),
            Some(Outcome::Invalid { problem }) => problem.clone(),
            Some(Outcome::TooLarge) => "the rules of all users do not fit in one document".to_owned(),
            Some(Outcome::NoCredential | Outcome::Kept) => user.credential.clone().err().unwrap_or_default(),
            Some(Outcome::Included) | None => continue,
        };
        complaints.push(format!("MqttUser {name}: {complaint}"));
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> MqttUser {
        let text = format!("metadata: {{name: {name}, namespace: default}}\nspec: {{clusterRef: {{name: prod}}}}\n");
        let head = "apiVersion: covey.io/v1alpha1\nkind: MqttUser\n";
        serde_saphyr::from_str(&format!("{head}{text}")).unwrap()
    }

    #[test]
    fn a_password_is_made_once_and_goes_with_its_user() {
        let mut kept = BTreeMap::new();
        keep(&mut kept, &[user("a"), user("b")]);
        let first = kept["a"].password.clone();
        keep(&mut kept, &[user("a")]);
        assert_eq!((kept["a"].password == first, kept.len()), (true, 1));
        keep(&mut kept, &[]);
        keep(&mut kept, &[user("a")]);
        assert_ne!(kept["a"].password, first);
    }

    #[test]
    fn the_same_users_project_to_the_same_document() {
        let mut kept = BTreeMap::new();
        keep(&mut kept, &[user("a")]);
        let users = resolve(&[user("a")], &kept, &BTreeMap::new());
        assert_eq!(users[0].password().unwrap(), kept["a"].password);
        let first = project(&users, None, 0, None).unwrap();
        let again = project(&users, Some(&first.document), 1, None).unwrap();
        assert_eq!((first.document.revision, &again.document), (1, &first.document));
        assert!(complaints(&users, &first).is_empty());
    }
}
