//! The window of one stream of append requests: how many may be unanswered, and how old the oldest may become.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::super::raft::{Append, encode_append};
use covey_contract::proto;

/// Requests of one stream that may be unanswered.
const WINDOW: usize = 16;

/// Counts the unanswered requests of one stream.
#[derive(Debug)]
pub(super) struct Window {
    free: Semaphore,
    sent: Mutex<VecDeque<Instant>>,
}

impl Window {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { free: Semaphore::new(WINDOW), sent: Mutex::new(VecDeque::new()) })
    }

    /// Waits for room; false when the window was closed.
    async fn begin(&self) -> bool {
        let Ok(permit) = self.free.acquire().await else { return false };
        permit.forget();
        true
    }

    fn sent(&self) {
        self.sent.lock().push_back(Instant::now());
    }

    /// One request was answered.
    pub(super) fn answered(&self) {
        self.sent.lock().pop_front();
        self.free.add_permits(1);
    }

    /// How long the oldest request has waited.
    pub(super) fn oldest(&self) -> Option<Duration> {
        self.sent.lock().front().map(Instant::elapsed)
    }

    /// Nothing more is sent: the stream ends even where its input would go on.
    pub(super) fn close(&self) {
        self.free.close();
    }
}

/// Encoded requests, as long as the window has room; ends with the input, or when the window is closed.
pub(super) struct Outgoing {
    /// In a type of its own: the compiler cannot prove a bare boxed stream to be `Send` across the call.
    inner: BoxStream<'static, proto::RaftRequest>,
}

impl Outgoing {
    /// `empty` is a request without its payload.
    pub(super) fn new<S>(input: S, window: Arc<Window>, empty: proto::RaftRequest) -> Self
    where
        S: Stream<Item = Append> + Send + Unpin + 'static,
    {
        let requests = futures::stream::unfold((input, window, empty), |(mut input, window, empty)| async move {
            if !window.begin().await {
                return None;
            }
            let request = input.next().await?;
            match encode_append(&request) {
                Ok(payload) => {
                    window.sent();
                    Some((proto::RaftRequest { payload, ..empty.clone() }, (input, window, empty)))
                }
                Err(error) => {
                    tracing::error!(%error, "failed to encode log entries");
                    None
                }
            }
        });
        Self { inner: requests.boxed() }
    }
}

impl Stream for Outgoing {
    type Item = proto::RaftRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.poll_next_unpin(context)
    }
}
