//! Publishing of wills, by the leader of the shard that holds them.

use std::sync::Arc;
use std::time::Duration;

use covey_core::shard::{Once, Publication, Will};
use covey_types::NodeEpoch;

use super::message;
use super::retained::RetainedMessages;
use super::route::Router;
use crate::lease::Lease;

/// Pause before a will is published again.
const RETRY_DELAY: Duration = Duration::from_millis(20);

/// Publishes wills under the epochs of this node.
#[derive(Debug)]
pub(crate) struct WillPublisher {
    /// Sends a will to its subscribers.
    pub(crate) router: Arc<Router>,
    /// Stores a will with the retain flag.
    pub(crate) retained: Arc<RetainedMessages>,
    /// A will is published under a lease only.
    pub(crate) lease: Arc<Lease>,
}

impl WillPublisher {
    /// Publishes a will under this node's epoch, and again under later epochs until it succeeds. Receivers deduplicate
    /// by `key`.
    pub(crate) async fn publish(&self, key: Box<str>, will: Will) {
        loop {
            if let Some(epoch) = self.lease.epoch()
                && self.lease.until_valid(epoch).await.is_ok()
                && self.try_publish(&key, &will, epoch).await
            {
                return;
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Publishes the will once. Returns `false` if the lease was lost or the outcome is unknown.
    async fn try_publish(&self, key: &str, will: &Will, epoch: NodeEpoch) -> bool {
        let Some(message) = message::decode(&will.body, will.qos, will.retain, None) else { return true };
        let mut publication = Publication {
            topic: will.topic.clone(),
            qos: will.qos,
            retain: will.retain,
            publisher: None,
            expiry: None,
            retained_index: None,
            once: Some(Once { key: key.into(), number: 1, floor: 0 }),
            body: will.body.clone(),
        };
        if will.retain {
            match self.retained.store(epoch, &publication, message.payload.is_empty()).await {
                Ok((index, _)) => publication.retained_index = Some(index),
                Err(_) => return false,
            }
        }
        match self.router.route(&publication, epoch) {
            Ok(pending) => pending.outcome().await.is_some(),
            Err(_) => false,
        }
    }
}
