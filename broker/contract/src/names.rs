//! Labels, ports, paths and names that several crates use.

/// API group of all custom resources.
pub const GROUP: &str = "covey.io";
/// Field manager of the operator's server-side apply requests.
pub const FIELD_MANAGER: &str = "covey-operator";

/// Pod label with the name of the `MqttCluster`; monitoring copies it to the series label `mqtt_cluster`.
pub const LABEL_CLUSTER: &str = "covey.io/cluster";
/// Label on a Secret with the name of the `MqttUser` for which the operator may read it.
pub const LABEL_USER: &str = "covey.io/user";
/// Annotation of an `MqttCluster` that approves a rollout under policy Manual. Its value is the revision of the template.
pub const ANNOTATION_APPROVE_ROLLOUT: &str = "covey.io/approve-rollout";

/// Client port of the default `mqtt` listener.
pub const PORT_MQTT: u16 = 1883;
/// Broker port for other brokers (gRPC, mutual TLS).
pub const PORT_PEER: u16 = 7883;
/// Broker port for the operator (gRPC, mutual TLS).
pub const PORT_ADMIN: u16 = 7884;
/// Broker port for plain HTTP: `/metrics`, `/livez`, `/readyz`.
pub const PORT_HTTP: u16 = 9464;
/// Operator port for plain HTTP: `/metrics`, `/healthz`, `/readyz`.
pub const PORT_OPERATOR_HTTP: u16 = 9465;

/// Configuration file in a broker pod.
pub const PATH_CONFIG: &str = "/etc/covey/config/broker.yaml";
/// Directory in a broker pod where the access Secret is mounted.
pub const PATH_ACCESS: &str = "/etc/covey/access";
/// Directory in a broker pod where the peer certificate is mounted (`tls.crt`, `tls.key`, `ca.crt`).
pub const PATH_PEER_TLS: &str = "/etc/covey/peer-tls";
/// Directory in a broker pod where the data volume is mounted.
pub const PATH_DATA: &str = "/var/lib/covey";

/// Certificate chain in a TLS directory.
pub const TLS_CERT: &str = "tls.crt";
/// Private key in a TLS directory.
pub const TLS_KEY: &str = "tls.key";
/// Trusted CAs in a TLS directory.
pub const TLS_CA: &str = "ca.crt";

/// DNS name in the certificate of every broker, which peers verify.
pub const PEER_TLS_NAME: &str = "broker.covey.internal";

/// Returns the URI in a broker's certificate.
pub fn broker_uri(cluster_uid: &str) -> String {
    format!("covey://{cluster_uid}/broker")
}

/// Returns the URI in the operator's client certificate.
pub fn operator_uri(cluster_uid: &str) -> String {
    format!("covey://{cluster_uid}/operator")
}
