//! Decides who owns an object that has the name of a child. Pure.
//!
//! - The cluster's uid is its controller: it belongs to the cluster, and is applied.
//! - It has no owner, every label of the child, and a field that the operator wrote: `kubectl delete --cascade=orphan`
//!   of a former cluster left it. It is adopted, so that its brokers keep running. Labels alone prove nothing, because
//!   they are copied together with a manifest, unlike `metadata.managedFields`.
//! - Every other object is left unchanged. The garbage collector deletes the objects of a former cluster of the same
//!   name, so the operator waits for that.

use covey_contract::names::FIELD_MANAGER;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt as _};

/// Who owns the object that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// No object has the name.
    Free,
    /// The object with this uid belongs to the owner.
    Owned { uid: String },
    /// The object with this uid belonged to a former owner and has no owner now.
    Orphan { uid: String },
    /// The object belongs to another owner: nothing may be written.
    Taken(Holder),
}

/// Who holds a name that is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// No owner is known.
    Unknown,
    /// Kind and name of the object's owner.
    Object { kind: String, name: String },
    /// A deleted owner of the same kind and name: the garbage collector will delete the object.
    Former { kind: String, name: String },
    /// The object is being deleted.
    Deleting,
}

/// Returns who owns `live`. The first owner reference of `wanted` is the owner that claims the name.
pub fn ownership_of<K>(wanted: &K, live: Option<&K>) -> Ownership
where
    K: Resource<DynamicType = ()>,
{
    let Some(live) = live else { return Ownership::Free };
    let uid = live.uid().unwrap_or_default();
    let owner = wanted.owner_references().first();
    let owners = live.owner_references();
    if owners.iter().any(|one| one.controller == Some(true) && owner.is_some_and(|owner| owner.uid == one.uid)) {
        return Ownership::Owned { uid };
    }
    if live.meta().deletion_timestamp.is_some() {
        return Ownership::Taken(Holder::Deleting);
    }
    if let Some(former) = owners.iter().find(|one| owner.is_some_and(|owner| is_former(owner, one))) {
        return Ownership::Taken(Holder::Former { kind: former.kind.clone(), name: former.name.clone() });
    }
    if let Some(other) = owners.iter().find(|one| one.controller == Some(true)).or_else(|| owners.first()) {
        return Ownership::Taken(Holder::Object { kind: other.kind.clone(), name: other.name.clone() });
    }
    let labelled = wanted.labels().iter().all(|(key, value)| live.labels().get(key) == Some(value));
    let written = live.managed_fields().iter().any(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
    if labelled && written { Ownership::Orphan { uid } } else { Ownership::Taken(Holder::Unknown) }
}

fn is_former(owner: &OwnerReference, one: &OwnerReference) -> bool {
    // Compares groups without versions, because the former owner may have had another version.
    let group = |reference: &OwnerReference| reference.api_version.split('/').next().map(str::to_owned);
    one.kind == owner.kind && one.name == owner.name && group(one) == group(owner) && one.uid != owner.uid
}

/// A name that is taken. The message says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.sentence())]
pub struct Taken {
    /// Kind and name of the object.
    pub kind: &'static str,
    pub name: String,
    pub holder: Holder,
    /// Kind of the owner that needs the name: `cluster` or `user`.
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
