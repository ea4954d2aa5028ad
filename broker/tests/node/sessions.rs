//! Sessions over several nodes.

use std::time::Duration;

use covey_broker::session::{Acknowledgement, Close, Ended, Event, Published, Session};
use covey_codec::ReasonCode;

use crate::herd::{Herd, filter, message, receive, until};

const BROKEN: Ended = Ended { drop_will: false, expiry: None };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_reaches_durable_and_transient_sessions_on_other_nodes() {
    let herd = Herd::formed(3).await;
    let mut durable = herd.connect(0, "durable", 600).await;
    let mut transient = herd.connect(1, "transient", 0).await;
    for session in [&durable.session, &transient.session] {
        assert_eq!(session.subscribe(vec![filter("jobs/#")]).await, [ReasonCode::GrantedQos1]);
    }
    let publisher = herd.connect(2, "publisher", 0).await;
    for number in 0..20 {
        let published = publisher.session.publish(message("jobs/a", &number.to_string()), None).await;
        assert_eq!(published, Published::Delivered);
    }
    assert_eq!(publisher.session.publish(message("other", "x"), None).await, Published::NoMatchingSubscribers);
    for connected in [&mut durable, &mut transient] {
        for number in 0..20 {
            let (payload, packet) = receive(connected).await;
            assert_eq!(payload, number.to_string());
            connected.session.acknowledge(packet, Acknowledgement::Ack);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offline_session_keeps_its_queue_and_resumes_on_another_node() {
    let herd = Herd::formed(3).await;
    let first = herd.connect(0, "worker", 600).await;
    first.session.subscribe(vec![filter("jobs/#")]).await;
    first.session.end(BROKEN);
    let publisher = herd.connect(1, "publisher", 0).await;
    for number in 0..50 {
        assert_eq!(publisher.session.publish(message("jobs/a", &number.to_string()), None).await, Published::Delivered);
    }
    let mut second = herd.connect(2, "worker", 600).await;
    assert!(second.session_present);
    for number in 0..50 {
        let (payload, packet) = receive(&mut second).await;
        assert_eq!(payload, number.to_string());
        second.session.acknowledge(packet, Acknowledgement::Ack);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_connection_takes_the_session_over() {
    let herd = Herd::formed(3).await;
    let mut first = herd.connect(0, "worker", 600).await;
    let _second = herd.connect(1, "worker", 600).await;
    let event = tokio::time::timeout(Duration::from_secs(5), first.events.recv()).await.unwrap().unwrap();
    assert!(matches!(event, Event::Close(Close::TakenOver)), "{event:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_right_after_the_suback_arrives_wherever_it_is_made() {
    let herd = Herd::formed(3).await;
    let mut publishers = Vec::new();
    for ordinal in 0..3 {
        publishers.push(herd.connect(ordinal, &format!("publisher-{ordinal}"), 0).await);
    }
    for round in 0..60 {
        let expiry = if round % 2 == 0 { 600 } else { 0 };
        let mut subscriber = herd.connect(round % 3, &format!("subscriber-{round}"), expiry).await;
        let topic = format!("fresh/{round}");
        subscriber.session.subscribe(vec![filter(&topic)]).await;
        let publisher = &publishers[(round + 1) % 3];
        assert_eq!(
            publisher.session.publish(message(&topic, "now"), None).await,
            Published::Delivered,
            "round {round}"
        );
        assert_eq!(receive(&mut subscriber).await.0, "now");
        subscriber.session.end(BROKEN);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_restart_of_all_nodes() {
    let mut herd = Herd::formed(3).await;
    let worker = herd.connect(0, "worker", 600).await;
    worker.session.subscribe(vec![filter("jobs/#")]).await;
    worker.session.end(BROKEN);
    let publisher = herd.connect(1, "publisher", 0).await;
    for number in 0..100 {
        assert_eq!(publisher.session.publish(message("jobs/a", &number.to_string()), None).await, Published::Delivered);
    }
    drop((worker, publisher));
    for ordinal in 0..3 {
        herd.stop(ordinal).await;
    }
    for ordinal in 0..3 {
        herd.start(ordinal).await;
    }
    herd.all_serve().await;
    let mut worker = herd.connect(2, "worker", 600).await;
    assert!(worker.session_present);
    for number in 0..100 {
        let (payload, packet) = receive(&mut worker).await;
        assert_eq!(payload, number.to_string());
        worker.session.acknowledge(packet, Acknowledgement::Ack);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_go_on_over_the_death_of_a_leader_and_none_is_lost_or_doubled() {
    let mut herd = Herd::formed(3).await;
    let mut worker = herd.connect(0, "worker", 600).await;
    worker.session.subscribe(vec![filter("jobs/#")]).await;
    let publisher = herd.connect(1, "publisher", 0).await;
    let publish = |number: u32| publisher.session.publish(message("jobs/a", &number.to_string()), None);
    let before: Vec<_> = (0..50).map(publish).collect();
    herd.stop(2).await;
    let after: Vec<_> = (50..100).map(publish).collect();
    for published in before.into_iter().chain(after) {
        let published = tokio::time::timeout(Duration::from_secs(20), published).await.expect("acknowledged");
        assert_eq!(published, Published::Delivered);
    }
    for number in 0..100 {
        let (payload, packet) = receive(&mut worker).await;
        assert_eq!(payload, number.to_string());
        worker.session.acknowledge(packet, Acknowledgement::Ack);
    }
    herd.start(2).await;
    herd.all_serve().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_majority_stops_serving_and_comes_back_by_itself() {
    let mut herd = Herd::formed(3).await;
    let mut client = herd.connect(0, "client", 600).await;
    herd.stop(1).await;
    herd.stop(2).await;
    until("the last node is fenced", || !covey_broker::session::Sessions::is_serving(herd.sessions(0))).await;
    let event = tokio::time::timeout(Duration::from_secs(10), client.events.recv()).await.unwrap();
    assert!(matches!(event, Some(Event::Close(Close::Fenced))), "{event:?}");
    herd.start(1).await;
    herd.all_serve().await;
}
