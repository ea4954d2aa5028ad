//! Builds the PodDisruptionBudget, which writes down what [`crate::cluster::evictions`] decides.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Owner, POD_NAME_LABEL, metadata, names_of, selector};
use crate::cluster::evictions::Evictions;

/// Builds the PodDisruptionBudget. Its selector names the pods, because with `minAvailable` each pod that it selects
/// counts, and with `maxUnavailable` each that the StatefulSet should have.
pub fn pdb<'a>(cluster: impl Into<Owner<'a>>, evictions: &Evictions) -> PodDisruptionBudget {
    let cluster = cluster.into();
    let named = LabelSelectorRequirement {
        key: POD_NAME_LABEL.into(),
        operator: "In".into(),
        values: Some(evictions.protected.clone()),
    };
    let policy = if evictions.protect_unready { "IfHealthyBudget" } else { "AlwaysAllow" };
    PodDisruptionBudget {
        metadata: metadata(cluster, names_of(cluster).pdb),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(i32::try_from(evictions.min_available).unwrap_or(i32::MAX))),
            selector: Some(LabelSelector {
                match_labels: Some(selector(cluster.name)),
                match_expressions: Some(vec![named]),
            }),
            unhealthy_pod_eviction_policy: Some(policy.into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
