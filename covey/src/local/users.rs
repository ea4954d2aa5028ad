//! The users of a cluster: their passwords, made once and kept, and the access document that follows from them.

use std::collections::BTreeMap;

use covey_contract::access::{Document, Rule};
use covey_crds::MqttUser;
use covey_operator::access::{self, Credential, DesiredUser, Outcome, Projection};
use covey_operator::cluster::build;
use covey_operator::user::credentials;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use uuid::Uuid;

use super::directory::UserState;

/// A user and how they prove who they are.
#[derive(Debug, Clone)]
pub(super) struct User {
    pub(super) object: MqttUser,
    /// Absent with the sentence that says why.
    pub(super) credential: Result<Credential, String>,
}

impl User {
    /// The password as text, where it is text.
    pub(super) fn password(&self) -> Option<String> {
        let credential = self.credential.as_ref().ok()?;
        String::from_utf8(credential.password.clone()).ok()
    }
}

/// Brings what is kept of users in line with the manifests: a new user gets a password, a deleted one loses it.
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

/// Resolves every user's password, as the operator would from Secrets.
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

/// The API server numbers versions; here the content does.
fn identify(secret: &mut Secret, uid: &str) {
    secret.metadata.uid = Some(uid.to_owned());
    secret.metadata.resource_version = Some(build::hash(&secret.data));
}

/// Projects the users into a document. argon2id takes tens of milliseconds for each password that a person brought.
pub(super) fn project(
    users: &[User],
    previous: Option<&Document>,
    seen: u64,
    anonymous: Option<&[Rule]>,
) -> Result<Projection, access::Error> {
    let candidate = |user: &User| access::candidate(&user.object, user.credential.clone().ok());
    let candidates: Vec<DesiredUser> = users.iter().map(candidate).collect();
    access::project(previous, seen, anonymous, &candidates, &mut access::make_verifier)
}

/// What a person has to know of users that are not in the document as they stand.
pub(super) fn complaints(users: &[User], projection: &Projection) -> Vec<String> {
    let mut complaints = Vec::new();
    for user in users {
        let name = user.object.name_any();
        let complaint = match projection.outcomes.get(&name) {
            Some(Outcome::Conflict { winner }) => format!("its user name is taken by MqttUser {winner}"),
            Some(Outcome::Invalid { problem }) => problem.clone(),
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
