//! One stream of append requests to one peer: a window of unanswered requests, and answers that prove no more than
//! they should.
//!
//! openraft (0.10.0-alpha.37) keeps a queue of the requests that its input stream yielded, each with the time. It
//! takes an answer up to log id X as the answer to *every* queued request that ends at or below X. A request without
//! entries, which only carries the commit index, ends where the request before it ends. The answer to the older
//! request would thus count as an answer to the younger one too, and the leader's lease and ReadIndex would rest on a
//! request that may never have arrived. Therefore an answer is held back while younger requests with the same end are
//! unanswered (their answers follow in order and prove more). And after an answer is handed over, no request is taken
//! from openraft until openraft polls for the next answer: only then has it processed the first one.
//!
//! While openraft's input waits for entries, it holds a lock of its replication task, and it takes entries from state
//! that the next stream shares. If openraft abandons a stream but the connection still holds it, the input would block
//! the next stream or take its entries. So the input belongs to the window and is dropped with it, even if the rest of
//! the stream is still held.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use covey_contract::proto;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::errors::{RPCError, Timeout};
use openraft::raft::StreamAppendResult;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tonic::Status;

use super::super::raft::{Append, LogId, Types, encode_append};
use super::client::{failed, read_reply};

/// Most unanswered requests of one stream.
const WINDOW: usize = 16;

/// An answer of the follower, or the error that ends the stream.
pub(super) type Appended = Result<StreamAppendResult<Types>, RPCError<Types>>;

/// An unanswered request.
struct Sent {
    /// Time at which it was sent.
    at: Instant,
    /// End of the follower's log after it has taken the request.
    end: Option<LogId>,
}

/// State that both directions of a stream share.
#[derive(Default)]
struct State {
    /// A boxed stream in a type of its own, because the compiler cannot prove a bare one to be `Send` across the call.
    /// `None` when the window is closed.
    input: Option<BoxStream<'static, Append>>,
    /// Sent requests without an answer, oldest first.
    unanswered: VecDeque<Sent>,
    /// An answer was handed to openraft, which has not polled for the next one.
    handing_over: bool,
    /// Wakes the sending direction.
    waker: Option<Waker>,
}

/// Window of one stream, shared by both directions.
#[derive(Default)]
pub(super) struct Window {
    state: Mutex<State>,
}

impl Window {
    pub(super) fn new<S>(input: S) -> Arc<Self>
    where
        S: Stream<Item = Append> + Send + 'static,
    {
        Arc::new(Self { state: Mutex::new(State { input: Some(input.boxed()), ..State::default() }) })
    }

    /// Changes the state and wakes the sending direction.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let waker = {
            let mut state = self.state.lock();
            change(&mut state);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// openraft polls for an answer, so it has processed the last one.
    fn asked(&self) {
        self.change(|state| state.handing_over = false);
    }

    /// Removes the oldest request, which was answered. Returns whether the answer may be handed over.
    fn answered(&self) -> bool {
        let mut may = true;
        self.change(|state| {
            let answered = state.unanswered.pop_front();
            may = match (answered, state.unanswered.front()) {
                (Some(answered), Some(next)) => next.end != answered.end,
                _ => true,
            };
            state.handing_over = may;
        });
        may
    }

    /// Returns the time that the oldest request has waited; `None` if there is none.
    fn oldest(&self) -> Option<Duration> {
        self.state.lock().unanswered.front().map(|sent| sent.at.elapsed())
    }

    /// Closes the window: the stream ends even if its input would continue.
    fn close(&self) {
        let mut input = None;
        self.change(|state| input = state.input.take());
        // Dropped after the lock is released: it may wake a task that takes the lock.
        drop(input);
    }
}

/// Closes the window when openraft drops the stream.
pub(super) struct Closing(Arc<Window>);

