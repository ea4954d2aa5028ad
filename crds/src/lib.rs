//! The custom resources of `covey.io/v1alpha1`, and the CustomResourceDefinitions generated from them.
//!
//! The operator and `covey local` read these types; the chart installs `crds/yaml/`. Invariant: every rule that the API
//! server can check is in the schema, with a message, and every default is in the schema too, so that
//! `kubectl get -o yaml` shows the values in force.

mod cluster;
mod definition;
pub mod format;
mod network;
mod placement;
mod pod;
mod rollout;
mod rule;
mod status;
mod user;
mod value;

pub use cluster::{
    AccessMode, Acl, Alerts, DeletionPolicy, ExternalTrafficPolicy, Fence, Listener, Mqtt, MqttCluster,
    MqttClusterSpec, Protocol, QueueFullPolicy, ScaleDownPolicy, Service, ServiceType, Sessions, Storage,
};
pub use definition::{Error, all, file_name, to_yaml};
pub use network::NetworkPolicy;
pub use placement::{Placement, Spread, TaintEffect, Toleration, TolerationOperator};
pub use pod::{Image, PullPolicy, ResourceLimits, ResourceList, Resources};
pub use rollout::{Day, Drain, Rollout, RolloutPolicy, Window};
pub use rule::{AclRule, Action};
pub use status::{
    AccessStatus, AlertStatus, Formation, FormationMember, MqttClusterStatus, NodeStatus, Quorum, Totals, Version,
    WorkloadStatus,
};
pub use user::{Authentication, ClusterRef, MqttUser, MqttUserSpec, MqttUserStatus, Password, SecretRef};
pub use value::{Cpu, Percent, Quantity, Time};

/// Condition types and reasons.
pub mod condition;
