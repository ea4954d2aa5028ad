//! Says which volume claims are not those of the spec.
//!
//! Neither a claim nor the claim template of a StatefulSet can be corrected, and a claim outlives its cluster. The
//! operator deletes no claims, because they may hold data, so the conditions name those that a person has to delete.

use covey_contract::names;
use covey_crds::Quantity;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::build;
use super::nodes::Node;
use super::ownership::{Ownership, ownership_of};
use super::problem::Cause;
use super::validate::ValidatedCluster;

/// Adds to the problem of each node whose pod cannot be scheduled the claim that is the likely cause. Does nothing
/// while there is no such node. A failure to list claims is only logged, so that the pass continues.
pub(crate) async fn explain_unscheduled(client: &Client, cluster: &ValidatedCluster, nodes: &mut [Node]) {
    let is_unscheduled =
        |node: &Node| node.problem.as_ref().is_some_and(|problem| problem.cause == Cause::Unschedulable);
    if !nodes.iter().any(is_unscheduled) {
        return;
    }
    let claims = list(client, &cluster.namespace, &cluster.name).await;
    for node in nodes.iter_mut().filter(|node| is_unscheduled(node)) {
        let name = format!("{}-{}", build::DATA, node.name);
        let claim = claims.iter().find(|claim| claim.name_any() == name);
        if let (Some(problem), Some(claim)) = (&mut node.problem, claim)
            && let Some(sentence) = other_class(cluster.storage.class.as_deref(), claim, &problem.message)
        {
            problem.message = format!("{}; {sentence}", problem.message);
        }
    }
}

/// Returns why the StatefulSet cannot be applied, if its claims were made from other settings of `spec.storage`.
pub(crate) async fn conflict(client: &Client, wanted: &StatefulSet, live: Option<&StatefulSet>) -> Option<String> {
    let ours = matches!(ownership_of(wanted, live), Ownership::Owned { .. } | Ownership::Orphan { .. });
    let live = live.filter(|live| ours && is_changed(wanted, live))?;
    let name = live.name_any();
    let claims = list(client, &live.namespace().unwrap_or_default(), &name).await;
    Some(remedy(&name, &claims))
}

/// Lists the claims of a cluster; none if the request fails.
async fn list(client: &Client, namespace: &str, cluster: &str) -> Vec<PersistentVolumeClaim> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let of_cluster = ListParams::default().labels(&format!("{}={cluster}", names::LABEL_CLUSTER));
    match api.list(&of_cluster).await {
        Ok(claims) => claims.items,
        Err(error) => {
            tracing::warn!(%error, "failed to list volume claims");
            vec![]
        }
    }
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

/// Returns what is wrong with the storage class of a claim that is not bound, if it differs from `wanted`. Without a
/// wanted class it is the default one, which is not known here; then the scheduler must have blamed the claim.
fn other_class(wanted: Option<&str>, claim: &PersistentVolumeClaim, scheduler: &str) -> Option<String> {
    let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    let name = claim.name_any();
    match (wanted, class) {
        _ if is_bound(claim) => None,
        (Some(wanted), class) if class != Some(wanted) => {
            let class = class.unwrap_or("none");
            Some(format!(
                "its claim {name} has the storage class {class} and not {wanted}: delete the claim, and it is made again"
            ))
        }
        (None, Some(class))
            if ["PersistentVolumeClaim", "storageclass"].iter().any(|word| scheduler.contains(word)) =>
        {
            Some(format!(
                "its claim {name} has the storage class {class}: if that is not the default class, delete the claim, \
                 and it is made again"
            ))
        }
        _ => None,
    }
}

/// Returns whether the claim templates differ in what `spec.storage` sets.
fn is_changed(wanted: &StatefulSet, live: &StatefulSet) -> bool {
    let settings = |set: &StatefulSet| {
        let claim = set.spec.as_ref()?.volume_claim_templates.as_ref()?.first()?.spec.clone()?;
        let size = claim.resources.and_then(|resources| resources.requests)?.get("storage")?.0.clone();
        // The API server may write the same number of bytes in another way.
        Some((Quantity::new(size).bytes(), claim.access_modes, claim.storage_class_name))
    };
    settings(wanted) != settings(live)
}

fn remedy(stateful_set: &str, claims: &[PersistentVolumeClaim]) -> String {
    let names = |bound: bool| -> Vec<String> {
        claims.iter().filter(|claim| is_bound(claim) == bound).map(ResourceExt::name_any).collect()
    };
    let (empty, bound) = (names(false), names(true));
    let mut text = format!(
        "size, accessMode or storageClassName of spec.storage have changed, and the claims of StatefulSet {stateful_set} \
         cannot: delete the StatefulSet"
    );
    if !empty.is_empty() {
        text = format!("{text} and the claims {}, which are not bound", empty.join(", "));
    }
    if !bound.is_empty() {
        text = format!(
            "{text}; also the claims {}, unless their volumes hold data that you need: then set spec.storage back",
            bound.join(", ")
        );
    }
    format!("{text}. What was deleted is made again")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn volume_claim(name: &str, class: Option<&str>, phase: &str) -> PersistentVolumeClaim {
        let spec = json!({"storageClassName": class});
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec, "status": {"phase": phase}})).unwrap()
    }

    #[test]
    fn an_unbound_claim_of_another_class_is_named() {
        let scheduler =
            "cannot be scheduled: 0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims";
        let found = |wanted, class, phase, text| other_class(wanted, &volume_claim("data-a-0", class, phase), text);
        assert_eq!(
            found(Some("fast"), Some("fsat"), "Pending", "").unwrap(),
            "its claim data-a-0 has the storage class fsat and not fast: delete the claim, and it is made again"
        );
        assert!(found(Some("fast"), None, "Pending", "").unwrap().contains("the storage class none and not fast"));
        assert!(found(None, Some("fsat"), "Pending", scheduler).unwrap().contains("if that is not the default class"));
        assert_eq!(found(None, Some("standard"), "Pending", "cannot be scheduled: Insufficient cpu"), None);
        assert_eq!(found(Some("fast"), Some("fast"), "Pending", scheduler), None);
        assert_eq!(found(Some("fast"), Some("fsat"), "Bound", scheduler), None, "it may hold data");
    }

    #[test]
    fn only_a_change_of_the_claims_is_one() {
        let set = |size: &str, class: Option<&str>| -> StatefulSet {
            let claim = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "resources": {"requests": {"storage": size}}, "volumeMode": "Filesystem"});
            serde_json::from_value(json!({"metadata": {}, "spec": {
                "selector": {}, "serviceName": "peers", "template": {}, "volumeClaimTemplates": [{"spec": claim}]
            }}))
            .unwrap()
        };
        assert!(!is_changed(&set("1024Mi", None), &set("1Gi", None)));
        assert!(is_changed(&set("2Gi", None), &set("1Gi", None)));
        assert!(is_changed(&set("1Gi", Some("fast")), &set("1Gi", None)));
    }

    #[test]
    fn the_remedy_tells_empty_claims_from_those_that_may_hold_data() {
        let claims = [volume_claim("data-a-0", None, "Bound"), volume_claim("data-a-1", None, "Pending")];
        assert_eq!(
            remedy("a", &claims),
            "size, accessMode or storageClassName of spec.storage have changed, and the claims of StatefulSet a cannot: \
             delete the StatefulSet and the claims data-a-1, which are not bound; also the claims data-a-0, unless \
             their volumes hold data that you need: then set spec.storage back. What was deleted is made again"
        );
        assert!(remedy("a", &[]).ends_with("cannot: delete the StatefulSet. What was deleted is made again"));
    }
}
