//! Step *apply children* of a pass: applies the children.
//!
//! An absent child is created, so that the request fails with AlreadyExists if another object takes the name meanwhile.
//! A child that belongs to the cluster is applied (server-side) with its uid as a precondition, and a Secret also with
//! its resourceVersion, because what is written to it was derived from what was read. An object of another owner is left
//! unchanged ([`super::ownership`]). The NetworkPolicy is deleted if the spec wants none. Children are applied
//! independently of each other, except the StatefulSet: it is applied last, and only if everything exists that its pods mount or need. Invariant: a pass
//! without a difference changes no resourceVersion. The StatefulSet is applied only if the desired hash or the live
//! generation changed, because some API servers write it again on each apply (kubernetes/kubernetes#119304; 1.37 did
//! not in our test). A generation that changed without an apply is drift, which is counted.

use std::collections::BTreeMap;
use std::fmt::Debug;

use covey_contract::names::FIELD_MANAGER;
use covey_crds::WorkloadStatus;
use covey_crds::condition::reason;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::build::{Children, hash};
use super::ownership::{Ownership, Taken, ownership_of};
use crate::metrics::Metrics;

/// Number of attempts to apply an object in one pass, if others write to it between apply and release.
const RELEASE_ATTEMPTS: u32 = 5;

/// Why a child could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to apply {kind} {name}: {source}")]
    Request { kind: &'static str, name: String, source: Box<kube::Error> },
    #[error("failed to delete {kind} {name}: {source}")]
    Delete { kind: &'static str, name: String, source: Box<kube::Error> },
    #[error(transparent)]
    Taken(#[from] Taken),
    /// An earlier step did not provide what the child needs.
    #[error("{0}")]
    Missing(String),
    /// The live object cannot be changed to what is wanted. The message says what to do.
    #[error("{0}")]
    Immutable(String),
    /// Several errors; never empty.
    #[error("{}", sentences(.0))]
    Several(Vec<Self>),
}

fn sentences(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// Returns the reason of the condition that reports this error.
    pub fn reason(&self) -> &'static str {
        if self.is_taken() { reason::NAME_TAKEN } else { reason::APPLY_FAILED }
    }

    fn is_taken(&self) -> bool {
        match self {
            Self::Taken(_) => true,
            Self::Several(errors) => errors.iter().any(Self::is_taken),
            Self::Request { .. } | Self::Delete { .. } | Self::Missing(_) | Self::Immutable(_) => false,
        }
    }

    /// Returns all failures as one; `None` if there are none.
    pub fn join(failures: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut failures: Vec<Self> = failures.into_iter().collect();
        if failures.len() > 1 { Some(Self::Several(failures)) } else { failures.pop() }
    }
}

/// By kind and name: hash of the object that was applied, and the resourceVersion after it.
pub type Known = BTreeMap<(&'static str, String), (String, Option<String>)>;

/// Result of applying the children that are checked on every pass.
#[derive(Debug, Default)]
pub struct Outcome {
    pub known: Known,
    /// Failures of children that a pod needs.
    pub needed: Vec<Error>,
    /// Failures of the others.
    pub others: Vec<Error>,
}

/// A child with its API, and with its kind for error messages.
struct Child<'a, K> {
    api: Api<K>,
    kind: &'static str,
    wanted: &'a K,
    /// Whether the child is applied only to the version of the object that was read.
    only_as_read: bool,
}

impl<'a, K> Child<'a, K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    fn new(client: &Client, kind: &'static str, wanted: &'a K) -> Self {
        let api = Api::namespaced(client.clone(), &wanted.namespace().unwrap_or_default());
        Self { api, kind, wanted, only_as_read: false }
    }

    fn failed(&self, source: kube::Error) -> Error {
        Error::Request { kind: self.kind, name: self.wanted.name_any(), source: Box::new(source) }
    }

    /// Reads the live object, and applies the child unless the object is unchanged since it was last applied. Returns
    /// the entry of the child for [`Known`]. Without `may_differ` no object of the cluster has changed since, so the object
    /// is read only if something else is wanted now.
    async fn reconcile(&self, known: &Known, may_differ: bool) -> Result<Known, Error> {
        let key = (self.kind, self.wanted.name_any());
        if !may_differ
            && let Some(entry @ (_, Some(_))) = known.get(&key).filter(|(applied, _)| *applied == hash(self.wanted))
        {
            return Ok(Known::from([(key, entry.clone())]));
        }
        let live = self.live().await?;
        self.reconcile_as(live.as_ref(), known).await
    }

    async fn live(&self) -> Result<Option<K>, Error> {
        self.api.get_opt(&self.wanted.name_any()).await.map_err(|error| self.failed(error))
    }

    /// Like [`Child::reconcile`], for an object that was read already.
    async fn reconcile_as(&self, live: Option<&K>, known: &Known) -> Result<Known, Error> {
        let key = (self.kind, self.wanted.name_any());
        let hash = hash(self.wanted);
        let left = known.get(&key).filter(|(applied, _)| *applied == hash).and_then(|(_, version)| version.as_ref());
        let version = match live.and_then(K::resource_version) {
            Some(version) if left == Some(&version) => Some(version),
            _ => self.bring(live).await?.resource_version(),
        };
        Ok(Known::from([(key, (hash, version))]))
    }

    /// Deletes the object that has the child's name, unless it is another owner's. Returns no entry for [`Known`].
    async fn remove(&self) -> Result<Known, Error> {
        let Some(live) = self.live().await? else { return Ok(Known::new()) };
        match delete_owned(&self.api, self.wanted, &live).await {
            Ok(_) => Ok(Known::new()),
            Err(source) => {
                let (kind, name) = (self.kind, self.wanted.name_any());
                Err(Error::Delete { kind, name, source: Box::new(source) })
            }
        }
    }

    /// Creates or applies the child, unless an object of another owner has its name.
    async fn bring(&self, live: Option<&K>) -> Result<K, Error> {
        match ownership_of(self.wanted, live) {
            Ownership::Free => {
                let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
                let created = self.api.create(&params, self.wanted).await.map_err(|error| self.failed(error))?;
                self.apply(created.uid().unwrap_or_default(), created.resource_version()).await
            }
            Ownership::Owned { uid } | Ownership::Orphan { uid } => {
                self.apply(uid, live.and_then(K::resource_version)).await
            }
            Ownership::Taken(holder) => {
                Err(Taken { kind: self.kind, name: self.wanted.name_any(), holder, owner: "cluster" }.into())
            }
        }
    }

    /// Applies to the object with this uid, and gives up the fields that the operator owns as its creator. Fails with a
    /// conflict if another object has the name by now, or if `only_as_read` is set and the object has no longer this
    /// version.
    async fn apply(&self, uid: String, version: Option<String>) -> Result<K, Error> {
        let mut wanted = self.wanted.clone();
        wanted.meta_mut().uid = Some(uid);
        wanted.meta_mut().resource_version = version.filter(|_| self.only_as_read);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let mut attempt = 1;
        loop {
            let applied = self.api.patch(&wanted.name_any(), &params, &Patch::Apply(&wanted)).await;
            let applied = applied.map_err(|error| self.failed(error))?;
            match self.release(applied).await {
                Err(kube::Error::Api(status)) if status.is_conflict() && attempt < RELEASE_ATTEMPTS => attempt += 1,
                released => return released.map_err(|error| self.failed(error)),
            }
        }
    }

    /// Gives up the fields that the operator owns as the object's creator. It must not be skipped, because fields that
    /// are owned twice are kept when they are no longer applied. Only an object that was just created has such fields.
    ///
    /// # Errors
    /// A conflict if another writer changed the object after it was applied: controllers write the status of a new
    /// object at once.
    async fn release(&self, applied: K) -> Result<K, kube::Error> {
        let Some(index) = as_creator(&applied) else { return Ok(applied) };
        let mut others = applied.managed_fields().to_vec();
        others.remove(index);
        let metadata = json!({"resourceVersion": applied.resource_version(), "managedFields": others});
        let patch = Patch::Merge(json!({"metadata": metadata}));
        self.api.patch(&self.wanted.name_any(), &PatchParams::default(), &patch).await
    }
}

