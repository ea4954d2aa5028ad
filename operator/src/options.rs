//! How the operator runs: what `covey operator` and the tests decide.

use std::net::SocketAddr;

use covey_contract::names;

use crate::cluster::validate::DEFAULT_IMAGE;

/// How the operator runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address of the plain HTTP server.
    pub http: SocketAddr,
    /// Only this namespace; absent: all.
    pub namespace: Option<String>,
    /// Name of this process in Events; absent: the host name.
    pub instance: Option<String>,
    /// Factor on how long a condition must last before a built-in alert fires.
    pub alert_for_scale: f64,
    /// The image of brokers whose cluster names none.
    pub default_image: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            http: SocketAddr::from(([0, 0, 0, 0], names::PORT_OPERATOR_HTTP)),
            namespace: None,
            instance: None,
            alert_for_scale: 1.0,
            default_image: DEFAULT_IMAGE.to_owned(),
        }
    }
}