impl Closing {
    pub(super) fn new(window: Arc<Window>) -> Self {
        Self(window)
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The stream of encoded requests. Pending while the window is full; ends with the input, or when the window is
/// closed.
pub(super) struct Outgoing {
    window: Arc<Window>,
    /// A request without payload, as a template.
    empty: proto::RaftRequest,
}

impl Outgoing {
    pub(super) fn new(window: Arc<Window>, empty: proto::RaftRequest) -> Self {
        Self { window, empty }
    }
}

impl Stream for Outgoing {
    type Item = proto::RaftRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let request = {
            let mut state = this.window.state.lock();
            state.waker = Some(context.waker().clone());
            let full = state.handing_over || state.unanswered.len() >= WINDOW;
            let Some(input) = &mut state.input else { return Poll::Ready(None) };
            if full {
                return Poll::Pending;
            }
            // With the lock held, because openraft queues a request in the poll that yields it.
            match input.poll_next_unpin(context) {
                Poll::Ready(Some(request)) => {
                    let end = request.entries.last().map_or(request.prev_log_id, |entry| Some(entry.log_id));
                    state.unanswered.push_back(Sent { at: Instant::now(), end });
                    request
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        };
        match encode_append(&request) {
            Ok(payload) => Poll::Ready(Some(proto::RaftRequest { payload, ..this.empty.clone() })),
            Err(error) => {
                tracing::error!(%error, "failed to encode log entries");
                Poll::Ready(None)
            }
        }
    }
}

/// Returns the stream of answers. It ends with an error when the oldest request is unanswered for too long; an idle
/// stream may stay open.
pub(super) fn incoming<S>(replies: S, window: Closing, overdue: Timeout<Types>) -> BoxStream<'static, Appended>
where
    S: Stream<Item = Result<proto::RaftReply, Status>> + Send + Unpin + 'static,
{
    let state = Some((replies, window, overdue));
    futures::stream::unfold(state, |state| async move {
        let (mut replies, closing, overdue) = state?;
        let window = &closing.0;
        window.asked();
        let result = loop {
            match timeout(overdue.timeout / 4, replies.next()).await {
                Ok(Some(Ok(reply))) => {
                    let result: Appended = read_reply(&reply);
                    let may = window.answered();
                    if may || !matches!(&result, Ok(Ok(_))) {
                        break result;
                    }
                }
                Ok(Some(Err(status))) => break Err(failed(&status)),
                Ok(None) => return None,
                Err(_) if window.oldest().is_some_and(|oldest| oldest >= overdue.timeout) => {
                    break Err(overdue.clone().into());
                }
                Err(_) => (),
            }
        };
        let more = matches!(&result, Ok(Ok(_)));
        Some((result, more.then_some((replies, closing, overdue))))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use covey_types::NodeId;
    use futures::FutureExt;
    use openraft::network::RPCTypes;
    use openraft::{EntryPayload, Vote};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::super::super::raft::{LeaderId, encode};
    use super::*;

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId { term: 1, node_id: NodeId::new(1) }, index)
    }

    /// Returns a request with one entry, or with none, which only carries the commit index.
    fn request(prev: u64, entry: Option<u64>) -> Append {
        Append {
            vote: Vote::new_committed(1, NodeId::new(1)),
            prev_log_id: Some(id(prev)),
            entries: entry
                .map(|index| openraft::Entry { log_id: id(index), payload: EntryPayload::Blank })
                .into_iter()
                .collect(),
            leader_commit: None,
        }
    }

    struct Line {
        requests: mpsc::UnboundedSender<Append>,
        outgoing: Outgoing,
        replies: mpsc::UnboundedSender<Result<proto::RaftReply, Status>>,
        incoming: BoxStream<'static, Appended>,
    }

    fn line() -> Line {
        let (requests, input) = mpsc::unbounded_channel();
        let (replies, answers) = mpsc::unbounded_channel();
        let window = Window::new(UnboundedReceiverStream::new(input));
        let outgoing = Outgoing::new(Arc::clone(&window), proto::RaftRequest::default());
        let [id, target] = [1, 2].map(NodeId::new);
        let overdue = Timeout { action: RPCTypes::AppendEntries, id, target, timeout: Duration::from_secs(5) };
        let incoming = incoming(UnboundedReceiverStream::new(answers), Closing::new(window), overdue);
        Line { requests, outgoing, replies, incoming }
    }

    impl Line {
        fn sent(&mut self, request: Append) {
            self.requests.send(request).unwrap();
            assert!(self.outgoing.next().now_or_never().flatten().is_some(), "the request was not sent");
        }

        fn reply(&self, end: u64) {
            let result: StreamAppendResult<Types> = Ok(Some(id(end)));
            let reply = proto::RaftReply { payload: encode(&result).unwrap(), error: String::new() };
            self.replies.send(Ok(reply)).unwrap();
        }

        fn answer(&mut self) -> Option<LogId> {
            self.incoming.next().now_or_never().flatten().and_then(|result| result.unwrap().unwrap())
        }
    }

    #[tokio::test]
    async fn an_answer_does_not_count_for_a_younger_request_with_the_same_end() {
        let mut line = line();
        line.sent(request(4, Some(5)));
        line.sent(request(5, None));
        line.reply(5);
        assert_eq!(line.answer(), None, "only the older request was answered");
        line.reply(5);
        assert_eq!(line.answer(), Some(id(5)));
    }

    #[tokio::test]
    async fn answers_to_entries_are_handed_over_one_by_one() {
        let mut line = line();
        line.sent(request(4, Some(5)));
        line.sent(request(5, Some(6)));
        line.reply(5);
        assert_eq!(line.answer(), Some(id(5)));
        line.reply(6);
        assert_eq!(line.answer(), Some(id(6)));
    }

    #[tokio::test]
    async fn nothing_is_taken_while_an_answer_is_handed_over() {
        let mut line = line();
        line.sent(request(4, Some(5)));
        line.reply(5);
        assert_eq!(line.answer(), Some(id(5)));
        line.requests.send(request(5, None)).unwrap();
        assert!(line.outgoing.next().now_or_never().is_none(), "openraft has not processed the answer yet");
        assert_eq!(line.answer(), None);
        assert!(line.outgoing.next().now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn the_input_ends_with_the_stream_of_answers_though_the_connection_holds_the_rest() {
        let mut line = line();
        line.sent(request(4, Some(5)));
        assert!(line.outgoing.next().now_or_never().is_none(), "there are no entries yet");
        drop(line.incoming);
        assert!(line.requests.is_closed(), "the input is dropped without another poll");
        assert!(matches!(line.outgoing.next().now_or_never(), Some(None)));
    }

    #[tokio::test]
    async fn the_input_ends_with_a_refusal() {
        let mut line = line();
        line.sent(request(4, Some(5)));
        line.replies.send(Err(Status::unavailable("gone"))).unwrap();
        assert!(line.incoming.next().await.unwrap().is_err());
        assert!(line.requests.is_closed());
    }

    #[tokio::test]
    async fn the_window_is_bounded() {
        let mut line = line();
        for index in 0..16 {
            line.sent(request(index, Some(index + 1)));
        }
        line.requests.send(request(16, Some(17))).unwrap();
        assert!(line.outgoing.next().now_or_never().is_none());
        line.reply(1);
        assert_eq!(line.answer(), Some(id(1)));
        assert_eq!(line.answer(), None);
        assert!(line.outgoing.next().now_or_never().flatten().is_some());
    }
}
