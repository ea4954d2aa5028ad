//! Whose an object is that has the name of a child. Pure.
//!
//! - Controlled by the cluster's uid: the cluster's, and applied.
//! - No owner at all, every label of the child, and a field that the operator wrote: what `kubectl delete --cascade=orphan`
//!   of a former cluster left. It is adopted, so that its brokers go on. Labels alone are no evidence, as they get copied
//!   together with a manifest; `metadata.managedFields` does not.
//! - Everything else keeps its name, and nothing of it changes. The garbage collector deletes the objects of a former
//!   cluster of the same name, hence these are waited for.

use covey_contract::names::FIELD_MANAGER;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt as _};

/// What may be done with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// No object has it.
    Free,
    /// The object with this uid is the owner's.
    Owned { uid: String },
    /// The object with this uid was a former owner's and is no one's now.
    Orphan { uid: String },
    /// Another's: nothing may be written.
    Taken(Holder),
}

/// Whose an object is that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// No owner is known.
    Unknown,
    /// Kind and name of its owner.
    Object { kind: String, name: String },
    /// An owner of our kind and name that is gone: the garbage collector will delete the object.
    Former { kind: String, name: String },
    /// It is being deleted.
    Deleting,
}

/// Says whose `live` is; `wanted` names its owner as its first reference.
pub fn claim<K>(wanted: &K, live: Option<&K>) -> Claim
where
    K: Resource<DynamicType = ()>,
{
    let Some(live) = live else { return Claim::Free };
    let uid = live.uid().unwrap_or_default();
    let owner = wanted.owner_references().first();
    let owners = live.owner_references();
    if owners.iter().any(|one| one.controller == Some(true) && owner.is_some_and(|owner| owner.uid == one.uid)) {
        return Claim::Owned { uid };
    }
    if live.meta().deletion_timestamp.is_some() {
        return Claim::Taken(Holder::Deleting);
    }
    if let Some(former) = owners.iter().find(|one| owner.is_some_and(|owner| is_former(owner, one))) {
        return Claim::Taken(Holder::Former { kind: former.kind.clone(), name: former.name.clone() });
    }
    if let Some(other) = owners.iter().find(|one| one.controller == Some(true)).or_else(|| owners.first()) {
        return Claim::Taken(Holder::Object { kind: other.kind.clone(), name: other.name.clone() });
    }
    let labelled = wanted.labels().iter().all(|(key, value)| live.labels().get(key) == Some(value));
    let written = live.managed_fields().iter().any(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
    if labelled && written { Claim::Orphan { uid } } else { Claim::Taken(Holder::Unknown) }
}

fn is_former(owner: &OwnerReference, one: &OwnerReference) -> bool {
    // The version may have been another one.
    let group = |reference: &OwnerReference| reference.api_version.split('/').next().map(str::to_owned);
    one.kind == owner.kind && one.name == owner.name && group(one) == group(owner) && one.uid != owner.uid
}

/// A name that is taken. The sentence says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.sentence())]
pub struct Taken {
    /// Kind and name of the object.
    pub kind: &'static str,
    pub name: String,
    pub holder: Holder,
    /// What needs the name: `cluster` or `user`.
    pub owner: &'static str,
}

impl Taken {
    fn sentence(&self) -> String {
        let Self { kind, name, holder, owner } = self;
        let remedy = format!("delete or rename it, or give the {owner} another name");
        match holder {
            Holder::Unknown => format!("{kind} {name} exists and does not belong to this {owner}: {remedy}"),
            Holder::Object { kind: other, name: of } => {
                format!("{kind} {name} exists and does not belong to this {owner} but to {other} {of}: {remedy}")
            }
            Holder::Former { kind: other, name: of } => {
                format!(
                    "{kind} {name} belongs to an earlier {other} {of}: waiting for the garbage collector to delete it"
                )
            }
            Holder::Deleting => {
                format!("{kind} {name} does not belong to this {owner} and is being deleted: waiting for its deletion")
            }
        }
    }
}
