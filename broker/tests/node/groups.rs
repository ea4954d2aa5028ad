//! Raft groups that nodes report when a shard has fewer replicas than the cluster has nodes.

use std::collections::BTreeSet;

use covey_broker::metrics::Metrics;
use covey_broker::sampling::GroupSeries;
use covey_types::GroupId;

use crate::test_cluster::{TestCluster, until};

/// Returns the groups of which the node is a replica, by the groups' leaders; `None` while one has no leader or
/// changes its members.
fn replicated(cluster: &TestCluster, ordinal: usize) -> Option<BTreeSet<GroupId>> {
    let nodes: Vec<_> = cluster.nodes.iter().flatten().map(|running| &running.node).collect();
    let id = cluster.nodes[ordinal].as_ref().unwrap().node.id();
    let mut found = BTreeSet::new();
    for group in nodes[0].groups() {
        let leader = nodes.iter().find(|node| node.leads(group))?;
        let status = leader.group_status(group);
        let replicas = if group.as_shard().is_some() { 3 } else { nodes.len() };
        if status.joint || status.voters.len() + status.learners.len() != replicas {
            return None;
        }
        if status.has_member(id) {
            found.insert(group);
        }
    }
    Some(found)
}

/// Returns the groups that have series in the metrics.
fn exported(metrics: &Metrics) -> BTreeSet<String> {
    let text = metrics.encode().unwrap();
    let groups = text.lines().filter_map(|line| line.split_once("group=\"")?.1.split_once('"'));
    groups.map(|(group, _)| group.to_owned()).collect()
}

/// Waits until every node knows the leaders of its groups and their voters are in sync, and checks that it exports
/// only these groups.
async fn reaches_its_voters(cluster: &TestCluster, series: &mut [(GroupSeries, std::sync::Arc<Metrics>)]) {
    for (ordinal, running) in cluster.nodes.iter().enumerate() {
        let Some(running) = running else { continue };
        let node = &running.node;
        until(&format!("node {ordinal} has its voters"), || {
            node.groups_held().all(|group| node.leader_of(group).is_some())
                && node.voters_behind().is_empty()
                && replicated(cluster, ordinal).is_some_and(|groups| groups == node.groups_held().collect())
        })
        .await;
    }
    for (ordinal, running) in cluster.nodes.iter().enumerate() {
        let Some(running) = running else { continue };
        let (groups, metrics) = &mut series[ordinal];
        groups.read(&running.node, metrics);
        let expected =
            replicated(cluster, ordinal).unwrap().iter().map(|group| group.to_string().replace('/', "-")).collect();
        assert_eq!(exported(metrics), expected, "node {ordinal}");
    }
}

fn series(count: usize) -> Vec<(GroupSeries, std::sync::Arc<Metrics>)> {
    (0..count).map(|_| (GroupSeries::default(), Metrics::new("0", "0").unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_report_only_the_groups_that_they_are_replicas_of() {
    let cluster = TestCluster::formed(4).await;
    let mut series = series(4);
    // Formation makes every node a voter of every group, so groups that are removed later have series already.
    for (running, (groups, metrics)) in cluster.nodes.iter().flatten().zip(&mut series) {
        groups.read(&running.node, metrics);
    }
    reaches_its_voters(&cluster, &mut series).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fifth_node_reports_only_the_groups_that_it_is_a_replica_of() {
    let mut cluster = TestCluster::fresh(5).await;
    cluster.stop(4).await;
    cluster.form().await;
    cluster.all_serve().await;
    let mut series = series(5);
    reaches_its_voters(&cluster, &mut series).await;
    cluster.start(4).await;
    cluster.all_serve().await;
    reaches_its_voters(&cluster, &mut series).await;
    // A node that missed its removal from a group must report correctly after a restart, too.
    cluster.stop(1).await;
    cluster.start(1).await;
    cluster.all_serve().await;
    reaches_its_voters(&cluster, &mut series).await;
}
