//! PUBLISH from a client and its acknowledgements (3.3 to 3.7, 4.3, 4.6, 4.9).

use covey_codec::packet::{Ack, Publish, PublishProperties};
use covey_codec::{Packet, PacketId, ProtocolVersion, QoS, ReasonCode};

use super::client::{Client, connect, id, publish, text};
use super::fake::{Call, Count};
use super::{BOTH, Bench, SECOND, V5, V311};
use crate::connection::Closed;
use crate::session::Published;

fn published(calls: &[Call]) -> Vec<(String, QoS, Option<u16>)> {
    let one = |call: &Call| match call {
        Call::Publish(message, packet_id) => {
            Some((message.topic.to_string(), message.qos, packet_id.map(PacketId::get)))
        }
        _ => None,
    };
    calls.iter().filter_map(one).collect()
}

#[tokio::test(start_paused = true)]
async fn a_publish_of_every_qos_reaches_the_session_and_is_acknowledged_4_3() {
    for version in BOTH {
        let bench = Bench::new();
        let mut client = bench.connect(version).await;
        client.send(Packet::Publish(publish(QoS::AtMostOnce, 0))).await;
        client.send(Packet::Publish(publish(QoS::AtLeastOnce, 7))).await;
        client.expect_ack(Packet::PubAck, 7, ReasonCode::Success).await;
        client.send(Packet::Publish(publish(QoS::ExactlyOnce, 8))).await;
        client.expect_ack(Packet::PubRec, 8, ReasonCode::Success).await;
        client.send(Packet::PubRel(Ack::success(id(8)))).await;
        client.expect_ack(Packet::PubComp, 8, ReasonCode::Success).await;
        let topic = || "t".to_owned();
        let expected =
            [(topic(), QoS::AtMostOnce, None), (topic(), QoS::AtLeastOnce, None), (topic(), QoS::ExactlyOnce, Some(8))];
        assert_eq!(published(&bench.fake.calls()), expected);
        assert_eq!(bench.fake.calls().last(), Some(&Call::Release(id(8))));
    }
}

#[tokio::test(start_paused = true)]
async fn retain_payload_and_properties_reach_the_session_unchanged_3_3_2() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    let properties = PublishProperties {
        message_expiry_interval: Some(60),
        topic_alias: Some(1),
        response_topic: Some(text("answer")),
        user_properties: vec![(text("k"), text("v")), (text("k"), text("w"))],
        ..PublishProperties::default()
    };
    let sent = Publish { retain: true, properties: properties.clone(), ..publish(QoS::AtMostOnce, 0) };
    client.send(Packet::Publish(sent.clone())).await;
    client.ping().await;
    let [Call::Publish(message, None)] = &bench.fake.calls()[..] else { panic!("one publish") };
    assert_eq!((message.retain, &message.payload), (true, &sent.payload));
    assert_eq!(message.properties, PublishProperties { topic_alias: None, ..properties });
}

