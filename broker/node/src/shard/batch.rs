//! Operations of a shard on their way into the log: many share an entry, entries are pipelined, answers come in order.

use std::collections::VecDeque;
use std::time::Duration;

use covey_core::shard::{Entry, Operation, Outcome};
use covey_raft::{Cluster, GroupId};
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt as _};
use tokio::time::Instant;

use super::border::LinkId;
use crate::clock;

/// Operations in one entry.
const OPERATIONS: usize = 256;
/// Bytes in one entry, unless one message is larger.
const BYTES: usize = 1 << 20;
/// Entries in flight.
const PIPELINE: usize = 8;
/// While this many entries are in flight, an entry that is not full waits for company.
const SMALL_PIPELINE: usize = 2;

/// Who waits for an operation's outcome.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    Nobody,
    Call {
        link: LinkId,
        id: u64,
    },
    Enqueue {
        link: LinkId,
        number: u64,
    },
    /// A SUBSCRIBE, whose answer waits for routes.
    Subscribe {
        link: LinkId,
        id: u64,
        client: Box<str>,
        owner: u64,
        filters: Vec<Box<str>>,
    },
    /// A will that was published.
    Will(u64),
}

/// What came of one entry: `None` when this node no longer leads.
pub(super) type Settled = Option<Vec<(Origin, Outcome)>>;

/// See the module.
pub(super) struct Batch {
    queue: VecDeque<(Operation, Origin)>,
    bytes: usize,
    flying: FuturesOrdered<BoxFuture<'static, Settled>>,
    /// When the entries in flight were proposed, oldest first.
    proposed: VecDeque<Instant>,
    /// Shard time and boot time when this node began to lead.
    began: (u64, Duration),
}

impl Batch {
    pub(super) fn new(time: u64) -> Self {
        Self {
            queue: VecDeque::new(),
            bytes: 0,
            flying: FuturesOrdered::new(),
            proposed: VecDeque::new(),
            began: (time, clock::now()),
        }
    }

    /// Shard time now: never earlier than an entry before it.
    pub(super) fn time(&self) -> u64 {
        let (time, since) = self.began;
        time + u64::try_from(clock::now().saturating_sub(since).as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn push(&mut self, operation: Operation, origin: Origin) {
        self.bytes += size(&operation);
        self.queue.push_back((operation, origin));
    }

    /// Sends what may be sent.
    pub(super) fn propose(&mut self, cluster: &Cluster, group: GroupId) {
        while !self.queue.is_empty() {
            let full = self.queue.len() >= OPERATIONS || self.bytes >= BYTES;
            if self.flying.len() >= if full { PIPELINE } else { SMALL_PIPELINE } {
                return;
            }
            let (mut operations, mut origins, mut bytes) = (Vec::new(), Vec::new(), 0);
            while let Some((operation, _)) = self.queue.front() {
                let size = size(operation);
                if operations.len() >= OPERATIONS || (bytes > 0 && bytes + size > BYTES) {
                    break;
                }
                if let Some((operation, origin)) = self.queue.pop_front() {
                    bytes += size;
                    operations.push(operation);
                    origins.push(origin);
                }
            }
            self.bytes = self.bytes.saturating_sub(bytes);
            let entry = Entry { time: self.time(), operations }.encode();
            self.proposed.push_back(Instant::now());
            let proposed = cluster.propose(group, entry);
            self.flying.push_back(Box::pin(async move {
                let response = proposed.await.ok()?;
                let outcomes: Vec<Outcome> = postcard::from_bytes(&response.bytes).ok()?;
                Some(origins.into_iter().zip(outcomes).collect())
            }));
        }
    }

    /// The oldest entry's outcomes; waits for ever while nothing is in flight.
    pub(super) async fn next(&mut self) -> Settled {
        match self.flying.next().await {
            Some(settled) => {
                self.proposed.pop_front();
                settled
            }
            None => std::future::pending().await,
        }
    }

    /// How long the oldest entry in flight has had no fate.
    pub(super) fn oldest(&self) -> Option<Duration> {
        self.proposed.front().map(Instant::elapsed)
    }
}

fn size(operation: &Operation) -> usize {
    match operation {
        Operation::Enqueue(enqueue) => enqueue.body.len() + enqueue.topic.len() + 64,
        Operation::Subscribe { subscriptions, .. } => {
            subscriptions.iter().map(|wanted| wanted.filter.len() + 32).sum::<usize>() + 64
        }
        Operation::Unsubscribe { filters, .. } => filters.iter().map(|filter| filter.len() + 8).sum::<usize>() + 64,
        Operation::Snapshot { messages, .. } => messages.iter().map(|message| message.body.len() + 64).sum(),
        Operation::Claim(claim) => claim.will.as_ref().map_or(0, |will| will.body.len()) + 128,
        _ => 64,
    }
}
