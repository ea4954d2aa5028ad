//! Restarts under load and network partitions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::time::{sleep, timeout};

use crate::harness::{GROUP, PATIENCE, POISON, TestCluster, UNREADABLE, command, eventually, members, parse, quiet};
use covey_raft::{ProposeError, RaftGroups, Tuning};

type Nodes = Arc<RwLock<BTreeMap<u64, RaftGroups>>>;

fn handles(cluster: &TestCluster) -> BTreeMap<u64, RaftGroups> {
    cluster.nodes.iter().map(|(id, node)| (*id, node.cluster.clone())).collect()
}

/// Proposes one command after the other, each until it is acknowledged; returns the last one.
async fn client(id: u32, nodes: Nodes, stop: Arc<AtomicBool>) -> u32 {
    let mut sequence = 0;
    while !stop.load(Ordering::Relaxed) {
        sequence += 1;
        loop {
            let any = nodes.read().values().nth(usize::try_from(id + sequence).unwrap() % 3).cloned();
            if let Some(any) = any {
                let answer = any.propose_at_leader(GROUP, command(id, sequence, 200));
                if let Ok(Ok(_)) = timeout(Duration::from_secs(1), answer).await {
                    break;
                }
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
    sequence
}

fn assert_whole(entries: &[(u64, Bytes)], acknowledged: &BTreeMap<u32, u32>) {
    let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
    for (_, entry) in entries {
        let (client, sequence) = parse(entry);
        let last = seen.insert(client, sequence).unwrap_or(0);
        assert_eq!(sequence, last + 1, "client {client} out of order");
    }
    for (client, sequence) in acknowledged {
        assert!(seen.get(client) >= Some(sequence), "client {client}: acknowledged {sequence}, found {seen:?}");
    }
}

async fn under_load(mut cluster: TestCluster, rounds: usize) -> TestCluster {
    let nodes: Nodes = Arc::new(RwLock::new(handles(&cluster)));
    let stop = Arc::new(AtomicBool::new(false));
    let clients: BTreeMap<u32, _> =
        (1..=16).map(|id| (id, tokio::spawn(client(id, Arc::clone(&nodes), Arc::clone(&stop))))).collect();
    for _ in 0..rounds {
        sleep(Duration::from_millis(400)).await;
        let leader = cluster.leader(GROUP).await;
        let ordinal = cluster.nodes[&leader].ordinal;
        nodes.write().remove(&leader);
        cluster.stop(leader).await;
        sleep(Duration::from_millis(200)).await;
        cluster.start(leader, ordinal).await;
        *nodes.write() = handles(&cluster);
    }
    sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = BTreeMap::new();
    for (id, client) in clients {
        acknowledged.insert(id, timeout(PATIENCE, client).await.unwrap().unwrap());
    }
    let entries = cluster.converged(GROUP).await;
    assert_whole(&entries, &acknowledged);
    println!("{} commands, {} applied", acknowledged.values().sum::<u32>(), entries.len());
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_acknowledged_survives_restarts_of_the_leader() {
    let cluster = under_load(TestCluster::formed(quiet()).await, 4).await;
    cluster.assert_no_fatal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_survives_while_snapshots_and_purges_run() {
    let tuning = Tuning { snapshot_entries: 50, keep_entries: 10, ..quiet() };
    let mut cluster = TestCluster::new(tuning);
    cluster.segment_bytes = 64 << 10;
    for (id, ordinal) in [(1, 0), (2, 1), (3, 2)] {
        cluster.start(id, ordinal).await;
    }
    for node in cluster.nodes.values() {
        node.cluster.initialize(&members(&[(1, 0), (2, 1), (3, 2)])).await.unwrap();
    }
    let cluster = under_load(cluster, 4).await;
    for (id, node) in &cluster.nodes {
        eventually(&format!("node {id} purged nothing"), || node.cluster.status(GROUP).purged > 0).await;
        let status = node.cluster.status(GROUP);
        assert!(status.snapshot >= status.purged, "node {id}: {status:?}");
    }
    cluster.assert_no_fatal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_healed_follower_does_not_unseat_the_leader() {
    let cluster = TestCluster::formed(quiet()).await;
    cluster.write(GROUP, command(1, 1, 0)).await;
    let leader = cluster.leader(GROUP).await;
    let before = *cluster.cluster(leader).leadership(GROUP).borrow();
    let follower = 1 + leader % 3;
    cluster.net.cut(follower);
    // Many election timeouts: without Pre-Vote (Raft dissertation, section 9.6) the term of the isolated node would
    // grow.
    sleep(Duration::from_secs(3)).await;
    cluster.write(GROUP, command(1, 2, 0)).await;
    assert_eq!(cluster.cluster(follower).status(GROUP).term, before.term, "the isolated node raised its term");
    cluster.net.heal();
    cluster.write(GROUP, command(1, 3, 0)).await;
    assert_eq!(cluster.converged(GROUP).await.len(), 3);
    assert_eq!(*cluster.cluster(leader).leadership(GROUP).borrow(), before);
    cluster.assert_no_fatal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_peer_that_is_not_reached_is_tried_at_intervals() {
    let cluster = TestCluster::formed(quiet()).await;
    let leader = cluster.leader(GROUP).await;
    cluster.net.cut(1 + leader % 3);
    cluster.write(GROUP, command(1, 1, 0)).await;
    let before = cluster.net.asked.load(Ordering::Relaxed);
    sleep(Duration::from_secs(2)).await;
    let asked = cluster.net.asked.load(Ordering::Relaxed) - before;
    // Two groups, each with an append every 50 ms, and with heartbeats to both other nodes and pre-votes of the
    // isolated node every 75 ms.
    assert!(asked < 500, "asked {asked} times in two seconds");
    cluster.net.heal();
    cluster.assert_no_fatal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_lone_leader_confirms_nothing_and_acknowledges_nothing() {
    let cluster = TestCluster::formed(quiet()).await;
    cluster.write(GROUP, command(1, 1, 0)).await;
    let old = cluster.leader(GROUP).await;
    cluster.net.cut(old);
    let read = timeout(Duration::from_secs(5), cluster.cluster(old).read_index(GROUP)).await.unwrap();
    assert!(read.is_err(), "{read:?}");
    let lost = tokio::spawn(cluster.cluster(old).propose(GROUP, command(2, 1, 0)));
    // The other two elect a leader and continue; a busy machine may need several attempts.
    let go_on = async {
        loop {
            let new = cluster.leader_where(GROUP, |id| id != old).await;
            if cluster.cluster(new).propose(GROUP, command(1, 2, 0)).await.is_ok() {
                return;
            }
        }
    };
    timeout(PATIENCE, go_on).await.unwrap();
    cluster.net.heal();
    let lost = timeout(PATIENCE, lost).await.unwrap().unwrap();
    assert!(matches!(lost, Err(ProposeError::NotLeader(_) | ProposeError::Unknown)), "{lost:?}");
    let entries = cluster.converged(GROUP).await;
    assert_eq!(entries.len(), 2, "{entries:?}");
    cluster.assert_no_fatal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_machine_that_panics_ends_the_process_of_its_node() {
    ends_the_process(POISON, "panicked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_entry_that_a_machine_cannot_read_ends_the_process_of_its_node() {
    ends_the_process(UNREADABLE, "no such operation").await;
}

/// Proposes a command of `client`; no node may acknowledge it, and one must give up with this reason.
async fn ends_the_process(client: u32, reason: &str) {
    let cluster = TestCluster::formed(quiet()).await;
    loop {
        let leader = cluster.cluster(cluster.leader(GROUP).await);
        match timeout(PATIENCE, leader.propose(GROUP, command(client, 1, 0))).await.unwrap() {
            Err(ProposeError::NotLeader(_)) => (),
            other => break assert_eq!(other, Err(ProposeError::Unknown)),
        }
    }
    eventually("no process ended", || cluster.fatal.lock().iter().any(|told| told.contains(reason))).await;
}
