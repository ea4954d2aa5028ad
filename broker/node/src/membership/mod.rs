//! Membership: formation, hello between nodes, joining with an empty disk, and the voters of the groups that this node
//! leads.
//!
//! ```text
//! no cluster id --Initialize (from the operator)--> member     the disk belongs to its cluster for good
//!       '--------Join (admitted by the meta leader)--> member
//! ```

mod form;
mod identity;
mod join;
mod voters;

use std::sync::Arc;
use std::time::Duration;

use covey_peer::Pool;
use covey_types::GroupId;
use tracing::{info, warn};

pub use form::FormError;
pub use identity::Identity;
pub(crate) use voters::{SHARD_VOTERS, voters_of};

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
        let members = self.node.members_by_ordinal();
        if members.is_empty() {
            return;
        }
        let led: Vec<GroupId> = self.node.groups_led().collect();
        for group in led {
            let (voters, learners) = voters_of(group, &members);
            let status = self.node.group_status(group);
            // A change that an earlier leader left unfinished is completed here.
            if !status.joint && status.voters == voters && status.learners == learners {
                continue;
            }
            info!(%group, voters = voters.len(), learners = learners.len(), "changing the group's members");
            if let Err(error) = self.node.raft.set_voters(group, voters, learners).await {
                warn!(%group, %error, "failed to change the group's members; retrying");
            }
        }
    }
}
