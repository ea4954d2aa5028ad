//! The lease of this node, as the rest of the node reads it: until when it may serve, and under which epoch its sessions
//! and numbers are.

use std::sync::Arc;
use std::time::Duration;

use covey_types::{NodeEpoch, NodeId};
use tokio::sync::{Notify, watch};

use crate::clock;

/// The epoch is over; nothing under it may be acknowledged any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node's epoch ended")]
pub(crate) struct EpochOver;

/// The lease, as the rest of the node reads it.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Written by the [`Holder`](super::Holder) only.
    pub(super) state: watch::Sender<State>,
    /// Asks the holder for a renewal at once.
    pub(super) nudge: Notify,
}

/// The present epoch and its lease.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    /// Current epoch; `None` between epochs.
    pub(super) epoch: Option<NodeEpoch>,
    /// Boot-time clock until which the lease is valid; `None` before the epoch's first lease is used.
    pub(super) until: Option<Duration>,
    /// Boot-time clock at which the renewal of the newest grant was sent; `None` before the first.
    pub(super) granted: Option<Duration>,
    /// Nodes that may hold a lease, by that grant.
    pub(super) leased: Vec<NodeId>,
}

impl State {
    /// Returns whether the lease is valid now.
    pub(super) fn is_valid(&self) -> bool {
        self.until.is_some_and(|until| clock::now() < until)
    }
}

impl Lease {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: watch::channel(State::default()).0, nudge: Notify::new() })
    }

    /// Returns the epoch if its lease is valid now.
    pub(crate) fn valid_epoch(&self) -> Option<NodeEpoch> {
        let state = self.state.borrow();
        state.epoch.filter(|_| state.is_valid())
    }

    /// Returns the current epoch, whether or not its lease is valid.
    pub(crate) fn epoch(&self) -> Option<NodeEpoch> {
        self.state.borrow().epoch
    }

    /// Returns whether this is the current epoch and its lease is valid now.
    pub(crate) fn is_valid(&self, epoch: NodeEpoch) -> bool {
        self.valid_epoch() == Some(epoch)
    }

    /// Waits until the lease of the epoch is valid.
    ///
    /// # Errors
    /// Returns [`EpochOver`] if the epoch is over.
    pub(crate) async fn until_valid(&self, epoch: NodeEpoch) -> Result<(), EpochOver> {
        let mut changes = self.state.subscribe();
        loop {
            {
                let state = changes.borrow_and_update();
                if state.epoch != Some(epoch) {
                    return Err(EpochOver);
                }
                if state.is_valid() {
                    return Ok(());
                }
            }
            changes.changed().await.map_err(|_| EpochOver)?;
        }
    }

    /// Requests a renewal and returns the leased nodes that its grant names.
    ///
    /// # Errors
    /// Returns [`EpochOver`] if the epoch is over.
    pub(crate) async fn leased_from_now(&self, epoch: NodeEpoch) -> Result<Vec<NodeId>, EpochOver> {
        let (asked, mut changes) = (clock::now(), self.state.subscribe());
        self.nudge.notify_one();
        loop {
            {
                let state = changes.borrow_and_update();
                if state.epoch != Some(epoch) {
                    return Err(EpochOver);
                }
                if state.granted >= Some(asked) && state.is_valid() {
                    return Ok(state.leased.clone());
                }
            }
            changes.changed().await.map_err(|_| EpochOver)?;
        }
    }
}
