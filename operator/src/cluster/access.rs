//! Projects the users into the access document, writes the document to the Secret of record, and sends it to the nodes:
//! in this order, so that no node ever enforces a document that is not recorded. A generated password is deleted after
//! that, because until then it may be the one in force.

use std::collections::BTreeMap;
use std::time::Duration;

use covey_contract::access::Document;
use covey_crds::MqttUser;
use covey_crds::condition::reason;
use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};

use super::apply;
use super::build;
use super::dereference::Inputs;
use super::nodes::{self, Node};
use super::ownership::{Holder, Ownership, Taken, ownership_of};
use super::validate::Basics;
use crate::access::{self, Candidate, Outcome, Projection};
use crate::context::Memory;
use crate::user::credentials;

const PUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Why access could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Project(#[from] access::Error),
    #[error("failed to hash passwords: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Result of the projection of all users.
#[derive(Debug)]
pub(crate) struct Access {
    pub projection: Projection,
    /// By name of the user object: what is wrong with the source of its password, as a reason and a message.
    pub problems: BTreeMap<String, (&'static str, String)>,
}

/// By name of the user object: an object of another owner that has the name of the user's Secret.
pub(crate) type TakenSecrets = BTreeMap<String, Taken>;

/// Creates the Secrets of users whose password the operator generates. A Secret that cannot be created is missing on
/// this pass, and the status of its user says so. The password of a former user of the same name is not read, because
/// its Secret is about to be deleted.
pub(crate) async fn create_secrets(client: &Client, inputs: &mut Inputs) -> TakenSecrets {
    let mut all = TakenSecrets::new();
    for user in inputs.users.iter().filter(|user| credentials::is_generated(user)) {
        let name = credentials::secret_name(user);
        let wanted = credentials::generated(user, &access::generate_password());
        let holder = if let Some(live) = inputs.user_secrets.get(&name) {
            former(ownership_of(&wanted, Some(live)))
        } else {
            match apply::create_secret(client, &wanted).await {
                Ok(Some(secret)) => {
                    inputs.user_secrets.insert(name.clone(), secret);
                    None
                }
                Ok(None) => holder(client, user, &wanted).await,
                Err(error) => {
                    tracing::warn!(user = %user.name_any(), %error, "failed to create the secret of a user");
                    None
                }
            }
        };
        if let Some(holder) = holder {
            inputs.user_secrets.remove(&name);
            all.insert(user.name_any(), Taken { kind: "Secret", name, holder, owner: "user" });
        }
    }
    all
}

/// Returns the holder if it is a deleted user. Any other Secret with the user label may be read: the label permits it.
fn former(ownership: Ownership) -> Option<Holder> {
    match ownership {
        Ownership::Taken(holder @ (Holder::Former { .. } | Holder::Deleting)) => Some(holder),
        _ => None,
    }
}

/// Returns who holds the name of `wanted`, or `None` if the user does or it is unknown.
async fn holder(client: &Client, user: &MqttUser, wanted: &Secret) -> Option<Holder> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &user.namespace().unwrap_or_default());
    let live = secrets.get_opt(&wanted.name_any()).await;
    let live = live.inspect_err(|error| tracing::warn!(user = %user.name_any(), %error, "failed to read a secret"));
    match ownership_of(wanted, live.ok().flatten().as_ref()) {
        Ownership::Taken(holder) => Some(holder),
        Ownership::Free | Ownership::Owned { .. } | Ownership::Orphan { .. } => None,
    }
}

/// Projects the users. Runs on a blocking thread, because hashing a password takes tens of milliseconds.
pub(crate) async fn project(
    cluster: &Basics,
    inputs: &Inputs,
    taken: &TakenSecrets,
    nodes: &[Node],
    memory: &Memory,
) -> Result<Access, Error> {
    let wanted = build::access_metadata(cluster);
    let own = inputs
        .access_secret
        .as_ref()
        .filter(|secret| !matches!(ownership_of(&wanted, Some(*secret)), Ownership::Taken(_)));
    let (record, claimed) = read_record(own);
    // Uses the document in memory if the record cannot be read, for example after a manual edit.
    let previous = record.or_else(|| memory.document.clone());
    let remembered = memory.document.as_ref().map_or(0, |document| document.revision);
    let seen = nodes.iter().map(Node::seen_revision).chain([claimed, remembered]).max().unwrap_or(0);
    let mut problems = BTreeMap::new();
    let readable = inputs.users.iter().map(|user| candidate(user, &inputs.user_secrets, &mut problems));
    let candidates: Vec<Candidate> = readable.chain(inputs.unreadable_users.iter().cloned()).collect();
    let anonymous = cluster.anonymous.clone();
    let work =
        move || access::project(previous.as_ref(), seen, anonymous.as_deref(), &candidates, &mut access::make_verifier);
    let projection = tokio::task::spawn_blocking(work).await??;
    for (user, taken) in taken {
        problems.insert(user.clone(), (reason::NAME_TAKEN, taken.to_string()));
    }
    Ok(Access { projection, problems })
}

