//! Every label, port, path and object name that more than one crate must spell alike.

/// API group of all custom resources.
pub const GROUP: &str = "covey.io";
/// Field manager of the operator's server-side applies.
pub const FIELD_MANAGER: &str = "covey-operator";

/// Pod label that names the `MqttCluster`; monitoring copies it to the series label `mqtt_cluster`.
pub const LABEL_CLUSTER: &str = "covey.io/cluster";
/// Label on a Secret that consents to being read for the `MqttUser` of that name.
pub const LABEL_USER: &str = "covey.io/user";

/// Client port of the default `mqtt` listener.
pub const PORT_MQTT: u16 = 1883;
/// Broker to broker, mutually authenticated.
pub const PORT_PEER: u16 = 7883;
/// Operator to broker, mutually authenticated.
pub const PORT_ADMIN: u16 = 7884;
/// Plain HTTP: `/metrics`, `/livez`, `/readyz`.
pub const PORT_HTTP: u16 = 9464;
/// The operator's plain HTTP: `/metrics`, `/healthz`, `/readyz`.
pub const PORT_OPERATOR_HTTP: u16 = 9465;

/// Where the operator mounts things in a broker pod.
pub const PATH_CONFIG: &str = "/etc/covey/config/broker.yaml";
/// Mounted access Secret (a folder).
pub const PATH_ACCESS: &str = "/etc/covey/access";
/// Mounted peer certificate (a folder with `tls.crt`, `tls.key`, `ca.crt`).
pub const PATH_PEER_TLS: &str = "/etc/covey/peer-tls";
/// The data volume.
pub const PATH_DATA: &str = "/var/lib/covey";

/// Files of a TLS folder.
pub const TLS_CERT: &str = "tls.crt";
/// Private key in a TLS folder.
pub const TLS_KEY: &str = "tls.key";
/// Trusted CAs in a TLS folder.
pub const TLS_CA: &str = "ca.crt";

/// Name of a broker's DNS-valid certificate identity; every broker's certificate carries it.
pub const PEER_TLS_NAME: &str = "broker.covey.internal";

/// URI in a broker's certificate.
pub fn broker_uri(cluster_uid: &str) -> String {
    format!("covey://{cluster_uid}/broker")
}

/// URI in the operator's client certificate.
pub fn operator_uri(cluster_uid: &str) -> String {
    format!("covey://{cluster_uid}/operator")
}
