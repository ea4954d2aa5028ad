//! Retained messages, as this node writes and reads them. Writes are numbered per epoch, committed one batch at a time,
//! and repeated until they have an outcome.

use std::sync::Arc;
use std::time::Duration;

use covey_core::retained::{Entry, Message, Outcome, Write};
use covey_core::shard::Publication;
use covey_core::topic::Filter;
use covey_raft::RaftGroups;
use covey_types::{GroupId, NodeEpoch, NodeId};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::channel::{reply, tell};
use crate::clock;
use crate::state::SharedRetained;

/// Most writes in one entry.
const MAX_BATCH: usize = 128;
/// Most bytes in one entry, unless a single message is larger: an entry that exceeds the message limit between nodes
/// would block the group.
const MAX_BATCH_BYTES: usize = 1 << 20;
/// Timeout of a proposal: the leader may have lost its majority, so the next one is asked. Repetitions are
/// deduplicated.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a batch is proposed again.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// Pause before another attempt to read.
const READ_RETRY_DELAY: Duration = Duration::from_millis(20);

/// A numbered write, and the receiver of its log index and outcome.
pub(crate) type Job = (Write, oneshot::Sender<(u64, Outcome)>);

/// Access to the retained group.
#[derive(Debug)]
pub(crate) struct RetainedMessages {
    /// This node.
    node: NodeId,
    /// The Raft groups.
    raft: RaftGroups,
    /// Applied state of the retained group.
    replica: Arc<SharedRetained>,
    /// Present epoch, and the number of its last write.
    numbers: Mutex<(Option<NodeEpoch>, u64)>,
    /// Queue of [`run`](Self::run). Sessions and wills wait for their writes, so each has at most one in it.
    jobs: mpsc::UnboundedSender<Job>,
}

impl RetainedMessages {
    /// Returns the access and the queue for [`run`](Self::run).
    pub(crate) fn new(
        node: NodeId,
        raft: RaftGroups,
        replica: Arc<SharedRetained>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Job>) {
        let (jobs, receiver) = mpsc::unbounded_channel();
        (Arc::new(Self { node, raft, replica, numbers: Mutex::default(), jobs }), receiver)
    }

    /// Starts an epoch: numbers begin at 1. `None` ends the present one.
    pub(crate) fn reset(&self, epoch: Option<NodeEpoch>) {
        *self.numbers.lock() = (epoch, 0);
    }

    /// Numbers a write and queues it. `empty` tells that the payload is empty, which deletes the retained message. The
    /// receiver resolves to the log index and the outcome, or to an error if the epoch is over first.
    pub(crate) fn store(
        &self,
        epoch: NodeEpoch,
        message: &Publication,
        empty: bool,
    ) -> oneshot::Receiver<(u64, Outcome)> {
        let (answer, receiver) = oneshot::channel();
        // Locked until the job is queued, so that jobs are queued in the order of their numbers.
        let mut numbers = self.numbers.lock();
        if numbers.0 == Some(epoch) {
            numbers.1 += 1;
            let write = Write {
                node: self.node,
                epoch,
                number: numbers.1,
                topic: message.topic.clone(),
                qos: message.qos,
                expiry: message.expiry,
                empty,
                body: message.body.clone(),
            };
            tell(&self.jobs, (write, answer));
        }
        receiver
    }

    /// Returns the retained messages that match the filter, as of a point after the call (linearizable read).
    pub(crate) async fn matching(&self, filter: &str) -> Vec<Publication> {
        let Ok(filter) = filter.parse::<Filter>() else { return Vec::new() };
        loop {
            if let Ok(index) = self.raft.read_index_at_leader(GroupId::RETAINED).await {
                self.raft.await_applied(GroupId::RETAINED, index).await;
                break;
            }
            tokio::time::sleep(READ_RETRY_DELAY).await;
        }
        let state = self.replica.state.read();
        state
            .matches(&filter, state.time())
            .into_iter()
            .map(|(name, message)| as_publication(name.as_str(), message))
            .collect()
    }

    /// Returns the number of retained messages and the bytes that they are charged.
    pub(crate) fn size(&self) -> (usize, u64) {
        let state = self.replica.state.read();
        (state.len(), state.bytes())
    }

    /// Commits the queued writes in batches; one task per node. Ends when the queue is closed.
    pub(crate) async fn run(self: Arc<Self>, mut jobs: mpsc::UnboundedReceiver<Job>, shutdown: CancellationToken) {
        let mut clock = GroupClock { retained: self.replica.clone(), seen: (0, clock::now()) };
        let mut next = jobs.recv().await;
        while let Some(first) = next.take() {
            let batch;
            (batch, next) = take_batch(first, &mut jobs);
            self.commit(batch, &mut clock, &shutdown).await;
            if next.is_none() {
                next = jobs.recv().await;
            }
        }
    }

    /// Proposes a batch until it has an outcome or its epoch is over.
    async fn commit(&self, batch: Vec<Job>, clock: &mut GroupClock, shutdown: &CancellationToken) {
        let epoch = batch.first().map(|(write, _)| write.epoch);
        while !shutdown.is_cancelled() && self.numbers.lock().0 == epoch {
            let writes: Vec<Write> = batch.iter().map(|(write, _)| write.clone()).collect();
            let entry = Entry { time: clock.now(), writes }.encode();
            let proposed = self.raft.propose_at_leader(GroupId::RETAINED, entry);
            if let Ok(Ok(response)) = tokio::time::timeout(PROPOSE_TIMEOUT, proposed).await {
                let outcomes: Vec<Outcome> = postcard::from_bytes(&response.bytes).unwrap_or_default();
                for ((_, answer), outcome) in batch.into_iter().zip(outcomes) {
                    reply(answer, (response.index, outcome));
                }
                return;
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }
}

/// Takes jobs of one epoch from the queue, as many as fit into an entry. Returns them, and the job after them if it was
/// taken already. A batch whose epoch is over is dropped whole.
fn take_batch(first: Job, jobs: &mut mpsc::UnboundedReceiver<Job>) -> (Vec<Job>, Option<Job>) {
    let epoch = first.0.epoch;
    let mut bytes = first.0.body.len();
    let mut batch = vec![first];
    while batch.len() < MAX_BATCH {
        match jobs.try_recv() {
            Ok(job) if job.0.epoch == epoch && bytes + job.0.body.len() <= MAX_BATCH_BYTES => {
                bytes += job.0.body.len();
                batch.push(job);
            }
            Ok(job) => return (batch, Some(job)),
            Err(_) => break,
        }
    }
    (batch, None)
}

/// Returns a retained message as a publication of no client.
fn as_publication(topic: &str, message: Message) -> Publication {
    Publication {
        topic: topic.into(),
        qos: message.qos,
        retain: true,
        publisher: None,
        expiry: message.expiry,
        retained_index: Some(message.index),
        once: None,
        body: message.body,
    }
}

/// Group time as this node can tell: that of the last applied entry plus the time since then.
#[derive(Debug)]
struct GroupClock {
    /// Applied state of the retained group.
    retained: Arc<SharedRetained>,
    /// Group time (milliseconds) of the newest entry seen, and the boot-time clock then.
    seen: (u64, Duration),
}

impl GroupClock {
    /// Returns group time now, in milliseconds.
    fn now(&mut self) -> u64 {
        let time = self.retained.state.read().time();
        if time > self.seen.0 {
            self.seen = (time, clock::now());
        }
        let passed = clock::now().saturating_sub(self.seen.1);
        self.seen.0 + u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
    }
}
