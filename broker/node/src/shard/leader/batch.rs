//! Batches of a shard's operations: many share one log entry, entries are pipelined, outcomes come in order.

use std::collections::VecDeque;
use std::time::Duration;

use covey_core::shard::{Enqueue, Entry, Operation, Outcome};
use covey_raft::RaftGroups;
use covey_types::{GroupId, OwnerEpoch};
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt as _};
use tokio::time::Instant;

use crate::clock;
use crate::shard::link::LinkId;

/// Most operations in one entry.
const MAX_OPERATIONS: usize = 256;
/// Most bytes in one entry, unless a single operation is larger.
const MAX_BYTES: usize = 1 << 20;
/// Most entries in flight.
const MAX_IN_FLIGHT: usize = 8;
/// From this many entries in flight on, only a full entry is proposed; further operations are collected.
const FULL_ENTRIES_FROM: usize = 2;

/// Receiver of an operation's outcome.
#[derive(Debug, Clone)]
pub(super) enum Waiter {
    /// None: the leader proposed it and ignores the outcome.
    None,
    /// A `ToShard::Call`.
    Call { link: LinkId, id: u64 },
    /// A `ToShard::Enqueue`.
    Enqueue { link: LinkId, number: u64 },
    /// A SUBSCRIBE, whose outcome is sent when its routes are confirmed.
    Subscribe { link: LinkId, id: u64, client: Box<str>, owner: OwnerEpoch, filters: Vec<Box<str>> },
    /// A will that was published.
    Will(u64),
}

/// Result of one entry: its outcomes, or `None` if it was not committed or that is unknown.
pub(super) type Completed = Option<Vec<(Waiter, Outcome)>>;

/// Operations that wait, and entries in flight. The queue has no bound of its own.
pub(super) struct Batch {
    /// Operations that are not proposed yet.
    queue: VecDeque<(Operation, Waiter)>,
    /// Bytes of the queue.
    bytes: usize,
    /// Entries in flight, oldest first.
    in_flight: FuturesOrdered<BoxFuture<'static, Completed>>,
    /// Times at which the entries in flight were proposed, oldest first.
    proposed: VecDeque<Instant>,
    /// Shard time (milliseconds) and boot-time clock at the beginning of the term.
    began: (u64, Duration),
}

impl Batch {
    /// Starts with the shard time of the last applied entry, in milliseconds.
    pub(super) fn new(time: u64) -> Self {
        Self {
            queue: VecDeque::new(),
            bytes: 0,
            in_flight: FuturesOrdered::new(),
            proposed: VecDeque::new(),
            began: (time, clock::now()),
        }
    }

    /// Returns shard time now, in milliseconds: never lower than that of an earlier entry of this term.
    pub(super) fn time(&self) -> u64 {
        let (time, since) = self.began;
        time + u64::try_from(clock::now().saturating_sub(since).as_millis()).unwrap_or(u64::MAX)
    }

    /// Queues an operation. It is proposed by the next [`propose`](Self::propose).
    pub(super) fn push(&mut self, operation: Operation, waiter: Waiter) {
        self.bytes += size(&operation);
        self.queue.push_back((operation, waiter));
    }

    /// Proposes entries from the queue, as far as the pipeline allows.
    pub(super) fn propose(&mut self, raft: &RaftGroups, group: GroupId) {
        while !self.queue.is_empty() {
            let full = self.queue.len() >= MAX_OPERATIONS || self.bytes >= MAX_BYTES;
            if self.in_flight.len() >= if full { MAX_IN_FLIGHT } else { FULL_ENTRIES_FROM } {
                return;
            }
            let (mut operations, mut waiters, mut bytes) = (Vec::new(), Vec::new(), 0);
            while let Some((operation, _)) = self.queue.front() {
                let size = size(operation);
                if operations.len() >= MAX_OPERATIONS || (bytes > 0 && bytes + size > MAX_BYTES) {
                    break;
                }
                if let Some((operation, waiter)) = self.queue.pop_front() {
                    bytes += size;
                    operations.push(operation);
                    waiters.push(waiter);
                }
            }
            self.bytes = self.bytes.saturating_sub(bytes);
            let entry = Entry { time: self.time(), operations }.encode();
            self.proposed.push_back(Instant::now());
            let proposed = raft.propose(group, entry);
            self.in_flight.push_back(Box::pin(async move {
                let response = proposed.await.ok()?;
                let outcomes: Vec<Outcome> = postcard::from_bytes(&response.bytes).ok()?;
                Some(waiters.into_iter().zip(outcomes).collect())
            }));
        }
    }

    /// Returns the result of the oldest entry in flight; pending while there is none.
    pub(super) async fn next(&mut self) -> Completed {
        match self.in_flight.next().await {
            Some(completed) => {
                self.proposed.pop_front();
                completed
            }
            None => std::future::pending().await,
        }
    }

    /// Returns how long the oldest entry in flight has been without a result; `None` if there is none.
    pub(super) fn oldest(&self) -> Option<Duration> {
        self.proposed.front().map(Instant::elapsed)
    }
}

/// Returns the bytes that an operation is charged, estimated without encoding it.
fn size(operation: &Operation) -> usize {
    match operation {
        Operation::Enqueue(Enqueue { publication, .. }) => publication.body.len() + publication.topic.len() + 64,
        Operation::Subscribe { subscriptions, .. } => {
            subscriptions.iter().map(|wanted| wanted.filter.len() + 32).sum::<usize>() + 64
        }
        Operation::Unsubscribe { filters, .. } => filters.iter().map(|filter| filter.len() + 8).sum::<usize>() + 64,
        Operation::DeliverRetained { messages, .. } => messages.iter().map(|message| message.body.len() + 64).sum(),
        Operation::Claim(claim) => claim.will.as_ref().map_or(0, |will| will.body.len()) + 128,
        _ => 64,
    }
}
