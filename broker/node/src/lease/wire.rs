//! Request and answer of the call `Renew`, from a node to the meta leader.

use covey_types::{NodeEpoch, NodeId};
use serde::{Deserialize, Serialize};

/// From a node to the meta leader: asks for a lease.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Renewal {
    /// The node.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: NodeEpoch,
    /// Number of the renewal. The node remembers when it sent it and counts the lease from then.
    pub sequence: u64,
    /// Log index up to which the node has applied meta.
    pub applied: u64,
    /// Members that the node has heard within half a lease.
    pub reaches: Vec<NodeId>,
}

/// Answer of the meta leader to a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Grant {
    /// Number of the renewal.
    pub sequence: u64,
    /// The decision.
    pub verdict: Verdict,
}

/// Decision on a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Verdict {
    /// The node holds a lease, counted from the time at which it sent the renewal.
    Granted {
        /// Commit index of meta: a new lease is used only when this is applied.
        commit: u64,
        /// All nodes that may hold a lease, this one included.
        leased: Vec<NodeId>,
        /// By the leader's count the node held no lease: it must prepare before it uses this one.
        anew: bool,
    },
    /// No lease now: the node is behind in applying meta, or it and another node do not reach each other.
    Refused,
    /// The epoch is over, or the node is not a member.
    Ended,
}
