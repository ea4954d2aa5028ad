//! Builds the NetworkPolicy, which says from where each port of the pods can be reached.
//!
//! It restricts what enters the pods and nothing that leaves them: brokers connect to each other and to the name server,
//! whose place differs between Kubernetes clusters. The probes of the kubelet need no rule, because a pod can always be
//! reached from its own machine.

use std::collections::{BTreeMap, BTreeSet};

use covey_contract::names;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{ValidatedCluster, metadata, names_of, selector};
use crate::options::OperatorPods;

/// Ports that no listener has.
const OWN_PORTS: [u16; 3] = [names::PORT_PEER, names::PORT_ADMIN, names::PORT_HTTP];
/// Label of a namespace with its name, set by the API server.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

/// Builds the NetworkPolicy. `pods` are those that exist. `operator` is absent if it is not known which pods run the
/// operator: then port 7884 can be reached from anywhere, because the operator must not lock itself out. Clients of the
/// port need a certificate of the operator in any case.
pub(super) fn build(cluster: &ValidatedCluster, pods: &[Pod], operator: Option<&OperatorPods>) -> NetworkPolicy {
    let operator = operator.map(pods_of_operator);
    let brokers = NetworkPolicyPeer { pod_selector: Some(select(selector(&cluster.name))), ..Default::default() };
    let monitoring = cluster.network.monitoring.clone().map(|from| from.into_iter().chain(operator.clone()).collect());
    let own = [
        rule([names::PORT_PEER], Some(vec![brokers])),
        rule([names::PORT_ADMIN], operator.map(|operator| vec![operator])),
        rule([names::PORT_HTTP], monitoring),
    ];
    let listeners = listener_ports(cluster, pods);
    let listeners =
        listeners.into_iter().map(|(name, ports)| rule(ports, cluster.network.listeners.get(name).cloned()));
    NetworkPolicy {
        metadata: metadata(cluster, names_of(cluster).network_policy),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(select(selector(&cluster.name))),
            policy_types: Some(vec!["Ingress".into()]),
            ingress: Some(listeners.chain(own).collect()),
            egress: None,
        }),
    }
}

/// Returns the ports of each listener: that of the spec, and those of pods that still have an earlier template. The
/// Service reaches them by the name of the port.
///
/// A rule could name its port as well, but some network plugins take the name of a port for all ports.
fn listener_ports<'a>(cluster: &'a ValidatedCluster, pods: &[Pod]) -> BTreeMap<&'a str, BTreeSet<u16>> {
    let containers = pods.iter().filter_map(|pod| pod.spec.as_ref()).flat_map(|spec| &spec.containers);
    let ports: Vec<_> = containers.flat_map(|container| container.ports.iter().flatten()).collect();
    let of_listener = |listener: &'a covey_contract::config::Listener| {
        let named = ports.iter().filter(|port| port.name.as_deref() == Some(listener.name.as_str()));
        let earlier = named.filter_map(|port| u16::try_from(port.container_port).ok());
        let earlier = earlier.filter(|port| !OWN_PORTS.contains(port));
        (listener.name.as_str(), earlier.chain([listener.port]).collect())
    };
    cluster.listeners.iter().map(of_listener).collect()
}

/// Admits the sources, or anyone if they are absent, to the ports.
fn rule(ports: impl IntoIterator<Item = u16>, from: Option<Vec<NetworkPolicyPeer>>) -> NetworkPolicyIngressRule {
    let port = |number: u16| NetworkPolicyPort {
        port: Some(IntOrString::Int(number.into())),
        protocol: Some("TCP".into()),
        end_port: None,
    };
    NetworkPolicyIngressRule { from, ports: Some(ports.into_iter().map(port).collect()) }
}

fn pods_of_operator(operator: &OperatorPods) -> NetworkPolicyPeer {
    let namespace = BTreeMap::from([(NAMESPACE_LABEL.to_owned(), operator.namespace.clone())]);
    NetworkPolicyPeer {
        pod_selector: Some(operator.labels.clone()).filter(|labels| !labels.is_empty()).map(select),
        namespace_selector: Some(select(namespace)),
        ip_block: None,
    }
}

fn select(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector { match_labels: Some(labels), match_expressions: None }
}
