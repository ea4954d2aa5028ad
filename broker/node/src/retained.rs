//! The node's writes to the retained group: numbered per epoch, committed one batch at a time, repeated until they
//! have an outcome.

use std::sync::Arc;
use std::time::Duration;

use covey_core::retained::{Entry, Outcome, Write};
use covey_raft::Cluster;
use covey_types::{GroupId, NodeEpoch};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::channel::{reply, tell};
use super::state::SharedRetained;
use crate::clock;

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

/// A numbered write, and the receiver of its log index and outcome.
pub(super) type Job = (Write, oneshot::Sender<(u64, Outcome)>);

/// Numbers writes and queues them in that order.
#[derive(Debug)]
pub(super) struct Writer {
    /// Present epoch, and the number of its last write.
    state: Mutex<(Option<NodeEpoch>, u64)>,
    /// Queue of the task [`run`]. Sessions and wills wait for their writes, so each has at most one in it.
    jobs: mpsc::UnboundedSender<Job>,
}

impl Writer {
    /// Returns a writer and the queue for [`run`].
    pub(super) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Job>) {
        let (jobs, receiver) = mpsc::unbounded_channel();
        (Arc::new(Self { state: Mutex::default(), jobs }), receiver)
    }

    /// Starts an epoch: numbers begin at 1. `None` ends the present one.
    pub(super) fn reset(&self, epoch: Option<NodeEpoch>) {
        *self.state.lock() = (epoch, 0);
    }

    /// Numbers a write and queues it. The receiver resolves to its log index and outcome, or to an error if its epoch
    /// is over first.
    pub(super) fn store(&self, mut write: Write) -> oneshot::Receiver<(u64, Outcome)> {
        let (answer, receiver) = oneshot::channel();
        // Locked until the job is queued, so that jobs are queued in the order of their numbers.
        let mut state = self.state.lock();
        if state.0 == Some(write.epoch) {
            state.1 += 1;
            write.number = state.1;
            tell(&self.jobs, (write, answer));
        }
        receiver
    }
}

/// Commits the queued writes in batches; one task per node. Ends when the queue is closed.
pub(super) async fn run(
    mut jobs: mpsc::UnboundedReceiver<Job>,
    writer: Arc<Writer>,
    cluster: Cluster,
    retained: Arc<SharedRetained>,
    shutdown: CancellationToken,
) {
    let mut clock = GroupClock { retained, seen: (0, clock::now()) };
    let mut next = jobs.recv().await;
    while let Some(first) = next.take() {
        let epoch = first.0.epoch;
        let mut bytes = first.0.body.len();
        let mut batch = vec![first];
        // Of one epoch only: a batch whose epoch is over is dropped whole.
        while batch.len() < MAX_BATCH && next.is_none() {
            match jobs.try_recv() {
                Ok(job) if job.0.epoch == epoch && bytes + job.0.body.len() <= MAX_BATCH_BYTES => {
                    bytes += job.0.body.len();
                    batch.push(job);
                }
                Ok(job) => next = Some(job),
                Err(_) => break,
            }
        }
        loop {
            let over = shutdown.is_cancelled() || writer.state.lock().0 != Some(epoch);
            if over {
                break;
            }
            let writes: Vec<Write> = batch.iter().map(|(write, _)| write.clone()).collect();
            let entry = Entry { time: clock.now(), writes }.encode();
            let proposed = cluster.propose_at_leader(GroupId::RETAINED, entry);
            if let Ok(Ok(response)) = tokio::time::timeout(PROPOSE_TIMEOUT, proposed).await {
                let outcomes: Vec<Outcome> = postcard::from_bytes(&response.bytes).unwrap_or_default();
                for ((_, answer), outcome) in batch.into_iter().zip(outcomes) {
                    reply(answer, (response.index, outcome));
                }
                break;
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
        if next.is_none() {
            next = jobs.recv().await;
        }
    }
}

/// Group time as this node can tell: that of the last applied entry plus the time since then.
#[derive(Debug)]
struct GroupClock {
    retained: Arc<SharedRetained>,
    /// Group time (milliseconds) of the newest entry seen, and the boot-time clock then.
    seen: (u64, Duration),
}

impl GroupClock {
    /// Returns group time now, in milliseconds.
    fn now(&mut self) -> u64 {
        let time = self.retained.machine.read().time();
        if time > self.seen.0 {
            self.seen = (time, clock::now());
        }
        let passed = clock::now().saturating_sub(self.seen.1);
        self.seen.0 + u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
    }
}
