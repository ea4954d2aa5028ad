//! Packet identifiers that a client uses twice (2.2.1), and the bounds of unanswered packets.

use covey_codec::packet::{Ack, Publish};
use covey_codec::{Packet, ProtocolVersion, QoS, ReasonCode};
use tokio::time::sleep;

use super::client::{Client, id, publish, subscribe, unsubscribe};
use super::fake::{Call, Count};
use super::{BOTH, Bench, SECOND, V5, V311, limits};
use crate::connection::{Closed, Limits};

/// Returns a client whose requests stay unanswered.
async fn held(bench: &Bench, version: ProtocolVersion) -> Client {
    let client = bench.connect(version).await;
    bench.fake.set(|state| state.hold = true);
    client
}

fn calls(bench: &Bench) -> usize {
    bench.fake.calls().iter().filter(|call| !matches!(call, Call::End(_))).count()
}

#[tokio::test(start_paused = true)]
async fn a_publish_under_an_identifier_in_use_ends_the_connection_2_2_1_3() {
    for version in BOTH {
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let bench = Bench::new();
            let mut client = held(&bench, version).await;
            client.send_all((0..100).map(|_| Packet::Publish(publish(qos, 1)))).await;
            client.expect_end(ReasonCode::ProtocolError).await;
            assert_eq!(calls(&bench), 1, "the second publish reached the session");
            assert!(bench.counts.has(Count::Closed(Closed::ProtocolError)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_identifier_in_use_is_in_use_for_every_kind_of_packet_2_2_1_3() {
    let packets = [
        || Packet::Publish(publish(QoS::AtLeastOnce, 1)),
        || Packet::Publish(publish(QoS::ExactlyOnce, 1)),
        || subscribe(1, &[("t", QoS::AtMostOnce)]),
        || unsubscribe(1, &["t"]),
    ];
    for version in BOTH {
        for (first, second) in packets.iter().flat_map(|first| packets.iter().map(move |second| (first, second))) {
            let bench = Bench::new();
            let mut client = held(&bench, version).await;
            client.send_all([first(), second()]).await;
            client.expect_end(ReasonCode::ProtocolError).await;
            assert_eq!(calls(&bench), 1, "{:?} after {:?}", second(), first());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_repetition_on_the_same_connection_is_an_error_in_mqtt_5_and_ignored_in_3_1_1_4_4_0_1() {
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let again = || Packet::Publish(Publish { dup: true, ..publish(qos, 1) });
        let bench = Bench::new();
        let mut client = held(&bench, V5).await;
        client.send_all([Packet::Publish(publish(qos, 1)), again()]).await;
        client.expect_end(ReasonCode::ProtocolError).await;

        let bench = Bench::new();
        let mut client = held(&bench, V311).await;
        client.send(Packet::Publish(publish(qos, 1))).await;
        client.send_all((0..100).map(|_| again())).await;
        client.ping().await;
        assert_eq!(calls(&bench), 1);
        bench.fake.complete(0);
        let ack = if qos == QoS::AtLeastOnce { Packet::PubAck } else { Packet::PubRec };
        client.expect_ack(ack, 1, ReasonCode::Success).await;
        client.ping().await;
    }
}

#[tokio::test(start_paused = true)]
async fn another_message_under_a_received_identifier_is_not_taken_for_a_repetition() {
    for version in BOTH {
        let bench = Bench::new();
        let mut client = bench.connect(version).await;
        client.send(Packet::Publish(publish(QoS::ExactlyOnce, 1))).await;
        client.expect_ack(Packet::PubRec, 1, ReasonCode::Success).await;
        client.send(Packet::Publish(publish(QoS::ExactlyOnce, 1))).await;
        client.expect_end(ReasonCode::ProtocolError).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pubrel_does_not_free_an_identifier_before_pubrec_4_3_3_4() {
    for version in BOTH {
        let bench = Bench::new();
        let mut client = held(&bench, version).await;
        client.send_all([Packet::Publish(publish(QoS::ExactlyOnce, 1)), Packet::PubRel(Ack::success(id(1)))]).await;
        client.expect_end(ReasonCode::ProtocolError).await;
        assert_eq!(calls(&bench), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn every_answer_frees_its_identifier() {
    for version in BOTH {
        let bench = Bench::new();
        let mut client = bench.connect(version).await;
        for _ in 0..10 {
            client.send(Packet::Publish(publish(QoS::AtLeastOnce, 1))).await;
            client.expect_ack(Packet::PubAck, 1, ReasonCode::Success).await;
            client.send(subscribe(1, &[("t", QoS::AtMostOnce)])).await;
            client.suback().await;
            client.send(unsubscribe(1, &["t"])).await;
            assert!(matches!(client.recv().await, Packet::UnsubAck(_)));
        }
    }
}

/// Returns a PUBLISH of about this many bytes.
fn large(packet_id: u16, bytes: usize) -> Packet {
    Packet::Publish(Publish { payload: vec![0; bytes].into(), ..publish(QoS::AtLeastOnce, packet_id) })
}

#[tokio::test(start_paused = true)]
async fn a_client_with_too_many_bytes_unanswered_is_not_read_until_they_are_answered() {
    for version in BOTH {
        let bench = Bench::with(Limits { receive_maximum: 100, ..limits() });
        let mut client = held(&bench, version).await;
        client.send_all((1..=10).map(|id| large(id, 2000))).await;
        sleep(SECOND).await;
        assert_eq!(calls(&bench), 5, "the bound is 8192 bytes");
        for number in 0..10 {
            bench.fake.complete(number);
            client.expect_ack(Packet::PubAck, u16::try_from(number + 1).unwrap(), ReasonCode::Success).await;
            sleep(SECOND / 10).await;
        }
        client.ping().await;
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_of_unanswered_subscribes_are_bounded_too() {
    let bench = Bench::with(Limits { max_subscriptions: 100, ..limits() });
    let mut client = held(&bench, V5).await;
    let filters: Vec<String> = (0..30).map(|number| format!("{}{number}", "f".repeat(2000))).collect();
    client.send_all((1..).zip(&filters).map(|(id, filter)| subscribe(id, &[(filter, QoS::AtMostOnce)]))).await;
    sleep(SECOND).await;
    assert_eq!(calls(&bench), 4, "the bound is 8192 bytes");
    bench.fake.complete(0);
    client.suback().await;
    sleep(SECOND).await;
    assert_eq!(calls(&bench), 5);
}
