//! Builds the PodDisruptionBudget, which writes down what [`crate::cluster::evictions`] decides.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Owner, metadata, names_of, selector};
use crate::cluster::evictions::Evictions;

/// Label with a pod's name, set by the StatefulSet controller.
const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";

/// Builds the PodDisruptionBudget. A pod that its selector excludes may be evicted at any time.
pub fn pdb<'a>(cluster: impl Into<Owner<'a>>, evictions: &Evictions) -> PodDisruptionBudget {
    let cluster = cluster.into();
    let excluded = evictions.unprotected.as_ref().map(|pod| {
        vec![LabelSelectorRequirement {
            key: POD_NAME_LABEL.into(),
            operator: "NotIn".into(),
            values: Some(vec![pod.clone()]),
        }]
    });
    let policy = if evictions.protect_unready { "IfHealthyBudget" } else { "AlwaysAllow" };
    PodDisruptionBudget {
        metadata: metadata(cluster, names_of(cluster).pdb),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(i32::try_from(evictions.max_unavailable).unwrap_or(i32::MAX))),
            selector: Some(LabelSelector { match_labels: Some(selector(cluster.name)), match_expressions: excluded }),
            unhealthy_pod_eviction_policy: Some(policy.into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
