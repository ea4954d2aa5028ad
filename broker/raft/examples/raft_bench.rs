//! Measures the Raft groups of three nodes in this process over real gRPC on loopback and real files.
//!
//! `cargo run --release -p covey-raft --example raft_bench [seconds per load]`

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a measurement, not a product")]

#[expect(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../tests/raft/harness.rs"]
mod harness;

use std::collections::BTreeMap;
use std::time::Duration;

use covey_raft::{RaftGroups, Tuning};
use covey_types::{GroupId, ShardId};
use harness::{GROUP, TestCluster, command, members};
use tokio::time::{Instant, sleep};

const ROWS: u32 = 100_000;
const ROW_BYTES: usize = 300;

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// Runs closed-loop clients on the leader's node. Each client proposes its commands in order.
async fn load(leader: &RaftGroups, name: &str, first_client: u32, clients: u32, seconds: u64) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..clients)
        .map(|number| {
            let leader = leader.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < deadline {
                    let begun = Instant::now();
                    let sequence = u32::try_from(times.len() + 1).unwrap();
                    leader.propose(GROUP, command(first_client + number, sequence, ROW_BYTES)).await.unwrap();
                    times.push(begun.elapsed());
                }
                times
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    all.sort();
    let rate = all.len() as u64 / seconds;
    println!("{name}: {rate} ops/s, p50 {:?}, p99 {:?}", percentile(&all, 50), percentile(&all, 99));
}

fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

async fn loads(seconds: u64) {
    let mut cluster = TestCluster::new(Tuning::default());
    let shards = ShardId::all(8).map(GroupId::shard);
    cluster.groups = std::iter::once(GROUP).chain([GroupId::RETAINED]).chain(shards).collect();
    for (id, ordinal) in [(1, 0), (2, 1), (3, 2)] {
        cluster.start(id, ordinal).await;
    }
    for node in cluster.nodes.values() {
        node.cluster.initialize(&members(&[(1, 0), (2, 1), (3, 2)])).await.unwrap();
    }
    let leader = cluster.cluster(cluster.leader(GROUP).await);
    sleep(Duration::from_secs(1)).await;
    let before = cpu_ticks();
    sleep(Duration::from_secs(5)).await;
    println!("idle, 10 groups on 3 nodes: {} % of a core for all three", (cpu_ticks() - before) / 5);
    load(&leader, "3 nodes, 1 client", 100, 1, seconds).await;
    load(&leader, "3 nodes, 64 clients", 200, 64, seconds).await;
    let mut reads = Vec::new();
    for _ in 0..500 {
        let begun = Instant::now();
        leader.read_index(GROUP).await.unwrap();
        reads.push(begun.elapsed());
    }
    reads.sort();
    println!("read index, one at a time: p50 {:?}, p99 {:?}", percentile(&reads, 50), percentile(&reads, 99));
    cluster.stop_all().await;
}

async fn catch_up() {
    let check_every = Duration::from_millis(5);
    let tuning = Tuning { snapshot_entries: u64::from(ROWS), check_every, snapshot_rate: None, ..Tuning::default() };
    let mut cluster = TestCluster::formed(tuning).await;
    let leader = cluster.cluster(cluster.leader(GROUP).await);
    let begun = Instant::now();
    for from in (1..=ROWS).step_by(1000) {
        let answers: Vec<_> = (from..from + 1000).map(|n| leader.propose(GROUP, command(1, n, ROW_BYTES))).collect();
        for answer in answers {
            answer.await.unwrap();
        }
    }
    println!("{ROWS} rows of {ROW_BYTES} B proposed in {:?}", begun.elapsed());
    let begun = Instant::now();
    while leader.status(GROUP).snapshot == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    println!("snapshot on the leader's disk after {:?}, the followers made theirs meanwhile", begun.elapsed());
    sleep(Duration::from_secs(2)).await;
    cluster.start(4, 3).await;
    let begun = Instant::now();
    leader.set_voters(GROUP, members(&[(1, 0), (2, 1), (3, 2)]), members(&[(4, 3)])).await.unwrap();
    let index = leader.read_index(GROUP).await.unwrap();
    cluster.cluster(4).await_applied(GROUP, index).await;
    println!(
        "an empty learner has {} rows after {:?}",
        cluster.nodes[&4].contents(GROUP).entries.len(),
        begun.elapsed()
    );
    let begun = Instant::now();
    leader.set_voters(GROUP, members(&[(1, 0), (2, 1), (4, 3)]), BTreeMap::new()).await.unwrap();
    println!("it became a voter in {:?}", begun.elapsed());
    cluster.stop(4).await;
    let begun = Instant::now();
    cluster.start(4, 3).await;
    println!("it restarted in {:?}", begun.elapsed());
    cluster.stop_all().await;
}

#[tokio::main]
async fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    loads(seconds).await;
    catch_up().await;
}
