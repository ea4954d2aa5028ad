//! `spec.rollout`: when and how pods are stopped and replaced.

use covey_contract::config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::value::{Time, between};

/// Format of `from` in a window: a time of day.
pub(crate) const TIME_OF_DAY: &str = "^([01][0-9]|2[0-3]):[0-5][0-9]$";

/// When and how pods are stopped and replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rollout {
    /// When a change of the pod template reaches pods that serve. Auto, the default: at once, pod by pod. Manual: once the annotation covey.io/approve-rollout has the value that condition UpgradePending names. A change does not restart pods.
    pub policy: RolloutPolicy,
    /// Weekly times in which pods that serve are replaced, at most 16. Default: at any time. A change does not restart pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub windows: Vec<Window>,
    /// Seconds that a pod of a new template must have been ready before the next pod is evicted, 0 to 3600; default 10. Choose more if a broker that fails may run that long. A change does not restart pods.
    #[schemars(range(min = 0, max = 3600))]
    pub min_ready_seconds: u32,
    /// How a stopping node disconnects its clients. A change rolls the pods.
    pub drain: Drain,
}

impl Default for Rollout {
    fn default() -> Self {
        Self { policy: RolloutPolicy::Auto, windows: vec![], min_ready_seconds: 10, drain: Drain::default() }
    }
}

/// When a change of the pod template reaches pods that serve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RolloutPolicy {
    #[default]
    Auto,
    Manual,
}

/// A weekly time in which pods are replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": between("self.duration", "1m", "24h"), "message": "the duration of a rollout window must be between 1m and 24h"}
])))]
pub struct Window {
    /// Days on which the window begins. Default: every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7))]
    pub days: Vec<Day>,
    /// Time of day at which the window begins, such as 22:00.
    #[schemars(length(min = 5, max = 5), extend("x-kubernetes-validations" = json!([
        {"rule": format!("self.matches('{TIME_OF_DAY}')"), "message": "from must be a time of day from 00:00 to 23:59"}
    ])))]
    pub from: String,
    /// Length of the window, 1m to 24h. It may reach into the next day.
    pub duration: Time,
    /// Time zone of `from`, such as Europe/Berlin. Default UTC.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
}

fn utc() -> String {
    "UTC".into()
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// How a stopping node disconnects its clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": between("self.deadline", "0s", "1h"),
     "message": "rollout.drain.deadline must not exceed 1h: rollouts and drains of machines wait for it"},
    {"rule": between("self.waitEndpointRemoval", "0s", "5m"),
     "message": "rollout.drain.waitEndpointRemoval must not exceed 5m: rollouts and drains of machines wait for it"}
])))]
pub struct Drain {
    /// Clients disconnected per second, 1 to 100000; default 200.
    #[schemars(range(min = 1, max = 100_000))]
    pub rate: u32,
    /// Time after which the remaining clients are disconnected at once; default 2m. The pod gets 60s more to stop.
    pub deadline: Time,
    /// Time for which a pod that is to stop goes on serving, so that Services and load balancers learn of it and send new clients elsewhere; 0s to 5m, in whole seconds, default 5s. Choose 30s for a cloud load balancer with externalTrafficPolicy Local.
    pub wait_endpoint_removal: Time,
}

impl Default for Drain {
    fn default() -> Self {
        let broker = config::Drain::default();
        Self { rate: broker.rate, deadline: broker.deadline.into(), wait_endpoint_removal: Time::new("5s") }
    }
}
