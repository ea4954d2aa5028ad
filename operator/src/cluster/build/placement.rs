//! Builds the rules that spread the pods over machines and zones.

use covey_crds::Spread;
use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{ValidatedCluster, selector};

/// Labels over whose values the pods are spread in any case, as far as possible: running on fewer machines is better
/// than not running.
const ALWAYS: [&str; 2] = ["kubernetes.io/hostname", "topology.kubernetes.io/zone"];
/// Number of machines or zones that a required spread uses at least: with two, one of them holds a majority.
const MIN_DOMAINS: u32 = 3;

/// Builds the spread of `spec.placement`, followed by the others.
pub(super) fn spread(cluster: &ValidatedCluster) -> Vec<TopologySpreadConstraint> {
    let key = cluster.placement.topology_key.as_str();
    let chosen = match cluster.placement.spread {
        Spread::Preferred => preferred(cluster, key),
        Spread::Required => required(cluster, key),
    };
    let others = ALWAYS.into_iter().filter(|other| *other != key).map(|key| preferred(cluster, key));
    std::iter::once(chosen).chain(others).collect()
}

fn preferred(cluster: &ValidatedCluster, key: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: key.into(),
        when_unsatisfiable: "ScheduleAnyway".into(),
        label_selector: Some(LabelSelector { match_labels: Some(selector(&cluster.name)), match_expressions: None }),
        ..TopologySpreadConstraint::default()
    }
}

/// While there are fewer machines or zones than `minDomains`, each may have one pod. Those that have a taint that the
/// pods do not tolerate must not count: no pod could ever run there, so the others could have one pod each.
fn required(cluster: &ValidatedCluster, key: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        when_unsatisfiable: "DoNotSchedule".into(),
        min_domains: i32::try_from(cluster.replicas.min(MIN_DOMAINS)).ok(),
        node_taints_policy: Some("Honor".into()),
        ..preferred(cluster, key)
    }
}
