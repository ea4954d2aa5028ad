//! A cluster that is made smaller, and larger again.

use std::collections::BTreeSet;
use std::time::Duration;

use covey_codec::ReasonCode;
use covey_mqtt::session::{Connected, Ended, Published, Session, Sessions};
use covey_node::Node;

use crate::test_cluster::{TestCluster, filter, message, receive, request, until};

const BROKEN: Ended = Ended { drop_will: false, expiry: None };
const WORKERS: usize = 16;

fn node(cluster: &TestCluster, ordinal: usize) -> &Node {
    &cluster.nodes[ordinal].as_ref().unwrap().node
}

/// Waits until every group has a leader among these nodes and no voter or learner of any is still to be changed.
async fn settled(cluster: &TestCluster, nodes: std::ops::Range<usize>) {
    let all: BTreeSet<_> = node(cluster, 0).groups().collect();
    until("every group has its voters", || {
        let led: BTreeSet<_> = nodes.clone().flat_map(|ordinal| node(cluster, ordinal).groups_led()).collect();
        led == all && nodes.clone().all(|ordinal| node(cluster, ordinal).groups_changing().next().is_none())
    })
    .await;
}

async fn publish(publisher: &impl Session, first: usize) {
    for number in first..first + 10 {
        for worker in 0..WORKERS {
            let message = message(&format!("jobs/{worker}"), &number.to_string());
            assert_eq!(publisher.publish(message, None).await, Published::Accepted);
        }
    }
}

/// Connects as a client does that is told 0x88 by a node whose lease has lapsed for a moment: on a busy machine that happens
/// while groups change their voters.
async fn connect(cluster: &TestCluster, ordinal: usize, client: &str) -> Connected<impl Session + use<>> {
    for _ in 0..20 {
        match cluster.sessions(ordinal).connect(request(client, 600)).await {
            Err(ReasonCode::ServerUnavailable) => tokio::time::sleep(Duration::from_millis(500)).await,
            connected => return connected.unwrap(),
        }
    }
    panic!("node {ordinal} does not serve");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_become_three_and_five_again_and_no_queued_message_is_lost() {
    let mut cluster = TestCluster::formed(5).await;
    settled(&cluster, 0..5).await;
    // Client ids of all shards, so that some are on the nodes that leave.
    for worker in 0..WORKERS {
        let worker_session = cluster.connect(worker % 5, &format!("worker-{worker}"), 600).await;
        worker_session.session.subscribe(vec![filter(&format!("jobs/{worker}"))]).await;
        worker_session.session.end(BROKEN);
    }
    let publisher = cluster.connect(0, "publisher", 0).await;
    publish(&publisher.session, 0).await;

    let membership = cluster.nodes[1].as_ref().unwrap().membership.clone();
    membership.resize(3).await.unwrap();
    until("every node knows the size", || (0..5).all(|ordinal| node(&cluster, ordinal).cluster_size() == Some(3)))
        .await;
    publish(&publisher.session, 10).await;
    settled(&cluster, 0..3).await;
    assert!((3..5).all(|ordinal| cluster.sessions(ordinal).is_serving()), "a retiring node serves its clients");
    for ordinal in [4, 3] {
        let id = node(&cluster, ordinal).id();
        assert!(node(&cluster, ordinal).groups_held().all(|group| group.as_shard().is_none()), "node {ordinal}");
        membership.leave(id).await.unwrap_err();
        cluster.stop(ordinal).await;
        let left = async {
            while membership.leave(id).await.is_err() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), left).await.expect("the epoch of the stopped node ends");
        publish(&publisher.session, 20 + 10 * (4 - ordinal)).await;
    }
    assert_eq!(node(&cluster, 0).members_by_ordinal().len(), 3);

    // Disks that were kept are emptied, and join when the cluster grows again.
    for ordinal in 3..5 {
        cluster.start(ordinal).await;
        let identity = cluster.nodes[ordinal as usize].as_ref().unwrap().membership.clone();
        let told = tokio::time::timeout(Duration::from_secs(20), identity.identity().left()).await;
        told.expect("a node that has left is told so");
        cluster.stop(ordinal as usize).await;
        cluster.start(ordinal).await;
    }
    // Time for two attempts to join, which must be refused.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node(&cluster, 0).members_by_ordinal().len(), 3, "nodes join before the cluster is to have them");
    membership.resize(5).await.unwrap();
    until("five members", || node(&cluster, 0).members_by_ordinal().len() == 5).await;
    cluster.all_serve().await;
    settled(&cluster, 0..5).await;
    publish(&publisher.session, 40).await;

    for worker in 0..WORKERS {
        let mut session = connect(&cluster, 4 - worker % 5, &format!("worker-{worker}")).await;
        assert!(session.session_present, "worker {worker}");
        for number in 0..50 {
            let (payload, packet) = receive(&mut session).await;
            assert_eq!(payload, number.to_string(), "worker {worker}");
            session.session.acknowledge(packet);
        }
    }
}
