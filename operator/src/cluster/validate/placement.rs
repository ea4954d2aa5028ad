//! Parses and checks `spec.placement`. The API server does not check the pod template of a StatefulSet, so what is wrong
//! here would otherwise be found only when the first pod is replaced.

use std::collections::BTreeMap;

use covey_crds::{Placement, Spread, TaintEffect, Toleration, TolerationOperator, format};
use k8s_openapi::api::core::v1 as core;
use serde_json::Value;

use super::Problems;

/// Where the pods are scheduled.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ValidatedPlacement {
    pub spread: Spread,
    /// Label of machines whose values the pods are spread over.
    pub topology_key: String,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<core::Toleration>,
    pub affinity: Option<core::Affinity>,
    pub priority_class: Option<String>,
}

pub(super) fn validate(placement: &Placement, problems: &mut Problems) -> ValidatedPlacement {
    problems.expect(
        format::is_label_key(&placement.topology_key),
        "placement.topologyKey must be the key of a label, such as topology.kubernetes.io/zone",
    );
    for (key, value) in &placement.node_selector {
        problems.expect(
            format::is_label_key(key) && format::is_label_value(value),
            &format!("placement.nodeSelector: {key}={value} is not a label"),
        );
    }
    problems.expect(
        placement.node_selector.len() <= 32 && placement.tolerations.len() <= 32,
        "placement.nodeSelector and placement.tolerations must not have more than 32 entries",
    );
    problems.expect(
        placement.priority_class_name.as_deref().is_none_or(format::is_object_name),
        "placement.priorityClassName must be the name of a PriorityClass: lower case letters, digits, dashes and dots",
    );
    ValidatedPlacement {
        spread: placement.spread,
        topology_key: placement.topology_key.clone(),
        node_selector: placement.node_selector.clone(),
        tolerations: placement.tolerations.iter().map(|one| toleration(one, problems)).collect(),
        affinity: placement.affinity.as_ref().and_then(|one| affinity(&Value::Object(one.clone()), problems)),
        priority_class: placement.priority_class_name.clone(),
    }
}

fn toleration(one: &Toleration, problems: &mut Problems) -> core::Toleration {
    let exists = one.operator == TolerationOperator::Exists;
    problems.expect(
        one.key.as_deref().map_or(exists, format::is_label_key),
        "placement.tolerations: a toleration has the key of a taint, or operator Exists and no key",
    );
    problems.expect(
        one.value.as_deref().is_none_or(|value| !exists && format::is_label_value(value)),
        "placement.tolerations: a toleration with operator Exists has no value",
    );
    problems.expect(
        one.toleration_seconds.is_none() || one.effect == Some(TaintEffect::NoExecute),
        "placement.tolerations: tolerationSeconds needs effect NoExecute",
    );
    let effect = one.effect.map(|effect| match effect {
        TaintEffect::NoSchedule => "NoSchedule",
        TaintEffect::PreferNoSchedule => "PreferNoSchedule",
        TaintEffect::NoExecute => "NoExecute",
    });
    core::Toleration {
        key: one.key.clone(),
        operator: Some(if exists { "Exists" } else { "Equal" }.to_owned()),
        value: one.value.clone(),
        effect: effect.map(str::to_owned),
        toleration_seconds: one.toleration_seconds,
    }
}

/// Parses an affinity. The type leaves out fields that it does not know, so what it wrote is compared with what it read.
fn affinity(given: &Value, problems: &mut Problems) -> Option<core::Affinity> {
    match serde_json::from_value::<core::Affinity>(given.clone()) {
        Ok(affinity) => {
            let known = serde_json::to_value(&affinity).expect("an object of the API server is JSON");
            problems.expect(
                known == *given,
                "placement.affinity has a field that the affinity of a Pod does not have, or lacks a required one",
            );
            Some(affinity)
        }
        Err(error) => {
            problems.expect(false, &format!("placement.affinity must be the affinity of a Pod: {error}"));
            None
        }
    }
}