#[tokio::test(start_paused = true)]
async fn the_result_of_a_publish_is_its_reason_code_3_4_2_1() {
    for (result, code) in [
        (Published::NoMatchingSubscribers, ReasonCode::NoMatchingSubscribers),
        (Published::QuotaExceeded, ReasonCode::QuotaExceeded),
    ] {
        let bench = Bench::new();
        bench.fake.set(|state| state.published = result);
        let mut client = bench.connect(V5).await;
        client.send(Packet::Publish(publish(QoS::AtLeastOnce, 1))).await;
        client.expect_ack(Packet::PubAck, 1, code).await;
        client.send(Packet::Publish(publish(QoS::ExactlyOnce, 2))).await;
        client.expect_ack(Packet::PubRec, 2, code).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_can_only_be_refused_closes_3_1_1_unacknowledged() {
    let bench = Bench::new();
    bench.fake.set(|state| state.published = Published::QuotaExceeded);
    let mut client = bench.connect(V311).await;
    client.send(Packet::Publish(publish(QoS::AtLeastOnce, 1))).await;
    client.expect_close().await;
    assert!(bench.counts.has(Count::Closed(Closed::PublishStalled)));
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_leave_in_the_order_of_their_publish_4_6_0_2_and_3() {
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let packet = if qos == QoS::AtLeastOnce { Packet::PubAck } else { Packet::PubRec };
        let bench = Bench::new();
        let mut client = bench.connect(V5).await;
        bench.fake.set(|state| state.hold = true);
        client.send_all((1..=3).map(|id| Packet::Publish(publish(qos, id)))).await;
        client.ping().await;
        bench.fake.complete(2);
        bench.fake.complete(1);
        client.expect_silence(SECOND).await;
        bench.fake.complete(0);
        for id in 1..=3 {
            client.expect_ack(packet, id, ReasonCode::Success).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_denied_publish_is_answered_in_its_turn_4_6_0_2() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    bench.fake.set(|state| state.hold = true);
    let denied = Publish { topic: text("denied"), ..publish(QoS::AtLeastOnce, 2) };
    client.send_all([Packet::Publish(publish(QoS::AtLeastOnce, 1)), Packet::Publish(denied)]).await;
    client.expect_silence(SECOND).await;
    bench.fake.complete(0);
    client.expect_ack(Packet::PubAck, 1, ReasonCode::Success).await;
    client.expect_ack(Packet::PubAck, 2, ReasonCode::NotAuthorized).await;
}

#[tokio::test(start_paused = true)]
async fn publishes_are_begun_at_once_and_the_client_is_read_while_they_are_held() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    bench.fake.set(|state| state.hold = true);
    client.send_all((1..=4).map(|id| Packet::Publish(publish(QoS::AtLeastOnce, id)))).await;
    client.send(Packet::PubAck(Ack::success(id(900)))).await;
    client.ping().await;
    assert_eq!(published(&bench.fake.calls()).len(), 4);
    assert!(bench.fake.calls().contains(&Call::Acknowledge(id(900))));
}

#[tokio::test(start_paused = true)]
async fn more_publishes_than_receive_maximum_get_0x93_3_3_4_9() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    bench.fake.set(|state| state.hold = true);
    client.send_all((1..=4).map(|id| Packet::Publish(publish(QoS::AtLeastOnce, id)))).await;
    client.ping().await;
    client.send(Packet::Publish(publish(QoS::AtLeastOnce, 5))).await;
    client.expect_end(ReasonCode::ReceiveMaximumExceeded).await;
    assert!(bench.counts.has(Count::Closed(Closed::ProtocolError)));
}

#[tokio::test(start_paused = true)]
async fn the_receive_quota_returns_with_puback_pubcomp_and_a_failed_pubrec_4_9() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    for round in 1..=10 {
        client.send(Packet::Publish(publish(QoS::AtLeastOnce, round))).await;
        client.expect_ack(Packet::PubAck, round, ReasonCode::Success).await;
        let denied = Publish { topic: text("denied"), ..publish(QoS::ExactlyOnce, 100 + round) };
        client.send(Packet::Publish(denied)).await;
        client.expect_ack(Packet::PubRec, 100 + round, ReasonCode::NotAuthorized).await;
        client.send(Packet::Publish(publish(QoS::ExactlyOnce, 200 + round))).await;
        client.expect_ack(Packet::PubRec, 200 + round, ReasonCode::Success).await;
        client.send(Packet::PubRel(Ack::success(id(200 + round)))).await;
        client.expect_ack(Packet::PubComp, 200 + round, ReasonCode::Success).await;
    }
    for packet in 1..=4 {
        client.send(Packet::Publish(publish(QoS::ExactlyOnce, packet))).await;
        client.expect_ack(Packet::PubRec, packet, ReasonCode::Success).await;
    }
    client.send(Packet::Publish(publish(QoS::ExactlyOnce, 5))).await;
    client.expect_end(ReasonCode::ReceiveMaximumExceeded).await;
}

#[tokio::test(start_paused = true)]
async fn a_packet_over_the_maximum_size_gets_0x95_3_2_2_15() {
    for version in BOTH {
        let bench = Bench::new();
        let mut client = bench.connect(version).await;
        let large = Publish { payload: vec![0; 4096].into(), ..publish(QoS::AtMostOnce, 0) };
        client.send(Packet::Publish(large)).await;
        client.expect_end(ReasonCode::PacketTooLarge).await;
        assert!(bench.counts.has(Count::Closed(Closed::PacketTooLarge)));
    }
}

fn with_alias(topic: &str, alias: u16) -> Packet {
    let properties = PublishProperties { topic_alias: Some(alias), ..PublishProperties::default() };
    Packet::Publish(Publish { topic: text(topic), properties, ..publish(QoS::AtMostOnce, 0) })
}

#[tokio::test(start_paused = true)]
async fn a_topic_alias_stands_for_the_topic_it_was_last_set_to_3_3_2_12() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    for (topic, alias) in [("one", 1), ("two", 2), ("", 1), ("three", 1), ("", 1), ("", 2)] {
        client.send(with_alias(topic, alias)).await;
    }
    client.ping().await;
    let topics: Vec<_> = published(&bench.fake.calls()).into_iter().map(|(topic, ..)| topic).collect();
    assert_eq!(topics, ["one", "two", "one", "three", "three", "two"]);
}

