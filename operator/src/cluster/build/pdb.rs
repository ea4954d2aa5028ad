//! Builds the PodDisruptionBudget. [`crate::cluster::nodes::disruption_budget`] decides how many pods it permits to be
//! unavailable.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Owner, metadata, names_of, selector};

/// Builds the PodDisruptionBudget. `allowed` is the number of pods that may be unavailable.
pub fn pdb<'a>(cluster: impl Into<Owner<'a>>, replicas: u32, allowed: u32) -> PodDisruptionBudget {
    let cluster = cluster.into();
    // A single node has no other voters: a budget of 0 would block the drain of its machine for ever.
    let allowed = i32::try_from(if replicas == 1 { 1 } else { allowed }).unwrap_or(i32::MAX);
    PodDisruptionBudget {
        metadata: metadata(cluster, names_of(cluster).pdb),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(allowed)),
            selector: Some(LabelSelector { match_labels: Some(selector(cluster.name)), match_expressions: None }),
            // Evicting a pod that is not ready disrupts nothing.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
