//! Upkeep of the log: when snapshots are made, and how much of the log is purged.
//!
//! One task per node checks each group in turn. A snapshot is due after enough entries or bytes since the last one, or
//! if the group alone holds back old segments. The task makes a snapshot, waits until it is on disk (writing it fsyncs
//! the state first), and only then purges the log up to it, so that a restart or a new replica always finds the rest.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use covey_log::segment::Log;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::group::Group;
use super::raft::Types;
use super::types::Tuning;

/// Time that a round waits for a snapshot; a later round continues.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_mins(10);

/// Runs until the token is cancelled.
pub(super) async fn run(groups: Vec<Arc<Group>>, log: Log, tuning: Tuning, stop: CancellationToken) {
    let mut ticks = interval(tuning.check_every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => (),
            () = stop.cancelled() => return,
        }
        let pinned: BTreeSet<u16> = log.pinned(tuning.max_log_behind).iter().map(|pin| pin.group).collect();
        for group in &groups {
            let round = look_after(group, &tuning, pinned.contains(&group.id.get()));
            tokio::select! {
                done = round => if done.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    }
}

/// Makes a snapshot of one group and purges its log, if due.
async fn look_after(group: &Group, tuning: &Tuning, pinned: bool) -> Result<(), Fatal<Types>> {
    let applied = *group.progress.applied.borrow();
    let current = group.snapshots.current();
    let covered = current.as_ref().and_then(|file| file.index());
    let new = applied.saturating_sub(covered.unwrap_or(0));
    let size = tuning.snapshot_bytes.max(current.map_or(0, |file| file.bytes));
    let unsaved = group.progress.unsaved.load(std::sync::atomic::Ordering::Relaxed);
    let due = new >= tuning.snapshot_entries || unsaved >= size || pinned;
    // A peer that receives a snapshot needs the log above it, unless the disk needs the space.
    let held = group.snapshots.is_sending() && !pinned;
    if !due || held || (applied == 0 && covered.is_none()) {
        return Ok(());
    }
    if new > 0 {
        snapshot(group, applied).await?;
    }
    purge(group, if pinned { 0 } else { tuning.keep_entries }).await
}

/// Makes a snapshot and waits until it covers at least the index.
async fn snapshot(group: &Group, at_least: u64) -> Result<(), Fatal<Types>> {
    let mut progress = group.raft.data_metrics();
    group.raft.trigger().snapshot().await?;
    let covered = async {
        loop {
            if progress.borrow_watched().snapshot.is_some_and(|id| id.index >= at_least) {
                return;
            }
            if progress.changed().await.is_err() {
                return;
            }
        }
    };
    if timeout(SNAPSHOT_TIMEOUT, covered).await.is_err() {
        tracing::warn!(group = %group.id, "snapshot not completed in time; a later round continues");
    }
    Ok(())
}

/// Purges the log below the snapshot, except the last `keep` entries.
async fn purge(group: &Group, keep: u64) -> Result<(), Fatal<Types>> {
    let covered = group.snapshots.current().and_then(|file| file.index());
    match covered.and_then(|index| index.checked_sub(keep)) {
        Some(up_to) => group.raft.trigger().purge_log(up_to).await,
        None => Ok(()),
    }
}
