//! Snapshots, purged logs, new nodes, growth, and restarts of all nodes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::harness::{GROUP, OTHER, TestCluster, command, eventually, members, quiet};
use covey_raft::Tuning;

fn tiny() -> Tuning {
    Tuning { snapshot_entries: 100, keep_entries: 5, ..quiet() }
}

/// Proposes commands in a pipeline, 100 at a time.
async fn fill(cluster: &TestCluster, client: u32, from: u32, to: u32) {
    let all: Vec<u32> = (from..=to).collect();
    for chunk in all.chunks(100) {
        let leader = cluster.cluster(cluster.leader(GROUP).await);
        let pending: Vec<_> = chunk.iter().map(|n| leader.propose(GROUP, command(client, *n, 300))).collect();
        for (answer, n) in pending.into_iter().zip(chunk) {
            // On a busy machine the leader may have changed: propose it again.
            if answer.await.is_err() {
                cluster.write(GROUP, command(client, *n, 300)).await;
            }
        }
    }
}

async fn purged(cluster: &TestCluster, at_least: u64) {
    for (id, node) in &cluster.nodes {
        let done = || node.cluster.status(GROUP).purged >= at_least;
        eventually(&format!("node {id} did not purge to {at_least}"), done).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_empty_node_catches_up_by_snapshot_and_log_and_votes() {
    let mut cluster = TestCluster::formed(tiny()).await;
    fill(&cluster, 1, 1, 1000).await;
    purged(&cluster, 800).await;
    // Node 3 loses its disk: a node with a new id and the same ordinal replaces it.
    cluster.stop(3).await;
    cluster.start(4, 2).await;
    for group in [GROUP, OTHER] {
        let voters = members(&[(1, 0), (2, 1), (4, 2)]);
        cluster.set_voters(group, &voters, &BTreeMap::new()).await;
        let status = cluster.cluster(cluster.leader(group).await).status(group);
        assert_eq!((status.voters, status.learners, status.joint), (voters, BTreeMap::new(), false));
    }
    assert!(cluster.net.snapshots_sent.load(Ordering::Relaxed) > 0, "the node caught up without a snapshot");
    fill(&cluster, 1, 1001, 1100).await;
    assert_eq!(cluster.converged(GROUP).await.len(), 1100);
    // It votes: with another node stopped, it completes the majority.
    let other = if cluster.leader(GROUP).await == 1 { 2 } else { 1 };
    cluster.stop(other).await;
    cluster.write(GROUP, command(2, 1, 0)).await;
    cluster.assert_no_fatal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_node_grows_to_three() {
    let mut cluster = TestCluster::new(tiny());
    cluster.start(1, 0).await;
    cluster.cluster(1).initialize(&members(&[(1, 0)])).await.unwrap();
    fill(&cluster, 1, 1, 500).await;
    purged(&cluster, 300).await;
    cluster.start(2, 1).await;
    cluster.start(3, 2).await;
    let all = members(&[(1, 0), (2, 1), (3, 2)]);
    for group in [GROUP, OTHER] {
        cluster.set_voters(group, &all, &BTreeMap::new()).await;
        // A repetition has no effect.
        cluster.set_voters(group, &all, &BTreeMap::new()).await;
    }
    assert_eq!(cluster.converged(GROUP).await.len(), 500);
    cluster.stop(1).await;
    cluster.write(GROUP, command(1, 501, 0)).await;
    assert_eq!(cluster.converged(GROUP).await.len(), 501);
    cluster.assert_no_fatal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_learner_follows_and_leaves() {
    let mut cluster = TestCluster::formed(quiet()).await;
    cluster.start(4, 3).await;
    fill(&cluster, 1, 1, 10).await;
    let voters = members(&[(1, 0), (2, 1), (3, 2)]);
    cluster.set_voters(GROUP, &voters, &members(&[(4, 3)])).await;
    assert_eq!(cluster.converged(GROUP).await.len(), 10);
    let status = cluster.cluster(cluster.leader(GROUP).await).status(GROUP);
    assert_eq!((status.voters, status.learners), (voters.clone(), members(&[(4, 3)])));
    cluster.set_voters(GROUP, &voters, &BTreeMap::new()).await;
    let status = cluster.cluster(cluster.leader(GROUP).await).status(GROUP);
    assert_eq!((status.voters, status.learners), (voters, BTreeMap::new()));
    cluster.assert_no_fatal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_nodes_restart_with_purged_logs_and_nothing_is_lost_or_repeated() {
    let mut cluster = TestCluster::formed(tiny()).await;
    fill(&cluster, 1, 1, 730).await;
    purged(&cluster, 600).await;
    let before = cluster.converged(GROUP).await;
    let applied: BTreeMap<u64, u64> =
        cluster.nodes.iter().map(|(id, node)| (*id, node.cluster.status(GROUP).applied)).collect();
    cluster.stop_all().await;
    for (id, ordinal) in [(1, 0), (2, 1), (3, 2)] {
        cluster.start(id, ordinal).await;
    }
    assert_eq!(cluster.converged(GROUP).await, before);
    for (id, node) in &cluster.nodes {
        let again: Vec<u64> = node.contents(GROUP).applies.into_iter().filter(|index| *index <= applied[id]).collect();
        assert!(again.is_empty(), "node {id} applied again: {again:?}");
        let status = node.cluster.status(GROUP);
        assert!(status.snapshot >= status.purged && status.purged > 0, "{status:?}");
    }
    fill(&cluster, 1, 731, 740).await;
    assert_eq!(cluster.converged(GROUP).await.len(), 740);
    cluster.assert_no_fatal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_torn_state_is_made_anew_from_snapshot_and_log() {
    let mut cluster = TestCluster::formed(tiny()).await;
    fill(&cluster, 1, 1, 730).await;
    purged(&cluster, 600).await;
    let before = cluster.converged(GROUP).await;
    cluster.stop_all().await;
    // Bytes in the middle of a batch that did not reach the disk, in the state store of every node.
    for id in [1, 2, 3] {
        let state = cluster.dir(id).join("state");
        let journal = std::fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path());
        let journal = journal.filter(|path| path.extension().is_some_and(|kind| kind == "jnl")).max().unwrap();
        let mut bytes = std::fs::read(&journal).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        let in_a_payload = bytes[..end / 2].windows(16).rposition(|run| run == [b'x'; 16]).unwrap();
        bytes[in_a_payload] ^= 1;
        std::fs::write(&journal, bytes).unwrap();
    }
    for (id, ordinal) in [(1, 0), (2, 1), (3, 2)] {
        cluster.start(id, ordinal).await;
        assert!(cluster.dir(id).join("state.torn").exists(), "the damage was not detected");
    }
    assert_eq!(cluster.converged(GROUP).await, before);
    fill(&cluster, 1, 731, 740).await;
    assert_eq!(cluster.converged(GROUP).await.len(), 740);
    cluster.assert_no_fatal();
}

async fn after_harm_to_snapshots(harm: impl Fn(&Path)) {
    let mut cluster = TestCluster::formed(tiny()).await;
    fill(&cluster, 1, 1, 500).await;
    purged(&cluster, 300).await;
    for node in cluster.nodes.values() {
        // So few entries above the snapshot that no node makes a new one after the restart.
        let covered = || {
            let status = node.cluster.status(GROUP);
            status.applied >= 500 && status.applied - status.snapshot < 80
        };
        for n in 501..=600 {
            if covered() {
                break;
            }
            fill(&cluster, 1, n, n).await;
        }
        eventually("no snapshot is close", covered).await;
    }
    let expected = cluster.converged(GROUP).await;
    cluster.stop_all().await;
    for id in 1..=3 {
        for file in std::fs::read_dir(cluster.dir(id).join("snapshots")).unwrap() {
            harm(&file.unwrap().path());
        }
    }
    for (id, ordinal) in [(1, 0), (2, 1), (3, 2)] {
        cluster.start(id, ordinal).await;
    }
    // A new node needs a snapshot from the leader.
    cluster.start(4, 3).await;
    let voters = members(&[(1, 0), (2, 1), (3, 2)]);
    cluster.set_voters(GROUP, &voters, &members(&[(4, 3)])).await;
    assert_eq!(cluster.converged(GROUP).await, expected);
    cluster.assert_no_fatal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_missing_snapshot_is_made_anew() {
    after_harm_to_snapshots(|path| std::fs::remove_file(path).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_damaged_snapshot_is_not_served_but_made_anew() {
    after_harm_to_snapshots(|path| {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_that_was_cut_short_is_not_served_but_made_anew() {
    after_harm_to_snapshots(|path| {
        let bytes = std::fs::read(path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() - 7]).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_idle_group_does_not_pin_the_log() {
    let mut cluster = TestCluster::new(Tuning { max_log_behind: 256 << 10, ..tiny() });
    cluster.segment_bytes = 32 << 10;
    cluster.start(1, 0).await;
    cluster.cluster(1).initialize(&members(&[(1, 0)])).await.unwrap();
    cluster.write(OTHER, command(1, 1, 300)).await;
    fill(&cluster, 1, 1, 4000).await;
    let node = &cluster.nodes[&1];
    eventually("the idle group did not purge", || node.cluster.status(OTHER).purged > 0).await;
    eventually("the log did not shrink", || node.log.metrics().bytes < 512 << 10).await;
    assert_eq!(node.contents(OTHER).entries.len(), 1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    cluster.assert_no_fatal();
}
