//! A node's writes to the retained group: numbered per epoch, one batch at a time, repeated until done.

use std::sync::Arc;
use std::time::Duration;

use covey_core::retained::{Entry, Outcome, Write};
use covey_raft::{Cluster, GroupId};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::machines::Retained;
use super::say::{reply, tell};
use crate::clock;

/// Writes in one entry.
const BATCH: usize = 128;
/// Bytes in one entry, unless one message is larger: an entry that no message between nodes can carry stops the group.
const BYTES: usize = 1 << 20;
/// A leader that gives no answer for so long may have lost its majority: the writes go to the next one, repeats are dropped.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) type Job = (Write, oneshot::Sender<(u64, Outcome)>);

/// Takes writes in order.
#[derive(Debug)]
pub(super) struct Writer {
    state: Mutex<(u64, u64)>,
    jobs: mpsc::UnboundedSender<Job>,
}

impl Writer {
    pub(super) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Job>) {
        let (jobs, receiver) = mpsc::unbounded_channel();
        (Arc::new(Self { state: Mutex::default(), jobs }), receiver)
    }

    /// Begins an epoch: numbers start over.
    pub(super) fn reset(&self, epoch: u64) {
        *self.state.lock() = (epoch, 0);
    }

    /// Numbers a write; resolves to its index in the group and its outcome, or fails when the epoch ends first.
    pub(super) fn store(&self, mut write: Write) -> oneshot::Receiver<(u64, Outcome)> {
        let (answer, receiver) = oneshot::channel();
        // Held until the job is queued: numbers are queued in their order.
        let mut state = self.state.lock();
        if state.0 == write.epoch {
            state.1 += 1;
            write.number = state.1;
            tell(&self.jobs, (write, answer));
        }
        receiver
    }
}

/// Commits what the [`Writer`] took; one task per node.
pub(super) async fn run(
    mut jobs: mpsc::UnboundedReceiver<Job>,
    writer: Arc<Writer>,
    cluster: Cluster,
    retained: Arc<Retained>,
    shutdown: CancellationToken,
) {
    let mut clock = GroupClock { retained, seen: (0, clock::now()) };
    let mut next = jobs.recv().await;
    while let Some(first) = next.take() {
        let epoch = first.0.epoch;
        let mut bytes = first.0.body.len();
        let mut batch = vec![first];
        // Of one epoch only: what is left out with an ended epoch must not take a number of the next one along.
        while batch.len() < BATCH && next.is_none() {
            match jobs.try_recv() {
                Ok(job) if job.0.epoch == epoch && bytes + job.0.body.len() <= BYTES => {
                    bytes += job.0.body.len();
                    batch.push(job);
                }
                Ok(job) => next = Some(job),
                Err(_) => break,
            }
        }
        loop {
            let over = shutdown.is_cancelled() || writer.state.lock().0 != epoch;
            if over {
                break;
            }
            let writes: Vec<Write> = batch.iter().map(|(write, _)| write.clone()).collect();
            let entry = Entry { time: clock.now(), writes }.encode();
            let proposed = cluster.propose_at_leader(GroupId::RETAINED, entry);
            if let Ok(Ok(response)) = tokio::time::timeout(PATIENCE, proposed).await {
                let outcomes: Vec<Outcome> = postcard::from_bytes(&response.bytes).unwrap_or_default();
                for ((_, answer), outcome) in batch.into_iter().zip(outcomes) {
                    reply(answer, (response.index, outcome));
                }
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if next.is_none() {
            next = jobs.recv().await;
        }
    }
}

/// Group time as this node can tell: the last entry's, and what has passed here since it was applied.
#[derive(Debug)]
struct GroupClock {
    retained: Arc<Retained>,
    seen: (u64, Duration),
}

impl GroupClock {
    fn now(&mut self) -> u64 {
        let time = self.retained.machine.read().time();
        if time > self.seen.0 {
            self.seen = (time, clock::now());
        }
        let passed = clock::now().saturating_sub(self.seen.1);
        self.seen.0 + u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
    }
}
