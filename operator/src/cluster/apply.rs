//! Fourth step of a reconcile: children go to the API server by server-side apply.
//!
//! Order matters: names, configuration and Secrets first, the StatefulSet last, or pods wait for mounts. Invariant: a pass
//! that wants what is there already changes no resourceVersion. The StatefulSet is applied only when the wanted hash or the
//! live generation changed: API servers are known on which applying it again writes (kubernetes/kubernetes#119304; 1.37 did
//! not in our test), and a generation that moved by itself is drift, which is counted.

use std::fmt::Debug;

use covey_contract::names::FIELD_MANAGER;
use covey_crds::WorkloadStatus;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::build::{Children, hash};
use crate::metrics::Metrics;

/// Which child could not be applied.
#[derive(Debug, thiserror::Error)]
#[error("failed to apply {kind} {name}: {source}")]
pub struct Error {
    pub kind: &'static str,
    pub name: String,
    pub source: Box<kube::Error>,
}

/// Applies one object.
async fn apply<K>(client: &Client, kind: &'static str, object: &K) -> Result<K, Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let name = object.name_any();
    let api: Api<K> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object)).await.map_err(|source| Error {
        kind,
        name,
        source: Box::new(source),
    })
}

/// Applies what a StatefulSet needs.
pub async fn apply_children(client: &Client, children: &Children) -> Result<(), Error> {
    apply(client, "ServiceAccount", &children.service_account).await?;
    apply(client, "Service", &children.peers_service).await?;
    apply(client, "Service", &children.client_service).await?;
    apply(client, "ConfigMap", &children.config_map).await?;
    apply(client, "PodDisruptionBudget", &children.pdb).await?;
    Ok(())
}

/// Applies a Secret unless the live one has the same data.
pub async fn apply_secret(client: &Client, wanted: &Secret, live: Option<&Secret>) -> Result<(), Error> {
    let same = live.is_some_and(|live| live.data == wanted.data && live.metadata.labels == wanted.metadata.labels);
    if !same {
        apply(client, "Secret", wanted).await?;
    }
    Ok(())
}

/// Creates a Secret that is never applied over; `None`: another one is there already.
pub async fn create_secret(client: &Client, wanted: &Secret) -> Result<Option<Secret>, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &wanted.namespace().unwrap_or_default());
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    match api.create(&params, wanted).await {
        Ok(secret) => Ok(Some(secret)),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
        Err(source) => Err(Error { kind: "Secret", name: wanted.name_any(), source: Box::new(source) }),
    }
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
    if let (Some(live), Some(recorded)) = (live, recorded) {
        let known = live.uid().as_deref() == Some(recorded.uid.as_str()) && recorded.hash == hash;
        if known && live.metadata.generation == Some(recorded.generation) {
            return Ok(recorded.clone());
        }
        if known {
            let namespace = wanted.namespace().unwrap_or_default();
            metrics.drift(&namespace, &wanted.name_any(), "StatefulSet", &other_manager(live));
        }
    }
    let applied = apply(client, "StatefulSet", wanted).await?;
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
