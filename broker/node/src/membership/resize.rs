//! Resizing: the operator says how many nodes the cluster is to have, and removes those that have retired.

use covey_core::meta::{Answer, Command};
use covey_raft::ProposeError;
use covey_types::{GroupId, NodeId};
use futures::future::BoxFuture;
use tracing::info;

use super::Membership;

/// Error of a change of the cluster's size. The texts are returned to the operator.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The meta leader did not answer. The change may have been made nevertheless.
    #[error("the meta group did not answer: {0}")]
    Unanswered(#[from] ProposeError),
    /// Meta refused the change; see [`Command::Resize`] and [`Command::Leave`].
    #[error("refused: the node does not retire, or its epoch has not ended yet")]
    Refused,
}

impl Membership {
    /// Sets the number of nodes that the cluster is to have. Members with higher ordinals retire.
    ///
    /// # Errors
    /// Returns [`ResizeError`] if meta did not answer, or refused.
    pub fn resize(&self, nodes: u32) -> BoxFuture<'_, Result<(), ResizeError>> {
        Box::pin(async move {
            self.change(&Command::Resize { nodes }).await?;
            info!(nodes, "the cluster's size was set");
            Ok(())
        })
    }

    /// Removes a retiring member for good, once its epoch has ended.
    ///
    /// # Errors
    /// Returns [`ResizeError`] if meta did not answer, or refused.
    pub fn leave(&self, node: NodeId) -> BoxFuture<'_, Result<(), ResizeError>> {
        Box::pin(async move {
            self.change(&Command::Leave { node }).await?;
            info!(%node, "the node has left the cluster");
            Ok(())
        })
    }

    async fn change(&self, command: &Command) -> Result<(), ResizeError> {
        let response = self.node.raft.propose_at_leader(GroupId::META, command.encode()).await?;
        match Answer::decode(&response.bytes) {
            Some(Answer::Done) => Ok(()),
            _ => Err(ResizeError::Refused),
        }
    }
}