fn candidate(
    user: &MqttUser,
    secrets: &BTreeMap<String, Secret>,
    problems: &mut BTreeMap<String, (&'static str, String)>,
) -> Candidate {
    let credential = credentials::read(user, secrets);
    if let Err(problem) = &credential {
        problems.insert(user.name_any(), (problem.reason(), problem.to_string()));
    }
    access::candidate(user, credential.ok())
}

fn read_record(secret: Option<&Secret>) -> (Option<Document>, u64) {
    let data = secret.and_then(|secret| secret.data.as_ref());
    let data = data.map(|data| data.iter().map(|(key, bytes)| (key.clone(), bytes.0.clone())).collect());
    access::read_record(&data.unwrap_or_default())
}

/// Updates the revision since which each user is unchanged.
pub(crate) fn note_revisions(memory: &mut Memory, access: &Access) {
    let revision = access.projection.document.revision;
    let outcomes = &access.projection.outcomes;
    memory.since_revisions.retain(|object, _| outcomes.contains_key(object));
    for object in outcomes.keys() {
        let since = memory.since_revisions.entry(object.clone()).or_insert(revision);
        if access.projection.changed.contains(object) {
            *since = revision;
        }
    }
    memory.document = Some(access.projection.document.clone());
}

/// Writes the document to the Secret of record, unless the live Secret already holds it.
pub(crate) async fn record(
    client: &Client,
    cluster: &Basics,
    inputs: &Inputs,
    document: &Document,
) -> Result<(), apply::Error> {
    apply::apply_secret(client, &build::access_secret(cluster, document), inputs.access_secret.as_ref()).await
}

/// Sends the document to every node that answers and does not enforce it yet. A failure is logged and retried by the
/// next pass.
pub(crate) async fn push(memory: &mut Memory, nodes: &mut [Node], document: &Document) {
    let hash = document.hash();
    let json = document.to_json();
    let pushes: Vec<_> = nodes
        .iter()
        .map(|node| {
            let behind = node.report.is_some() && !node.enforces(document.revision, &hash);
            let client = behind.then(|| nodes::client(memory, node)).flatten();
            let json = json.clone();
            async move {
                let answer = client?.apply_access(json, PUSH_TIMEOUT).await;
                answer.inspect_err(|error| tracing::warn!(node = %node.name, %error, "access document not sent")).ok()
            }
        })
        .collect();
    let answers = join_all(pushes).await;
    for (node, answer) in nodes.iter_mut().zip(answers) {
        if let (Some(report), Some(access)) = (node.report.as_mut(), answer) {
            tracing::info!(node = %node.name, revision = access.revision, "access document sent");
            report.access = Some(access);
        }
    }
}

/// Deletes the generated Secrets of users whose password now comes from another Secret: brokers no longer accept the
/// generated password. A user whose new password could not be read, or whose rules are not enforced, keeps the generated
/// password in force and its Secret too. A failure is logged and retried by the next pass.
pub(crate) async fn delete_replaced_secrets(client: &Client, inputs: &Inputs, access: &Access) {
    let is_in_force = |user: &&MqttUser| access.projection.outcomes.get(&user.name_any()) == Some(&Outcome::Included);
    for user in inputs.users.iter().filter(is_in_force) {
        let Some(secret) = credentials::replaced(user, &inputs.user_secrets) else { continue };
        let api: Api<Secret> = Api::namespaced(client.clone(), &user.namespace().unwrap_or_default());
        let name = secret.name_any();
        let as_read = Preconditions { uid: secret.uid(), resource_version: secret.resource_version() };
        match api.delete(&name, &DeleteParams::default().preconditions(as_read)).await {
            Ok(_) => tracing::info!(user = %user.name_any(), secret = %name, "deleted a generated password"),
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => tracing::warn!(user = %user.name_any(), %error, "failed to delete a generated password"),
        }
    }
}
