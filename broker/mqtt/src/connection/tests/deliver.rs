//! Deliveries to a client (4.3) and other events of the session.

use covey_codec::packet::{Ack, Connect, Publish, PublishProperties};
use covey_codec::{Packet, QoS, ReasonCode};

use super::client::{connect, id, text};
use super::fake::{Call, Count};
use super::{BOTH, Bench, SECOND, V5};
use crate::connection::Closed;
use crate::session::{Close, Delivery, Ended, Event, Message};

/// Returns a message to `t` with a payload of this length.
pub(super) fn delivery(qos: QoS, packet_id: Option<u16>, length: usize) -> Box<Delivery> {
    let properties = PublishProperties::default();
    let message = Message { topic: text("t"), payload: vec![1; length].into(), qos, retain: false, properties };
    Box::new(Delivery { packet_id: packet_id.map(id), dup: false, message, subscription_identifiers: Vec::new() })
}

#[tokio::test(start_paused = true)]
async fn a_message_arrives_with_the_id_and_flags_that_the_session_gave() {
    for version in BOTH {
        let bench = Bench::new();
        let mut client = bench.connect(version).await;
        let mut told = delivery(QoS::AtLeastOnce, Some(49_151), 3);
        told.dup = true;
        told.message.retain = true;
        told.subscription_identifiers = vec![7, 268_435_455];
        bench.fake.tell(Event::Deliver(told)).await;
        let expected = Publish {
            dup: true,
            qos: QoS::AtLeastOnce,
            retain: true,
            topic: text("t"),
            packet_id: Some(id(49_151)),
            properties: PublishProperties {
                subscription_identifiers: if version == V5 { vec![7, 268_435_455] } else { Vec::new() },
                ..PublishProperties::default()
            },
            payload: vec![1; 3].into(),
        };
        assert_eq!(client.recv().await, Packet::Publish(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn puback_and_pubcomp_tell_the_session_and_pubrec_is_committed_before_pubrel_4_3_3() {
    for version in BOTH {
        let bench = Bench::new();
        let mut client = bench.connect(version).await;
        bench.fake.tell(Event::Deliver(delivery(QoS::AtLeastOnce, Some(1), 0))).await;
        bench.fake.tell(Event::Deliver(delivery(QoS::ExactlyOnce, Some(2), 0))).await;
        client.recv().await;
        client.recv().await;
        client.send(Packet::PubAck(Ack::success(id(1)))).await;
        bench.fake.set(|state| state.hold = true);
        client.send(Packet::PubRec(Ack::success(id(2)))).await;
        client.expect_silence(SECOND).await;
        bench.fake.complete(0);
        client.expect_ack(Packet::PubRel, 2, ReasonCode::Success).await;
        client.send(Packet::PubComp(Ack::success(id(2)))).await;
        client.ping().await;
        let expected = [Call::Acknowledge(id(1)), Call::Received(id(2)), Call::Acknowledge(id(2))];
        assert_eq!(bench.fake.calls(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn pubrels_leave_in_the_order_of_their_pubrecs_4_6_0_4() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    bench.fake.set(|state| state.hold = true);
    client.send_all((1..=3).map(|packet| Packet::PubRec(Ack::success(id(packet))))).await;
    client.ping().await;
    bench.fake.complete(1);
    bench.fake.complete(2);
    client.expect_silence(SECOND).await;
    bench.fake.complete(0);
    for packet in 1..=3 {
        client.expect_ack(Packet::PubRel, packet, ReasonCode::Success).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pubrec_with_an_error_ends_the_message_without_pubrel_4_3_3() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    client.send(Packet::PubRec(Ack::new(id(3), ReasonCode::UnspecifiedError))).await;
    client.ping().await;
    assert_eq!(bench.fake.calls(), [Call::Acknowledge(id(3))]);
}

#[tokio::test(start_paused = true)]
async fn a_pubrec_with_an_unknown_id_gets_pubrel_0x92_3_6_2_1() {
    for version in BOTH {
        let bench = Bench::new();
        bench.fake.set(|state| state.known = false);
        let mut client = bench.connect(version).await;
        client.send(Packet::PubRec(Ack::success(id(3)))).await;
        let code = if version == V5 { ReasonCode::PacketIdentifierNotFound } else { ReasonCode::Success };
        client.expect_ack(Packet::PubRel, 3, code).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_pubrec_was_committed_before_is_released_again_4_4_0_1() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    bench.fake.tell(Event::Release(id(11))).await;
    client.expect_ack(Packet::PubRel, 11, ReasonCode::Success).await;
}

#[tokio::test(start_paused = true)]
async fn a_message_over_the_clients_maximum_packet_size_is_dropped_as_if_taken_3_1_2_25() {
    let bench = Bench::new();
    let mut hello = Connect { ..connect(V5) };
    hello.properties.maximum_packet_size = Some(100);
    let mut client = bench.connect_with(hello).await;
    // A PUBLISH to `t` has 2 bytes of header, 3 of topic, 2 of packet id and 1 of property length.
    for (packet, length) in [(1, 93), (2, 92), (3, 5000)] {
        bench.fake.tell(Event::Deliver(delivery(QoS::ExactlyOnce, Some(packet), length))).await;
    }
    bench.fake.tell(Event::Deliver(delivery(QoS::AtMostOnce, None, 101))).await;
    let Packet::Publish(arrived) = client.recv().await else { panic!("expected publish") };
    assert_eq!(arrived.packet_id, Some(id(2)));
    client.ping().await;
    let dropped = |packet| Call::Acknowledge(id(packet));
    assert_eq!(bench.fake.calls(), [dropped(1), dropped(3)]);
    let too_large = |qos| Count::TooLarge(qos);
    let expected = [QoS::ExactlyOnce, QoS::ExactlyOnce, QoS::AtMostOnce].map(too_large);
    assert_eq!(bench.counts.all()[1..], expected);
}

#[tokio::test(start_paused = true)]
async fn the_node_ends_a_connection_with_the_reason_it_gives() {
    let cases = [
        (Close::TakenOver, ReasonCode::SessionTakenOver, Closed::TakenOver),
        (Close::Fenced, ReasonCode::ServerBusy, Closed::Fenced),
        (Close::Failed, ReasonCode::ImplementationSpecificError, Closed::InternalError),
        (Close::QueueFull, ReasonCode::QuotaExceeded, Closed::QueueFull),
    ];
    for (close, code, counted) in cases {
        for version in BOTH {
            let bench = Bench::new();
            let mut client = bench.connect(version).await;
            bench.fake.tell(Event::Deliver(delivery(QoS::AtMostOnce, None, 0))).await;
            bench.fake.tell(Event::Close(close)).await;
            assert!(matches!(client.recv().await, Packet::Publish(_)));
            client.expect_end(code).await;
            assert_eq!(bench.counts.all(), [Count::Opened, Count::Closed(counted)]);
            assert_eq!(bench.fake.ended(), [Ended { drop_will: false, expiry: None }]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_the_node_lets_go_of_ends_the_connection() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    bench.fake.drop_events();
    client.expect_end(ReasonCode::ServerShuttingDown).await;
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_of_another_qos_is_a_protocol_error_4_3() {
    type Wrong = (QoS, fn(Ack) -> Packet);
    let wrong: [Wrong; 4] = [
        (QoS::ExactlyOnce, Packet::PubAck),
        (QoS::ExactlyOnce, Packet::PubComp),
        (QoS::AtLeastOnce, Packet::PubRec),
        (QoS::AtLeastOnce, Packet::PubComp),
    ];
    for version in BOTH {
        for (qos, packet) in wrong {
            let bench = Bench::new();
            let mut client = bench.connect(version).await;
            bench.fake.tell(Event::Deliver(delivery(qos, Some(1), 0))).await;
            client.recv().await;
            client.send(packet(Ack::success(id(1)))).await;
            client.expect_end(ReasonCode::ProtocolError).await;
            assert!(!bench.fake.calls().contains(&Call::Acknowledge(id(1))), "{qos:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pubcomp_for_a_delivery_of_an_earlier_connection_is_taken_4_4_0_1() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    bench.fake.tell(Event::Release(id(11))).await;
    client.expect_ack(Packet::PubRel, 11, ReasonCode::Success).await;
    client.send(Packet::PubComp(Ack::success(id(11)))).await;
    client.ping().await;
    assert_eq!(bench.fake.calls(), [Call::Acknowledge(id(11))]);
}
