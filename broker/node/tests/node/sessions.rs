//! Sessions across several nodes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use covey_codec::{QoS, ReasonCode};
use covey_mqtt::session::{Close, ConnectRequest, Ended, Event, Message, Published, Session, Sessions, Subscription};

use crate::test_cluster::{TestCluster, filter, message, receive, request, until};

const BROKEN: Ended = Ended { drop_will: false, expiry: None };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_reaches_durable_and_transient_sessions_on_other_nodes() {
    let cluster = TestCluster::formed(3).await;
    let mut durable = cluster.connect(0, "durable", 600).await;
    let mut transient = cluster.connect(1, "transient", 0).await;
    for session in [&durable.session, &transient.session] {
        assert_eq!(session.subscribe(vec![filter("jobs/#")]).await, [ReasonCode::GrantedQos1]);
    }
    let publisher = cluster.connect(2, "publisher", 0).await;
    for number in 0..20 {
        let published = publisher.session.publish(message("jobs/a", &number.to_string()), None).await;
        assert_eq!(published, Published::Accepted);
    }
    assert_eq!(publisher.session.publish(message("other", "x"), None).await, Published::NoMatchingSubscribers);
    for connected in [&mut durable, &mut transient] {
        for number in 0..20 {
            let (payload, packet) = receive(connected).await;
            assert_eq!(payload, number.to_string());
            connected.session.acknowledge(packet);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qos_0_waits_for_a_slow_client_as_long_as_a_queue_and_is_counted_above() {
    const QUEUE: u32 = 1000;
    let cluster = TestCluster::formed(1).await;
    let mut slow = cluster.connect(0, "slow", 0).await;
    slow.session.subscribe(vec![Subscription { qos: QoS::AtMostOnce, ..filter("news") }]).await;
    for number in 0..QUEUE + 5 {
        let message = Message { qos: QoS::AtMostOnce, ..message("news", &number.to_string()) };
        assert_eq!(slow.session.publish(message, None).await, Published::Accepted);
    }
    for number in 0..QUEUE {
        let Ok(Event::Deliver(delivery)) = slow.events.try_recv() else { panic!("{number} is not there") };
        assert_eq!(delivery.message.payload, number.to_string().as_bytes());
    }
    assert!(slow.events.try_recv().is_err());
    assert_eq!(cluster.counts.slow.load(Ordering::Relaxed), 5);
}

/// A retained message waits for its commit, and what follows waits behind it: QoS 0 up to a number of bytes, QoS 1 always.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qos_1_behind_a_large_qos_0_message_is_acknowledged() {
    let cluster = TestCluster::formed(1).await;
    let publisher = cluster.connect(0, "publisher", 0).await;
    let large = "x".repeat(2 << 20);
    for attempt in 0..30 {
        let retained = publisher.session.publish(Message { retain: true, ..message("kept", "x") }, None);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let qos_0 = publisher.session.publish(Message { qos: QoS::AtMostOnce, ..message("news", &large) }, None);
        let qos_1 = publisher.session.publish(message("jobs", "x"), None);
        let outcome = tokio::time::timeout(Duration::from_secs(5), qos_1).await;
        assert_eq!(outcome, Ok(Published::NoMatchingSubscribers), "attempt {attempt}");
        retained.await;
        drop(qos_0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transient_session_that_overruns_ends_with_its_will() {
    let cluster = TestCluster::formed(1).await;
    let mut watcher = cluster.connect(0, "watcher", 0).await;
    watcher.session.subscribe(vec![filter("gone")]).await;
    let request = ConnectRequest { will: Some(message("gone", "slow")), ..request("slow", 0) };
    let mut slow = cluster.sessions(0).connect(request).await.unwrap();
    slow.session.subscribe(vec![filter("jobs")]).await;
    let publisher = cluster.connect(0, "publisher", 0).await;
    // More than a window and a queue.
    for number in 0..1200 {
        publisher.session.publish(message("jobs", &number.to_string()), None).await;
    }
    let mut delivered = 0;
    let why = loop {
        match slow.events.recv().await.expect("no close event") {
            Event::Deliver(_) => delivered += 1,
            Event::Close(why) => break why,
            Event::Release(_) => panic!("no delivery was answered with PUBREC"),
        }
    };
    assert_eq!((why, delivered), (Close::QueueFull, 100));
    assert!(slow.events.recv().await.is_none());
    slow.session.end(BROKEN);
    assert_eq!(receive(&mut watcher).await.0, "slow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_right_before_the_end_does_not_come_again() {
    let cluster = TestCluster::formed(1).await;
    let worker = cluster.connect(0, "worker", 600).await;
    worker.session.subscribe(vec![filter("jobs")]).await;
    worker.session.end(BROKEN);
    let publisher = cluster.connect(0, "publisher", 0).await;
    for number in 0..20 {
        publisher.session.publish(message("jobs", &number.to_string()), None).await;
        let mut worker = cluster.connect(0, "worker", 600).await;
        let (payload, packet) = receive(&mut worker).await;
        assert_eq!(payload, number.to_string());
        worker.session.acknowledge(packet);
        worker.session.end(BROKEN);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offline_session_keeps_its_queue_and_resumes_on_another_node() {
    let cluster = TestCluster::formed(3).await;
    let first = cluster.connect(0, "worker", 600).await;
    first.session.subscribe(vec![filter("jobs/#")]).await;
    first.session.end(BROKEN);
    let publisher = cluster.connect(1, "publisher", 0).await;
    for number in 0..50 {
        assert_eq!(publisher.session.publish(message("jobs/a", &number.to_string()), None).await, Published::Accepted);
    }
    let mut second = cluster.connect(2, "worker", 600).await;
    assert!(second.session_present);
    for number in 0..50 {
        let (payload, packet) = receive(&mut second).await;
        assert_eq!(payload, number.to_string());
        second.session.acknowledge(packet);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_connection_takes_the_session_over() {
    let cluster = TestCluster::formed(3).await;
    let mut first = cluster.connect(0, "worker", 600).await;
    let _second = cluster.connect(1, "worker", 600).await;
    let event = tokio::time::timeout(Duration::from_secs(5), first.events.recv()).await.unwrap().unwrap();
    assert!(matches!(event, Event::Close(Close::TakenOver)), "{event:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_right_after_the_suback_arrives_wherever_it_is_made() {
    let cluster = TestCluster::formed(3).await;
    let mut publishers = Vec::new();
    for ordinal in 0..3 {
        publishers.push(cluster.connect(ordinal, &format!("publisher-{ordinal}"), 0).await);
    }
    for round in 0..60 {
        let expiry = if round % 2 == 0 { 600 } else { 0 };
        let mut subscriber = cluster.connect(round % 3, &format!("subscriber-{round}"), expiry).await;
        let topic = format!("fresh/{round}");
        subscriber.session.subscribe(vec![filter(&topic)]).await;
        let publisher = &publishers[(round + 1) % 3];
        assert_eq!(publisher.session.publish(message(&topic, "now"), None).await, Published::Accepted, "round {round}");
        assert_eq!(receive(&mut subscriber).await.0, "now");
        subscriber.session.end(BROKEN);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_restart_of_all_nodes() {
    let mut cluster = TestCluster::formed(3).await;
    let worker = cluster.connect(0, "worker", 600).await;
    worker.session.subscribe(vec![filter("jobs/#")]).await;
    worker.session.end(BROKEN);
    let publisher = cluster.connect(1, "publisher", 0).await;
    for number in 0..100 {
        assert_eq!(publisher.session.publish(message("jobs/a", &number.to_string()), None).await, Published::Accepted);
    }
    drop((worker, publisher));
    for ordinal in 0..3 {
        cluster.stop(ordinal).await;
    }
    for ordinal in 0..3 {
        cluster.start(ordinal).await;
    }
    cluster.all_serve().await;
    let mut worker = cluster.connect(2, "worker", 600).await;
    assert!(worker.session_present);
    for number in 0..100 {
        let (payload, packet) = receive(&mut worker).await;
        assert_eq!(payload, number.to_string());
        worker.session.acknowledge(packet);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_go_on_over_the_death_of_a_leader_and_none_is_lost_or_doubled() {
    let mut cluster = TestCluster::formed(3).await;
    let mut worker = cluster.connect(0, "worker", 600).await;
    worker.session.subscribe(vec![filter("jobs/#")]).await;
    let publisher = cluster.connect(1, "publisher", 0).await;
    let publish = |number: u32| publisher.session.publish(message("jobs/a", &number.to_string()), None);
    let before: Vec<_> = (0..50).map(publish).collect();
    cluster.stop(2).await;
    let after: Vec<_> = (50..100).map(publish).collect();
    for published in before.into_iter().chain(after) {
        let published = tokio::time::timeout(Duration::from_secs(20), published).await.expect("acknowledged");
        assert_eq!(published, Published::Accepted);
    }
    for number in 0..100 {
        let (payload, packet) = receive(&mut worker).await;
        assert_eq!(payload, number.to_string());
        worker.session.acknowledge(packet);
    }
    cluster.start(2).await;
    cluster.all_serve().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_replica_of_a_shard_serves_its_sessions() {
    let cluster = TestCluster::formed(4).await;
    let node = |ordinal: usize| &cluster.nodes[ordinal].as_ref().unwrap().node;
    let shards: Vec<_> = node(0).groups().filter(|group| group.as_shard().is_some()).collect();
    until("every shard has three voters", || {
        shards.iter().all(|shard| {
            let leader = (0..4).find(|ordinal| node(*ordinal).groups_led().any(|led| led == *shard));
            leader.is_some_and(|leader| node(leader).group_status(*shard).voters.len() == 3)
        })
    })
    .await;
    // Client ids of all shards, each connected to a node that may not have a replica of the shard.
    for client in 0..16 {
        let mut worker = cluster.connect(client % 4, &format!("worker-{client}"), 600).await;
        let topic = format!("jobs/{client}");
        worker.session.subscribe(vec![filter(&topic)]).await;
        let publisher = cluster.connect((client + 1) % 4, &format!("publisher-{client}"), 0).await;
        assert_eq!(publisher.session.publish(message(&topic, "now"), None).await, Published::Accepted);
        assert_eq!(receive(&mut worker).await.0, "now");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_majority_stops_serving_and_comes_back_by_itself() {
    let mut cluster = TestCluster::formed(3).await;
    let mut client = cluster.connect(0, "client", 600).await;
    cluster.stop(1).await;
    cluster.stop(2).await;
    until("the last node is fenced", || !cluster.sessions(0).is_serving()).await;
    let event = tokio::time::timeout(Duration::from_secs(10), client.events.recv()).await.unwrap();
    assert!(matches!(event, Some(Event::Close(Close::Fenced))), "{event:?}");
    cluster.start(1).await;
    cluster.all_serve().await;
}
