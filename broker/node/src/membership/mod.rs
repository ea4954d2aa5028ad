//! Membership: formation, hello between nodes, joining with an empty disk, and the voters of the groups that this node
//! leads.
//!
//! ```text
//! no cluster id --Initialize (from the operator)--> member     the disk belongs to its cluster for good
//!       '--------Join (admitted by the meta leader)--> member
//! member --Resize (from the operator)--> retiring              a voter of no group, still serving its clients
//! retiring --Leave (from the operator, when its pod has stopped)--> removed
//! ```
//!
//! A removed node that starts again learns from a hello that it has left. It marks its disk, which is emptied at the next
//! start.

mod form;
mod identity;
mod join;
mod resize;
mod voters;

use std::sync::Arc;
use std::time::Duration;

use covey_contract::proto;
use covey_peer::Pool;
use covey_raft::ChangeError;
use covey_types::{GroupId, NodeId};
use tracing::{info, warn};

pub use form::FormError;
pub use identity::Identity;
pub use resize::ResizeError;
pub(crate) use voters::{Roster, SHARD_VOTERS, voters_of};

use crate::node::Node;

/// Interval at which a node tries to join, or checks the voters of the groups that it leads.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Forms the cluster, joins it and keeps the groups' voters.
#[derive(Debug)]
pub struct Membership {
    /// The node.
    node: Arc<Node>,
    /// Its identity.
    identity: Arc<Identity>,
    /// Connections to other nodes, also before they are members.
    pool: Pool,
}

impl Membership {
    pub(crate) fn new(node: Arc<Node>, identity: Arc<Identity>, pool: Pool) -> Arc<Self> {
        Arc::new(Self { node, identity, pool })
    }

    /// Returns the identity of the node.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Answers a hello of another node. A node that has left is told so.
    pub(crate) fn on_hello(&self, hello: &proto::HelloRequest) -> proto::HelloReply {
        let reply = self.identity.on_hello(hello);
        let left = reply.refused.is_empty() && self.node.meta.state.read().has_left(NodeId::new(hello.node_id));
        proto::HelloReply { left, ..reply }
    }

    /// Joins while this disk belongs to no cluster, then keeps the voters of the groups that this node leads. Runs
    /// until shutdown.
    pub(crate) async fn run(self: Arc<Self>) {
        let shutdown = self.node.tasks.shutdown().clone();
        while shutdown.run_until_cancelled(tokio::time::sleep(CHECK_INTERVAL)).await.is_some() {
            if self.identity.cluster().is_none() {
                self.try_join().await;
            } else {
                self.keep_voters().await;
            }
        }
    }

    async fn keep_voters(&self) {
        let roster = self.node.roster();
        if roster.staying.is_empty() {
            return;
        }
        let led: Vec<GroupId> = self.node.groups_led().collect();
        for group in led {
            if self.node.has_wanted_members(group, &roster) {
                continue;
            }
            if let Err(error) = self.change_members(group, &roster).await {
                warn!(%group, %error, "failed to change the group's members; retrying");
            }
        }
    }

    /// Makes the next change towards the group's wanted voters and learners.
    async fn change_members(&self, group: GroupId, roster: &Roster) -> Result<(), ChangeError> {
        let (voters, learners) = voters_of(group, roster);
        let status = self.node.group_status(group);
        if voters.contains_key(&self.node.id) {
            info!(%group, voters = voters.len(), learners = learners.len(), "changing the group's members");
            return self.node.raft.set_voters(group, voters, learners).await;
        }
        // A leader that removes itself leaves the group without one until an election. It lets the new voters in, and one
        // of them, as leader, removes it.
        if status.joint || !voters.keys().all(|voter| status.voters.contains_key(voter)) {
            info!(%group, "adding the voters that replace this node");
            let both = voters.into_iter().chain(status.voters).collect();
            return self.node.raft.set_voters(group, both, learners).await;
        }
        let lag = |voter: &NodeId| status.lag.get(voter).copied().flatten().unwrap_or(u64::MAX);
        let Some(successor) = voters.into_keys().min_by_key(lag) else { return Ok(()) };
        info!(%group, %successor, "handing the leadership over, because this node is to leave the group");
        self.node.raft.transfer_leader(group, successor).await
    }
}
