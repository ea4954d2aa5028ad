//! Builds the PodDisruptionBudget: one pod at a time, and none while a group has a voter that is not in sync.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{ValidatedCluster, metadata, names_of, selector};

pub(super) fn build(cluster: &ValidatedCluster, settled: bool) -> PodDisruptionBudget {
    // A single node has no other voters: a budget of 0 would block the drain of its machine for ever.
    let allowed = i32::from(settled || cluster.replicas == 1);
    PodDisruptionBudget {
        metadata: metadata(cluster, names_of(cluster).pdb),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(allowed)),
            selector: Some(LabelSelector { match_labels: Some(selector(&cluster.name)), match_expressions: None }),
            // Evicting a pod that is not ready disrupts nothing.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
