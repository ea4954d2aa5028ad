//! Fourth step of a reconcile: children go to the API server.
//!
//! What is absent is created, so that an object of another that comes meanwhile answers AlreadyExists; what is the
//! cluster's is applied (server-side), with its uid as a precondition; what is another's is left alone ([`super::ownership`]).
//! Children do not wait for one another, except the StatefulSet: it comes last, and only when everything is there that
//! its pods mount or need. Invariant: a pass that wants what is there already changes no resourceVersion. The StatefulSet
//! is applied only when the wanted hash or the live generation changed: API servers are known on which applying it again
//! writes (kubernetes/kubernetes#119304; 1.37 did not in our test), and a generation that moved by itself is drift, which
//! is counted.

use std::collections::BTreeMap;
use std::fmt::Debug;

use covey_contract::names::FIELD_MANAGER;
use covey_crds::WorkloadStatus;
use covey_crds::condition::reason;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::build::{Children, hash};
use super::ownership::{Claim, Taken, claim};
use crate::metrics::Metrics;

/// Why a child is not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to apply {kind} {name}: {source}")]
    Request { kind: &'static str, name: String, source: Box<kube::Error> },
    #[error(transparent)]
    Taken(#[from] Taken),
    /// Another step made no child.
    #[error("{0}")]
    Missing(String),
    /// Never empty.
    #[error("{}", sentences(.0))]
    Several(Vec<Self>),
}

fn sentences(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// Reason of the condition that reports this.
    pub fn reason(&self) -> &'static str {
        if self.is_taken() { reason::NAME_TAKEN } else { reason::APPLY_FAILED }
    }

    fn is_taken(&self) -> bool {
        match self {
            Self::Taken(_) => true,
            Self::Several(errors) => errors.iter().any(Self::is_taken),
            Self::Request { .. } | Self::Missing(_) => false,
        }
    }

    /// All failures as one; `Ok` if there are none.
    pub fn all(failures: impl IntoIterator<Item = Self>) -> Result<(), Self> {
        let mut failures: Vec<Self> = failures.into_iter().collect();
        match failures.len() {
            0 => Ok(()),
            1 => failures.pop().map_or(Ok(()), Err),
            _ => Err(Self::Several(failures)),
        }
    }
}

/// By kind and name: hash of what was applied, and the resourceVersion that this made.
pub type Known = BTreeMap<(&'static str, String), (String, Option<String>)>;

/// What became of the children that are looked at on every pass.
#[derive(Debug, Default)]
pub struct Outcome {
    pub known: Known,
    /// Failures of children that a pod needs.
    pub needed: Vec<Error>,
    /// Failures of the others.
    pub others: Vec<Error>,
}

/// A child's API, with what an error says about it.
struct Child<'a, K> {
    api: Api<K>,
    kind: &'static str,
    wanted: &'a K,
}

impl<'a, K> Child<'a, K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    fn new(client: &Client, kind: &'static str, wanted: &'a K) -> Self {
        Self { api: Api::namespaced(client.clone(), &wanted.namespace().unwrap_or_default()), kind, wanted }
    }

    fn failed(&self, source: kube::Error) -> Error {
        Error::Request { kind: self.kind, name: self.wanted.name_any(), source: Box::new(source) }
    }

    /// Reads the object of this name, and makes it as wanted unless it is as the last application left it. Returns its
    /// part of what is known.
    async fn settle(&self, known: &Known) -> Result<Known, Error> {
        let key = (self.kind, self.wanted.name_any());
        let live = self.api.get_opt(&key.1).await.map_err(|error| self.failed(error))?;
        let hash = hash(self.wanted);
        let left = known.get(&key).filter(|(applied, _)| *applied == hash).and_then(|(_, version)| version.as_ref());
        let version = match live.as_ref().and_then(K::resource_version) {
            Some(version) if left == Some(&version) => Some(version),
            _ => self.bring(live.as_ref()).await?.resource_version(),
        };
        Ok(Known::from([(key, (hash, version))]))
    }

    /// Makes the object as wanted where nothing or the cluster's own has its name.
    async fn bring(&self, live: Option<&K>) -> Result<K, Error> {
        match claim(self.wanted, live) {
            Claim::Free => {
                let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
                let created = self.api.create(&params, self.wanted).await.map_err(|error| self.failed(error))?;
                self.apply(created.uid().unwrap_or_default()).await
            }
            Claim::Owned { uid } | Claim::Orphan { uid } => self.apply(uid).await,
            Claim::Taken(holder) => {
                Err(Taken { kind: self.kind, name: self.wanted.name_any(), holder, owner: "cluster" }.into())
            }
        }
    }

    /// Applies to the object with this uid; the API server answers a conflict where another object has the name by now.
    async fn apply(&self, uid: String) -> Result<K, Error> {
        let mut wanted = self.wanted.clone();
        wanted.meta_mut().uid = Some(uid);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let applied = self.api.patch(&wanted.name_any(), &params, &Patch::Apply(&wanted)).await;
        let applied = applied.map_err(|error| self.failed(error))?;
        self.release(applied).await
    }

    /// Gives up the fields that the operator owns as the object's creator: what is owned in two ways stays when it is no
    /// longer applied. Only an object that was just created has such an entry.
    async fn release(&self, applied: K) -> Result<K, Error> {
        let as_creator = applied.managed_fields().iter().position(|entry| {
            entry.manager.as_deref() == Some(FIELD_MANAGER)
                && entry.operation.as_deref() == Some("Update")
                && entry.subresource.as_deref().unwrap_or_default().is_empty()
        });
        let Some(index) = as_creator else { return Ok(applied) };
        let mut others = applied.managed_fields().to_vec();
        others.remove(index);
        let metadata = json!({"resourceVersion": applied.resource_version(), "managedFields": others});
        let name = self.wanted.name_any();
        match self.api.patch(&name, &PatchParams::default(), &Patch::Merge(json!({"metadata": metadata}))).await {
            Ok(released) => Ok(released),
            Err(error) => {
                tracing::debug!(kind = self.kind, %name, %error, "failed to release a creator's fields");
                Ok(applied)
            }
        }
    }
}

