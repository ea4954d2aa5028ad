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
/// Pods run an earlier template, and their replacement is postponed.
pub const UPGRADE_PENDING: &str = "UpgradePending";
/// Changes are not applied because `spec.paused` is set.
pub const PAUSED: &str = "Paused";

/// Reasons, for conditions and Events alike.
pub mod reason {
    /// Every node is ready.
    pub const ALL_NODES_READY: &str = "AllNodesReady";
    /// Some nodes are not ready. The message names each and why.
    pub const NODES_NOT_READY: &str = "NodesNotReady";
    /// The cluster is being formed.
    pub const FORMING: &str = "Forming";
    /// The cluster has been formed. Event only.
    pub const FORMED: &str = "Formed";
    /// The volumes already held a cluster, which was adopted. Event only.
    pub const ADOPTED: &str = "Adopted";
    /// Volumes of another cluster are mounted.
    pub const FOREIGN_DISK: &str = "ForeignDisk";
    /// Every node has an empty volume although the cluster was formed before.
    pub const DISKS_LOST: &str = "DisksLost";
    /// No majority of the nodes is in contact, or no node runs, or the volumes are not those of the cluster.
    pub const QUORUM_LOST: &str = "QuorumLost";
    /// The kubelet reports nodes as ready that do not answer the operator, so their state is not known.
    pub const OPERATOR_CANNOT_REACH_NODES: &str = "OperatorCannotReachNodes";
    /// A majority of the nodes is in contact and every group has a leader.
    pub const QUORUM: &str = "Quorum";
    /// No node knows the leader of some groups.
    pub const LEADERLESS_GROUPS: &str = "LeaderlessGroups";
    /// The spec of the cluster or the user cannot be applied. The message says why.
    pub const INVALID: &str = "Invalid";
    /// A child could not be applied, or the peer authority cannot be used.
    pub const APPLY_FAILED: &str = "ApplyFailed";
    /// An object that does not belong to the cluster has the name of a child.
    pub const NAME_TAKEN: &str = "NameTaken";
    /// At least one node serves clients and every group has a leader.
    pub const SERVING: &str = "Serving";
    /// No node is ready, or the quorum is not healthy.
    pub const NOT_SERVING: &str = "NotServing";
    /// No node is being started or replaced.
    pub const SETTLED: &str = "Settled";
    /// Pods are being replaced, or the next replacement has to wait.
    pub const ROLLING: &str = "Rolling";
    /// The cluster is being made smaller: sessions move, and nodes leave.
    pub const SCALING: &str = "Scaling";
    /// Pods are starting or restarting.
    pub const STARTING: &str = "Starting";
    /// A pod of the new template does not start. The rollout stops and keeps the other pods.
    pub const NEW_TEMPLATE_FAILS: &str = "NewTemplateFails";
    /// The template is new, and `rollout.policy` is Manual. The message has the command that approves it.
    pub const APPROVAL_NEEDED: &str = "ApprovalNeeded";
    /// It is none of the times in `rollout.windows`. The message has the next one.
    pub const OUTSIDE_WINDOWS: &str = "OutsideWindows";
    /// As many other clusters as the operator permits replace pods now. The message names them.
    pub const OTHER_CLUSTERS_ROLL: &str = "OtherClustersRoll";
    /// No replacement of a pod is postponed.
    pub const NOTHING_POSTPONED: &str = "NothingPostponed";
    /// The image of a broker cannot be pulled.
    pub const IMAGE_PULL_FAILED: &str = "ImagePullFailed";
    /// The container of a broker cannot be created or started.
    pub const CONTAINER_START_FAILED: &str = "ContainerStartFailed";
    /// A broker exits after each start.
    pub const CRASH_LOOP: &str = "CrashLoop";
    /// The scheduler finds no machine for a pod.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// The StatefulSet controller cannot create a pod.
    pub const POD_NOT_CREATED: &str = "PodNotCreated";
    /// No problem needs manual intervention.
    pub const HEALTHY: &str = "Healthy";
    /// Every node enforces the current access revision.
    pub const ALL_NODES_ENFORCE: &str = "AllNodesEnforce";
    /// Some nodes do not enforce the current access revision yet.
    pub const NODES_BEHIND: &str = "NodesBehind";
    /// A node refused an access revision. The message has its reason.
    pub const REVISION_REFUSED: &str = "RevisionRefused";
    /// No built-in alert is firing.
    pub const NO_ALERTS: &str = "NoAlerts";
    /// Built-in alerts are firing. The message names them.
    pub const ALERTS_FIRING: &str = "AlertsFiring";
    /// The operator does not evaluate alerts.
    pub const ALERTS_OFF: &str = "AlertsOff";
    /// `spec.paused` is true.
    pub const PAUSED: &str = "Paused";
    /// `spec.paused` is false.
    pub const NOT_PAUSED: &str = "NotPaused";

    /// Every node enforces the user.
    pub const SYNCED: &str = "Synced";
    /// Some nodes do not enforce the user yet.
    pub const NODES_NOT_SYNCED: &str = "NodesNotSynced";
    /// An older `MqttUser` has the same user name.
    pub const CONFLICT: &str = "Conflict";
    /// The rules of all users of the cluster do not fit in the document.
    pub const TOO_MANY_RULES: &str = "TooManyRules";
    /// The Secret or its key does not exist, or the Secret lacks the user label.
    pub const SECRET_MISSING: &str = "SecretMissing";
    /// The Secret holds a password that clients are unlikely to send, such as one that ends in a line break.
    pub const INVALID_PASSWORD: &str = "InvalidPassword";
    /// The cluster of the user does not exist.
    pub const CLUSTER_NOT_FOUND: &str = "ClusterNotFound";
}
