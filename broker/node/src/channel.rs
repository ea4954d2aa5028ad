//! Sends to tasks of this process that may have ended; a closed channel means that the value is not needed any more.

use tokio::sync::{mpsc, oneshot};

/// Sends an answer. It is dropped if the asking task has stopped waiting.
pub(crate) fn reply<T>(to: oneshot::Sender<T>, value: T) {
    drop(to.send(value));
}

/// Sends a value. It is dropped if the receiver has ended, as all do when the node stops.
pub(crate) fn tell<T>(to: &mpsc::UnboundedSender<T>, value: T) {
    drop(to.send(value));
}
