//! Formation: empty disks become a cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use covey_contract::proto;
use covey_core::meta::Command;
use covey_raft::Member;
use covey_types::{GroupId, NodeId, Ordinal};
use futures::future::BoxFuture;
use tracing::info;
use uuid::Uuid;

use super::Membership;

/// Pause before the first members are proposed again.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Error of a formation request. The texts are returned to the operator.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// The request has no valid cluster id.
    #[error("the cluster id is not a UUID")]
    ClusterId,
    /// The request does not list this node.
    #[error("this node ({0}) is not among the members")]
    NotListed(NodeId),
    /// The data directory belongs to another cluster, or could not be written.
    #[error(transparent)]
    Disk(#[from] covey_log::marker::Error),
    #[error(transparent)]
    Groups(#[from] covey_raft::InitializeError),
}

impl Membership {
    /// Forms the cluster on this node. A repetition has no effect.
    ///
    /// # Errors
    /// Returns [`FormError`] if the request is not valid for this node, or the disk or the groups refuse it.
    pub fn initialize<'a>(&'a self, request: &'a proto::InitializeRequest) -> BoxFuture<'a, Result<(), FormError>> {
        Box::pin(async move {
            let cluster = Uuid::parse_str(&request.cluster_id).map_err(|_| FormError::ClusterId)?;
            let mut members = BTreeMap::new();
            for member in &request.members {
                let id = member.node_id.parse().map_err(|_| FormError::NotListed(self.identity.node()))?;
                members.insert(id, Member { ordinal: Ordinal::new(member.ordinal) });
            }
            if !members.contains_key(&self.identity.node()) {
                return Err(FormError::NotListed(self.identity.node()));
            }
            let was_member = self.identity.cluster().is_some();
            self.identity.bind(cluster)?;
            if was_member && self.node.is_member() {
                return Ok(());
            }
            info!(%cluster, members = members.len(), "forming the cluster");
            self.node.raft.initialize(&members).await?;
            let command = Command::Form {
                cluster: cluster.to_string().into(),
                shards: self.node.config.cluster.shards,
                members: members.into_iter().map(|(node, member)| (node, member.ordinal)).collect(),
            };
            let node = self.node.clone();
            self.node.tasks.spawn_ending("formation", async move {
                while node.meta.state.read().header().cluster.is_none() {
                    drop(node.raft.propose_at_leader(GroupId::META, command.encode()).await);
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            });
            Ok(())
        })
    }
}
