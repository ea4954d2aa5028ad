//! Options of the operator, set by `covey operator` and by tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use covey_contract::names;

use crate::cluster::validate::ImageDefaults;

/// Options of the operator.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address of the plain HTTP server.
    pub http: SocketAddr,
    /// Namespace to watch. Absent: all namespaces.
    pub namespace: Option<String>,
    /// Name of this process in Events. Absent: the host name.
    pub instance: Option<String>,
    /// Factor on the `for` of every built-in alert; 1.0 in production.
    pub alert_for_scale: f64,
    /// Number of clusters whose pods may be replaced at the same time.
    pub max_rolling_clusters: usize,
    /// Image of the brokers of clusters that name none.
    pub image: ImageDefaults,
    /// The pods of the operator, for the NetworkPolicies of clusters. Absent: not known, for example because it does not
    /// run in a pod.
    pub pods: Option<OperatorPods>,
}

/// Which pods run the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorPods {
    pub namespace: String,
    /// Labels that they have. Empty: all pods of the namespace count as the operator's.
    pub labels: BTreeMap<String, String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            http: SocketAddr::from(([0, 0, 0, 0], names::PORT_OPERATOR_HTTP)),
            namespace: None,
            instance: None,
            alert_for_scale: 1.0,
            max_rolling_clusters: 1,
            image: ImageDefaults::default(),
            pods: None,
        }
    }
}