/// Deletes an object that was read, unless it belongs to another owner than `wanted` or is being deleted. Returns whether
/// this call has deleted it: an object that was replaced in the meantime is kept.
///
/// # Errors
/// If the request fails.
pub(crate) async fn delete_owned<K>(api: &Api<K>, wanted: &K, live: &K) -> Result<bool, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let ours = matches!(ownership_of(wanted, Some(live)), Ownership::Owned { .. } | Ownership::Orphan { .. });
    if !ours || live.meta().deletion_timestamp.is_some() {
        return Ok(false);
    }
    let this = Preconditions { uid: live.uid(), resource_version: None };
    match api.delete(&live.name_any(), &DeleteParams::default().preconditions(this)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the position of the managed fields that the operator owns as the creator of an object.
fn as_creator(live: &impl kube::ResourceExt) -> Option<usize> {
    live.managed_fields().iter().position(|entry| {
        entry.manager.as_deref() == Some(FIELD_MANAGER)
            && entry.operation.as_deref() == Some("Update")
            && entry.subresource.as_deref().unwrap_or_default().is_empty()
    })
}

/// Applies the children that are checked on every pass, in parallel. `may_differ` is false if no object of the cluster has
/// changed since `known` was returned.
pub async fn apply_children(client: &Client, children: &Children, known: &Known, may_differ: bool) -> Outcome {
    let service_account = Child::new(client, "ServiceAccount", &children.service_account);
    let peers = Child::new(client, "Service", &children.peers_service);
    let clients = Child::new(client, "Service", &children.client_service);
    let config_map = Child::new(client, "ConfigMap", &children.config_map);
    let pdb = Child::new(client, "PodDisruptionBudget", &children.pdb);
    let policy = Child::new(client, "NetworkPolicy", &children.network_policy);
    let (service_account, peers, config_map, clients, pdb, policy) = tokio::join!(
        service_account.reconcile(known, may_differ),
        peers.reconcile(known, may_differ),
        config_map.reconcile(known, may_differ),
        clients.reconcile(known, may_differ),
        pdb.reconcile(known, may_differ),
        async {
            if children.has_network_policy {
                policy.reconcile(known, may_differ).await
            } else if may_differ {
                policy.remove().await
            } else {
                Ok(Known::new())
            }
        },
    );
    let mut outcome = Outcome::default();
    for (result, is_needed) in
        [(service_account, true), (peers, true), (config_map, true), (clients, false), (pdb, false), (policy, false)]
    {
        match result {
            Ok(known) => outcome.known.extend(known),
            Err(error) if is_needed => outcome.needed.push(error),
            Err(error) => outcome.others.push(error),
        }
    }
    outcome
}

/// Applies the disruption budget alone, if it exists: it must protect nodes that the cluster needs even while nothing
/// else is applied.
///
/// # Errors
/// If a request fails.
pub async fn keep_budget(client: &Client, wanted: &PodDisruptionBudget, known: &mut Known) -> Result<(), Error> {
    let child = Child::new(client, "PodDisruptionBudget", wanted);
    let live = child.live().await?;
    if matches!(ownership_of(wanted, live.as_ref()), Ownership::Owned { .. }) {
        known.extend(child.reconcile_as(live.as_ref(), known).await?);
    }
    Ok(())
}

/// Applies a Secret unless the live one has the same owner, labels and data. `live` is what `wanted` was derived from:
/// if the Secret was changed since, the request fails with a conflict, and the next pass reads it again. Two operators
/// may run for a moment, and the later write must not put back an earlier access revision.
///
/// # Errors
/// If a request fails, or a Secret of another owner has the name.
pub async fn apply_secret(client: &Client, wanted: &Secret, live: Option<&Secret>) -> Result<(), Error> {
    let owned = matches!(ownership_of(wanted, live), Ownership::Owned { .. });
    let same = live.is_some_and(|live| {
        live.data == wanted.data && live.metadata.labels == wanted.metadata.labels && as_creator(live).is_none()
    });
    if !(owned && same) {
        let child = Child { only_as_read: true, ..Child::new(client, "Secret", wanted) };
        child.bring(live).await?;
    }
    Ok(())
}

/// Creates a Secret that is never overwritten. Returns `None` if one of this name exists.
///
/// # Errors
/// If the request fails for another reason.
pub async fn create_secret(client: &Client, wanted: &Secret) -> Result<Option<Secret>, Error> {
    let child = Child::new(client, "Secret", wanted);
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    match child.api.create(&params, wanted).await {
        Ok(secret) => Ok(Some(secret)),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
        Err(source) => Err(child.failed(source)),
    }
}

/// Makes the owner of `wanted` the owner of `live`, a Secret without an owner that is never overwritten.
///
/// # Errors
/// If the request fails, for example because the Secret was changed in the meantime.
pub async fn adopt_secret(client: &Client, wanted: &Secret, live: &Secret) -> Result<(), Error> {
    let child = Child::new(client, "Secret", wanted);
    let (uid, version) = (live.uid(), live.resource_version());
    let metadata = json!({"uid": uid, "resourceVersion": version, "ownerReferences": wanted.owner_references()});
    let patch = Patch::Merge(json!({"metadata": metadata}));
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    child.api.patch(&wanted.name_any(), &params, &patch).await.map(drop).map_err(|source| child.failed(source))
}

/// Applies the StatefulSet unless it is unchanged since it was last applied. Returns the new `status.workload`.
///
/// # Errors
/// If a request fails, or a StatefulSet of another owner has the name.
pub async fn apply_stateful_set(
    client: &Client,
    metrics: &Metrics,
    wanted: &StatefulSet,
    live: Option<&StatefulSet>,
    recorded: Option<&WorkloadStatus>,
) -> Result<WorkloadStatus, Error> {
    let hash = hash(wanted);
    if let (Some(live), Some(recorded), Ownership::Owned { uid }) = (live, recorded, ownership_of(wanted, live)) {
        let known = uid == recorded.uid && recorded.hash == hash;
        if known && live.metadata.generation == Some(recorded.generation) {
            return Ok(recorded.clone());
        }
        if known {
            let namespace = wanted.namespace().unwrap_or_default();
            metrics.drift(&namespace, &wanted.name_any(), "StatefulSet", &other_manager(live));
        }
    }
    let applied = Child::new(client, "StatefulSet", wanted).bring(live).await?;
    Ok(WorkloadStatus {
        hash,
        uid: applied.uid().unwrap_or_default(),
        generation: applied.metadata.generation.unwrap_or_default(),
    })
}

/// Returns the other field manager that wrote the object last.
fn other_manager(live: &StatefulSet) -> String {
    let managers = live.metadata.managed_fields.iter().flatten();
    managers
        .filter(|entry| entry.subresource.is_none() && entry.manager.as_deref() != Some(FIELD_MANAGER))
        .max_by_key(|entry| entry.time.as_ref().map(|time| time.0))
        .and_then(|entry| entry.manager.clone())
        .unwrap_or_else(|| "unknown".into())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::client::Body;
    use parking_lot::Mutex;

    use super::*;

    /// State of the fake API server.
    #[derive(Default)]
    struct Server {
        applied: u32,
        released: bool,
        conflicts: u32,
    }

    impl Server {
        /// Answers a PATCH: server-side apply keeps the creator's entry, a merge patch removes it unless it conflicts.
        fn patch(&mut self, content_type: &str) -> http::Response<Body> {
            let apply = json!({"manager": FIELD_MANAGER, "operation": "Apply"});
            let mut fields = vec![json!({"manager": FIELD_MANAGER, "operation": "Update"}), apply.clone()];
            if content_type.contains("apply") {
                self.applied += 1;
            } else if self.conflicts > 0 {
                self.conflicts -= 1;
                let status = json!({"kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409});
                return answer(409, &status);
            } else {
                self.released = true;
                fields = vec![apply];
            }
            answer(
                200,
                &json!({"metadata": {"name": "mosaic", "uid": "u", "resourceVersion": "2", "managedFields": fields}}),
            )
        }
    }

    fn answer(status: u16, body: &serde_json::Value) -> http::Response<Body> {
        http::Response::builder().status(status).body(Body::from(body.to_string().into_bytes())).unwrap()
    }

    /// Applies a ConfigMap against a server that answers the first releases with a conflict.
    async fn apply_with(conflicts: u32) -> (Result<ConfigMap, Error>, Arc<Mutex<Server>>) {
        let server = Arc::new(Mutex::new(Server { conflicts, ..Server::default() }));
        let state = server.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let content_type = request.headers()[http::header::CONTENT_TYPE].to_str().unwrap().to_owned();
            let answer = state.lock().patch(&content_type);
            async move { Ok::<_, Infallible>(answer) }
        });
        let wanted: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": "mosaic", "namespace": "n"}})).unwrap();
        let client = Client::new(service, "n");
        (Child::new(&client, "ConfigMap", &wanted).apply("u".into(), None).await, server)
    }

    #[tokio::test]
    async fn a_release_that_conflicts_is_tried_again_on_the_object_as_it_is_now() {
        let (applied, server) = apply_with(2).await;
        assert_eq!(applied.unwrap().managed_fields().len(), 1);
        let server = server.lock();
        assert_eq!((server.applied, server.released), (3, true));
    }

    #[tokio::test]
    async fn a_release_that_always_conflicts_is_an_error_and_not_a_reconciled_child() {
        let (applied, server) = apply_with(u32::MAX).await;
        assert!(applied.unwrap_err().to_string().starts_with("failed to apply ConfigMap mosaic"));
        assert_eq!(server.lock().applied, RELEASE_ATTEMPTS);
    }
}
