//! Answers and messages to somebody in this process who may have gone: a closed channel says that nobody waits for them.

use tokio::sync::{mpsc, oneshot};

/// Answers; whoever asked may have stopped waiting.
pub(crate) fn reply<T>(to: oneshot::Sender<T>, value: T) {
    drop(to.send(value));
}

/// Sends; the receiver may have ended, as all do when the node stops.
pub(crate) fn tell<T>(to: &mpsc::UnboundedSender<T>, value: T) {
    drop(to.send(value));
}
