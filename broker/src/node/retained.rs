//! A node's writes to the retained group: numbered per epoch, one batch at a time, repeated until done.

use std::sync::Arc;
use std::time::Duration;

use covey_core::retained::{Entry, Outcome, Write};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::machines::Retained;
use crate::clock;
use crate::cluster::{Cluster, GroupId};

/// Writes in one entry.
const BATCH: usize = 128;

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
            self.jobs.send((write, answer)).unwrap_or_default();
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
    while let Some(first) = jobs.recv().await {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        let epoch = batch.first().map_or(0, |(write, _)| write.epoch);
        loop {
            let over = shutdown.is_cancelled() || writer.state.lock().0 != epoch;
            if over {
                break;
            }
            let writes: Vec<Write> = batch.iter().map(|(write, _)| write.clone()).collect();
            let entry = Entry { time: clock.now(), writes }.encode();
            if let Ok(response) = cluster.propose_at_leader(GroupId::RETAINED, entry).await {
                let outcomes: Vec<Outcome> = postcard::from_bytes(&response.bytes).unwrap_or_default();
                for ((_, answer), outcome) in batch.into_iter().zip(outcomes) {
                    answer.send((response.index, outcome)).unwrap_or_default();
                }
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
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