#[tokio::test(start_paused = true)]
async fn an_alias_over_the_maximum_gets_0x94_and_an_unset_one_0x82_3_3_2_9() {
    for (alias, code) in [(3, ReasonCode::TopicAliasInvalid), (2, ReasonCode::ProtocolError)] {
        let bench = Bench::new();
        let mut client = bench.connect(V5).await;
        client.send(with_alias(if alias == 3 { "t" } else { "" }, alias)).await;
        client.expect_end(code).await;
        assert!(bench.counts.has(Count::Closed(Closed::ProtocolError)));
    }
}

async fn send_denied(bench: &Bench, version: ProtocolVersion, qos: QoS, packet_id: u16) -> Client {
    let mut client = bench.connect_with(connect(version)).await;
    client.send(Packet::Publish(Publish { topic: text("denied"), ..publish(qos, packet_id) })).await;
    client
}

#[tokio::test(start_paused = true)]
async fn a_denied_publish_gets_0x87_where_an_acknowledgement_can_say_it() {
    let bench = Bench::new();
    let mut client = send_denied(&bench, V5, QoS::AtLeastOnce, 1).await;
    client.expect_ack(Packet::PubAck, 1, ReasonCode::NotAuthorized).await;
    client.ping().await;
    let mut client = send_denied(&bench, V5, QoS::ExactlyOnce, 1).await;
    client.expect_ack(Packet::PubRec, 1, ReasonCode::NotAuthorized).await;
    client.ping().await;
    assert!(bench.counts.has(Count::PublishDenied));
    assert_eq!(published(&bench.fake.calls()), []);
}

#[tokio::test(start_paused = true)]
async fn a_denied_publish_closes_where_nothing_else_can_say_it() {
    let cases = [(V5, QoS::AtMostOnce), (V311, QoS::AtMostOnce), (V311, QoS::AtLeastOnce), (V311, QoS::ExactlyOnce)];
    for (version, qos) in cases {
        let bench = Bench::new();
        let mut client = send_denied(&bench, version, qos, u16::from(qos != QoS::AtMostOnce)).await;
        client.expect_end(ReasonCode::NotAuthorized).await;
        assert_eq!(bench.counts.all(), [Count::Opened, Count::PublishDenied, Count::Closed(Closed::Auth)]);
        assert_eq!(published(&bench.fake.calls()), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_resent_qos_2_publish_gets_pubrec_again_and_reaches_the_session_once_4_3_3_10() {
    for version in BOTH {
        let bench = Bench::new();
        let mut client = bench.connect(version).await;
        for dup in [false, true, true, true, true, true] {
            client.send(Packet::Publish(Publish { dup, ..publish(QoS::ExactlyOnce, 9) })).await;
            client.expect_ack(Packet::PubRec, 9, ReasonCode::Success).await;
        }
        assert_eq!(published(&bench.fake.calls()), [("t".to_owned(), QoS::ExactlyOnce, Some(9))]);
        client.send(Packet::PubRel(Ack::success(id(9)))).await;
        client.expect_ack(Packet::PubComp, 9, ReasonCode::Success).await;
        client.send(Packet::Publish(publish(QoS::ExactlyOnce, 9))).await;
        client.expect_ack(Packet::PubRec, 9, ReasonCode::Success).await;
        assert_eq!(published(&bench.fake.calls()).len(), 2, "the identifier is free");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pubrel_with_an_unknown_id_gets_0x92_3_7_2_1() {
    for version in BOTH {
        let bench = Bench::new();
        bench.fake.set(|state| state.known = false);
        let mut client = bench.connect(version).await;
        client.send(Packet::PubRel(Ack::success(id(5)))).await;
        // MQTT 3.1.1 has one PUBCOMP.
        let code = if version == V5 { ReasonCode::PacketIdentifierNotFound } else { ReasonCode::Success };
        client.expect_ack(Packet::PubComp, 5, code).await;
    }
}
