//! Image and resources of a cluster's pods.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::format::{DIGEST, REPOSITORY, TAG};
use crate::value::{CPU, Cpu, QUANTITY, Quantity, at_least, fits, some_cores};

/// Parts of an image reference.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Image {
    /// Repository, with the registry host if it is not the default one. Absent: the operator's own image.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), extend("x-kubernetes-validations" = json!([
        {"rule": format!("self.matches('{REPOSITORY}')"),
         "message": "image.repository must look like registry.example.org/team/covey, without tag and digest"}
    ])))]
    pub repository: Option<String>,
    /// Tag. Default: the operator's version. Needs repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), extend("x-kubernetes-validations" = json!([
        {"rule": format!("self.matches('{TAG}')"),
         "message": "image.tag must consist of letters, digits, dots, dashes and underscores"}
    ])))]
    pub tag: Option<String>,
    /// Digest such as sha256:..., used instead of the tag. Needs repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128), extend("x-kubernetes-validations" = json!([
        {"rule": format!("self == '' || self.matches('{DIGEST}')"), "message": "digest must look like sha256:<hexadecimal digits>"}
    ])))]
    pub digest: Option<String>,
    /// When the kubelet pulls the image. Default IfNotPresent.
    pub pull_policy: PullPolicy,
    /// Names of Secrets in this namespace with the registry's credentials, at most 8. Default: the names in the chart's imagePullSecrets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 253)))]
    pub pull_secrets: Vec<String>,
}

/// When the kubelet pulls an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

/// CPU and memory of each broker container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": fits(QUANTITY, "self.requests.memory", 1, "self.limits.memory"),
     "message": "resources.requests.memory must not exceed resources.limits.memory, which is 1Gi unless you set it"},
    {"rule": fits(CPU, "self.requests.cpu", 1, "self.limits.cpu"),
     "message": "resources.requests.cpu must not exceed resources.limits.cpu"},
    {"rule": at_least("self.limits.memory", "128Mi"), "message": "resources.limits.memory must be at least 128Mi"},
    {"rule": at_least("self.requests.memory", "1Mi"), "message": "resources.requests.memory must be at least 1Mi"},
    {"rule": some_cores("self.limits.cpu"), "message": "resources.limits.cpu must be more than 0"},
    {"rule": some_cores("self.requests.cpu"), "message": "resources.requests.cpu must be more than 0"},
])))]
pub struct Resources {
    /// Amounts that the scheduler reserves. Default cpu 100m and memory 256Mi.
    pub requests: ResourceList,
    /// Amounts that the container may not exceed. Default memory 1Gi, no limit on cpu.
    pub limits: ResourceLimits,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            requests: ResourceList { cpu: Some(Cpu::new("100m")), memory: Some(Quantity::new("256Mi")) },
            limits: ResourceLimits::default(),
        }
    }
}

/// Limits of CPU and memory. A type of its own, so that the default of `memory` also holds where only `cpu` is given: without
/// a limit a broker takes the memory of its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceLimits {
    /// CPU cores, such as 500m or 2. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Bytes, such as 512Mi. Default 1Gi.
    pub memory: Quantity,
}

impl Default for ResourceLimits {
    fn default() -> Self {
        Self { cpu: None, memory: Quantity::new("1Gi") }
    }
}

impl From<ResourceLimits> for ResourceList {
    fn from(limits: ResourceLimits) -> Self {
        Self { cpu: limits.cpu, memory: Some(limits.memory) }
    }
}

/// Amounts of CPU and memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceList {
    /// CPU cores, such as 500m or 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Bytes, such as 512Mi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
}
