//! Builds the two Services: one for clients, and a headless one for the DNS names of the nodes.

use covey_contract::names;
use covey_crds::{ExternalTrafficPolicy, ServiceType};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{ValidatedCluster, metadata, names_of, selector};

/// Builds the Service that clients connect to. It routes to ready pods only.
pub(super) fn client(cluster: &ValidatedCluster) -> Service {
    let mut metadata = metadata(cluster, names_of(cluster).client_service);
    if !cluster.service.annotations.is_empty() {
        metadata.annotations = Some(cluster.service.annotations.clone());
    }
    let ports = cluster.listeners.iter().map(|listener| port(&listener.name, listener.port));
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(service_type(cluster.service.type_).into()),
            external_traffic_policy: cluster
                .service
                .external_traffic_policy
                .map(|policy| traffic_policy(policy).into()),
            selector: Some(selector(&cluster.name)),
            ports: Some(ports.collect()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Builds the headless Service. It publishes unready pods too, because nodes must find each other to become ready.
pub(super) fn peers(cluster: &ValidatedCluster) -> Service {
    let ports = [("peer", names::PORT_PEER), ("admin", names::PORT_ADMIN), ("http", names::PORT_HTTP)];
    Service {
        metadata: metadata(cluster, names_of(cluster).peers_service),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".into()),
            cluster_ip: Some("None".into()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector(&cluster.name)),
            ports: Some(ports.into_iter().map(|(name, number)| port(name, number)).collect()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(number),
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    }
}

fn service_type(type_: ServiceType) -> &'static str {
    match type_ {
        ServiceType::ClusterIp => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    }
}

fn traffic_policy(policy: ExternalTrafficPolicy) -> &'static str {
    match policy {
        ExternalTrafficPolicy::Cluster => "Cluster",
        ExternalTrafficPolicy::Local => "Local",
    }
}
