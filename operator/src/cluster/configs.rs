//! Deletes the configuration ConfigMaps that are no longer needed.
//!
//! A pod mounts the one that its template named when it was created. Invariant: a ConfigMap is never deleted while a
//! pod mounts it or the StatefulSet's template names it, because the controller may create a pod at any moment. Until the
//! controller has observed the template, it may still create pods from an earlier one. Therefore nothing is deleted
//! before, and the pods are listed afterwards.

use std::collections::BTreeSet;

use covey_contract::names;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodSpec};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

use super::apply::delete_owned;
use super::dereference::{self, Inputs};

/// Deletes the cluster's ConfigMaps that are not in use, if the set of those in use has changed. `last` is the set of the
/// last deletion. A failure is logged and retried by the next pass.
pub(crate) async fn delete_unused(
    client: &Client,
    wanted: &ConfigMap,
    inputs: &Inputs,
    last: &mut Option<BTreeSet<String>>,
) {
    let used = in_use(wanted, inputs.stateful_set.as_ref(), &inputs.pods);
    if last.as_ref() == Some(&used) || !inputs.stateful_set.as_ref().is_some_and(is_observed) {
        return;
    }
    let deleted = async {
        // The list of this pass may be older than the last pod of an earlier template.
        let Inputs { cluster, .. } = inputs;
        let pods = dereference::pods(client, &cluster.namespace().unwrap_or_default(), &cluster.name_any()).await?;
        collect(client, wanted, &(&used | &in_use(wanted, None, &pods))).await
    };
    match deleted.await {
        Ok(()) => *last = Some(used),
        Err(error) => tracing::warn!(%error, "failed to delete ConfigMaps that no pod mounts"),
    }
}

/// Returns whether the controller has observed the template that was read: it creates no more pods from an earlier one.
fn is_observed(stateful_set: &StatefulSet) -> bool {
    let observed = stateful_set.status.as_ref().and_then(|status| status.observed_generation);
    observed.is_some() && observed >= stateful_set.metadata.generation
}

/// Returns the names of the ConfigMaps that are needed: `wanted`, those of the live template, and those of the pods.
fn in_use(wanted: &ConfigMap, stateful_set: Option<&StatefulSet>, pods: &[Pod]) -> BTreeSet<String> {
    let template = stateful_set.and_then(|set| set.spec.as_ref()?.template.spec.as_ref());
    let specs = pods.iter().filter_map(|pod| pod.spec.as_ref()).chain(template);
    specs.flat_map(mounted).chain([wanted.name_any()]).collect()
}

fn mounted(spec: &PodSpec) -> impl Iterator<Item = String> {
    let volumes = spec.volumes.iter().flatten();
    volumes.filter_map(|volume| volume.config_map.as_ref().map(|source| source.name.clone()))
}

/// Deletes the cluster's ConfigMaps that are not in use. Objects of others are kept even if they have its labels.
///
/// # Errors
/// If a request fails. Earlier deletions of the same call remain.
async fn collect(client: &Client, wanted: &ConfigMap, in_use: &BTreeSet<String>) -> Result<(), kube::Error> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &wanted.namespace().unwrap_or_default());
    let cluster = wanted.labels().get(names::LABEL_CLUSTER).map(String::as_str).unwrap_or_default();
    let of_cluster = ListParams::default().labels(&format!("{}={cluster}", names::LABEL_CLUSTER));
    for live in api.list(&of_cluster).await? {
        let name = live.name_any();
        if !in_use.contains(&name) && delete_owned(&api, wanted, &live).await? {
            tracing::info!(%name, "deleted a ConfigMap that no pod mounts");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_that_the_controller_has_not_seen_is_not_observed() {
        let set = |observed: serde_json::Value| -> StatefulSet {
            let status = json!({"replicas": 1, "observedGeneration": observed});
            serde_json::from_value(json!({"metadata": {"generation": 4}, "status": status})).unwrap()
        };
        assert!(is_observed(&set(json!(4))));
        assert!(!is_observed(&set(json!(3))));
        assert!(!is_observed(&set(json!(null))));
    }

    #[test]
    fn what_a_pod_mounts_or_the_template_names_is_in_use() {
        let mounting =
            |name: &str| json!({"containers": [], "volumes": [{"name": "config", "configMap": {"name": name}}]});
        let pod = |name: &str| serde_json::from_value(json!({"metadata": {}, "spec": mounting(name)})).unwrap();
        let wanted = serde_json::from_value(json!({"metadata": {"name": "wanted"}})).unwrap();
        let set: StatefulSet = serde_json::from_value(json!({"metadata": {}, "spec": {
            "selector": {}, "serviceName": "peers", "template": {"metadata": {}, "spec": mounting("template")}
        }}))
        .unwrap();
        let found = in_use(&wanted, Some(&set), &[pod("first"), pod("second"), pod("second")]);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["first", "second", "template", "wanted"]);
        assert_eq!(in_use(&wanted, None, &[]).into_iter().collect::<Vec<_>>(), ["wanted"]);
    }
}
