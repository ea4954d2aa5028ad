//! Deletes the configuration ConfigMaps that are no longer needed.
//!
//! A pod mounts the one that its template named when it was created. Invariant: a ConfigMap is never deleted while a
//! pod mounts it or the StatefulSet's template names it, because the controller may create a pod at any moment.

use std::collections::BTreeSet;

use covey_contract::names;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodSpec};
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};

use super::ownership::{Claim, claim};

/// Returns the names of the ConfigMaps that are needed: `wanted`, those of the live template, and those of the pods.
pub(crate) fn in_use(wanted: &ConfigMap, stateful_set: Option<&StatefulSet>, pods: &[Pod]) -> BTreeSet<String> {
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
pub(crate) async fn collect(client: &Client, wanted: &ConfigMap, in_use: &BTreeSet<String>) -> Result<(), kube::Error> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &wanted.namespace().unwrap_or_default());
    let cluster = wanted.labels().get(names::LABEL_CLUSTER).map(String::as_str).unwrap_or_default();
    let of_cluster = ListParams::default().labels(&format!("{}={cluster}", names::LABEL_CLUSTER));
    for live in api.list(&of_cluster).await? {
        let ours = matches!(claim(wanted, Some(&live)), Claim::Owned { .. } | Claim::Orphan { .. });
        let name = live.name_any();
        if !ours || in_use.contains(&name) {
            continue;
        }
        let this = Preconditions { uid: live.uid(), resource_version: None };
        match api.delete(&name, &DeleteParams::default().preconditions(this)).await {
            Ok(_) => tracing::info!(%name, "deleted a ConfigMap that no pod mounts"),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
