//! Condition types and reasons. They are part of the API: scripts wait for them.

/// Every node is ready, and nothing prevents the spec from being applied.
pub const READY: &str = "Ready";
/// At least one node serves clients and the cluster can acknowledge messages.
pub const AVAILABLE: &str = "Available";
/// The cluster is being formed, or pods are being started or replaced.
pub const PROGRESSING: &str = "Progressing";
/// Fewer nodes serve than desired, or a problem needs manual intervention.
pub const DEGRADED: &str = "Degraded";
/// A majority of the nodes is in contact and every group has a leader.
pub const QUORUM_HEALTHY: &str = "QuorumHealthy";
/// Every node enforces the current access revision.
pub const ACL_SYNCED: &str = "AclSynced";
/// At least one built-in alert is firing.
pub const ALERTING: &str = "Alerting";
/// Changes are not applied because `spec.paused` is set.
pub const PAUSED: &str = "Paused";

/// Reasons, for conditions and Events alike.
pub mod reason {
    pub const ALL_NODES_READY: &str = "AllNodesReady";
    pub const NODES_NOT_READY: &str = "NodesNotReady";
    pub const FORMING: &str = "Forming";
    pub const FORMED: &str = "Formed";
    pub const ADOPTED: &str = "Adopted";
    pub const FOREIGN_DISK: &str = "ForeignDisk";
    pub const DISKS_LOST: &str = "DisksLost";
    pub const QUORUM_LOST: &str = "QuorumLost";
    pub const QUORUM: &str = "Quorum";
    pub const LEADERLESS_GROUPS: &str = "LeaderlessGroups";
    pub const INVALID: &str = "Invalid";
    pub const APPLY_FAILED: &str = "ApplyFailed";
    /// An object that does not belong to the cluster has the name of a child.
    pub const NAME_TAKEN: &str = "NameTaken";
    pub const SERVING: &str = "Serving";
    pub const NOT_SERVING: &str = "NotServing";
    pub const SETTLED: &str = "Settled";
    pub const ROLLING: &str = "Rolling";
    pub const STARTING: &str = "Starting";
    /// A pod of the new template does not start. The rollout stops and keeps the other pods.
    pub const NEW_TEMPLATE_FAILS: &str = "NewTemplateFails";
    pub const IMAGE_PULL_FAILED: &str = "ImagePullFailed";
    pub const CONTAINER_START_FAILED: &str = "ContainerStartFailed";
    pub const CRASH_LOOP: &str = "CrashLoop";
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    pub const POD_NOT_CREATED: &str = "PodNotCreated";
    pub const HEALTHY: &str = "Healthy";
    pub const ALL_NODES_ENFORCE: &str = "AllNodesEnforce";
    pub const NODES_BEHIND: &str = "NodesBehind";
    pub const REVISION_REFUSED: &str = "RevisionRefused";
    pub const NO_ALERTS: &str = "NoAlerts";
    pub const ALERTS_FIRING: &str = "AlertsFiring";
    pub const ALERTS_OFF: &str = "AlertsOff";
    pub const PAUSED: &str = "Paused";
    pub const NOT_PAUSED: &str = "NotPaused";

    pub const SYNCED: &str = "Synced";
    pub const NODES_NOT_SYNCED: &str = "NodesNotSynced";
    pub const CONFLICT: &str = "Conflict";
    pub const SECRET_MISSING: &str = "SecretMissing";
    /// The Secret holds a password that clients are unlikely to send, such as one that ends in a line break.
    pub const INVALID_PASSWORD: &str = "InvalidPassword";
    pub const CLUSTER_NOT_FOUND: &str = "ClusterNotFound";
}