/// Settles the children that are looked at on every pass, all at once.
pub async fn apply_children(client: &Client, children: &Children, known: &Known) -> Outcome {
    let service_account = Child::new(client, "ServiceAccount", &children.service_account);
    let peers = Child::new(client, "Service", &children.peers_service);
    let clients = Child::new(client, "Service", &children.client_service);
    let config_map = Child::new(client, "ConfigMap", &children.config_map);
    let pdb = Child::new(client, "PodDisruptionBudget", &children.pdb);
    let (service_account, peers, config_map, clients, pdb) = tokio::join!(
        service_account.settle(known),
        peers.settle(known),
        config_map.settle(known),
        clients.settle(known),
        pdb.settle(known),
    );
    let mut outcome = Outcome::default();
    for (result, is_needed) in
        [(service_account, true), (peers, true), (config_map, true), (clients, false), (pdb, false)]
    {
        match result {
            Ok(known) => outcome.known.extend(known),
            Err(error) if is_needed => outcome.needed.push(error),
            Err(error) => outcome.others.push(error),
        }
    }
    outcome
}

/// Applies a Secret unless the live one has the same owner and data.
pub async fn apply_secret(client: &Client, wanted: &Secret, live: Option<&Secret>) -> Result<(), Error> {
    let owned = matches!(claim(wanted, live), Claim::Owned { .. });
    let same = live.is_some_and(|live| live.data == wanted.data && live.metadata.labels == wanted.metadata.labels);
    if !(owned && same) {
        Child::new(client, "Secret", wanted).bring(live).await?;
    }
    Ok(())
}

/// Creates a Secret that is never applied over; `None`: another one is there already.
pub async fn create_secret(client: &Client, wanted: &Secret) -> Result<Option<Secret>, Error> {
    let child = Child::new(client, "Secret", wanted);
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    match child.api.create(&params, wanted).await {
        Ok(secret) => Ok(Some(secret)),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
        Err(source) => Err(child.failed(source)),
    }
}

/// Makes the owner of `wanted` the owner of a Secret that is never applied over, and which no one owns.
pub async fn adopt_secret(client: &Client, wanted: &Secret, live: &Secret) -> Result<(), Error> {
    let child = Child::new(client, "Secret", wanted);
    let (uid, version) = (live.uid(), live.resource_version());
    let metadata = json!({"uid": uid, "resourceVersion": version, "ownerReferences": wanted.owner_references()});
    let patch = Patch::Merge(json!({"metadata": metadata}));
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    child.api.patch(&wanted.name_any(), &params, &patch).await.map(drop).map_err(|source| child.failed(source))
}

/// Applies the StatefulSet when it is not what was last applied, and says what to remember.
pub async fn apply_stateful_set(
    client: &Client,
    metrics: &Metrics,
    wanted: &StatefulSet,
    live: Option<&StatefulSet>,
    recorded: Option<&WorkloadStatus>,
) -> Result<WorkloadStatus, Error> {
    let hash = hash(wanted);
    if let (Some(live), Some(recorded), Claim::Owned { uid }) = (live, recorded, claim(wanted, live)) {
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

/// Who else wrote the spec last.
fn other_manager(live: &StatefulSet) -> String {
    let managers = live.metadata.managed_fields.iter().flatten();
    managers
        .filter(|entry| entry.subresource.is_none() && entry.manager.as_deref() != Some(FIELD_MANAGER))
        .max_by_key(|entry| entry.time.as_ref().map(|time| time.0))
        .and_then(|entry| entry.manager.clone())
        .unwrap_or_else(|| "unknown".into())
}
