//! SUBSCRIBE and UNSUBSCRIBE (3.8 to 3.11), and subscriptions whose rules change.

use covey_codec::packet::{
    AckProperties, Connect, RetainHandling, Subscribe, SubscribeProperties, Subscription as Wanted,
    SubscriptionOptions, UnsubAck,
};
use covey_codec::{Packet, QoS, ReasonCode};

use super::client::{connect, id, subscribe, text, unsubscribe};
use super::fake::{Call, Count};
use super::{BOTH, Bench, SECOND, V5, V311, limits};
use crate::connection::{Closed, Limits};
use crate::session::Subscription;

const QOS0: QoS = QoS::AtMostOnce;
const QOS1: QoS = QoS::AtLeastOnce;
const QOS2: QoS = QoS::ExactlyOnce;

fn subscribed(bench: &Bench) -> Vec<String> {
    let filters = |call| match call {
        Call::Subscribe(all) => all.into_iter().map(|one| one.filter.to_string()).collect(),
        _ => Vec::new(),
    };
    bench.fake.calls().into_iter().flat_map(filters).collect()
}

#[tokio::test(start_paused = true)]
async fn every_filter_gets_its_own_answer_in_order_3_8_4_6() {
    for version in BOTH {
        let bench = Bench::new();
        let mut client = bench.connect(version).await;
        client.send(subscribe(1, &[("a", QOS1), ("denied", QOS2), ("$share/g/a", QOS1), ("b/#", QOS2)])).await;
        let answer = client.suback().await;
        let (denied, shared) = (ReasonCode::NotAuthorized, ReasonCode::SharedSubscriptionsNotSupported);
        let failed = ReasonCode::UnspecifiedError;
        let (denied, shared) = if version == V5 { (denied, shared) } else { (failed, failed) };
        assert_eq!(answer.packet_id, id(1));
        assert_eq!(answer.reasons, [ReasonCode::GrantedQos1, denied, shared, ReasonCode::GrantedQos2]);
        assert_eq!(subscribed(&bench), ["a", "b/#"]);
        assert!(bench.counts.has(Count::SubscribeDenied));
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscribe_without_an_admitted_filter_does_not_reach_the_session() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    client.send(subscribe(1, &[("denied", QOS0)])).await;
    assert_eq!(client.suback().await.reasons, [ReasonCode::NotAuthorized]);
    assert_eq!(bench.fake.calls(), []);
}

#[tokio::test(start_paused = true)]
async fn the_options_of_a_subscription_reach_the_session_3_8_3_1() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    let options = SubscriptionOptions {
        qos: QOS1,
        no_local: true,
        retain_as_published: true,
        retain_handling: RetainHandling::DoNotSend,
    };
    let properties = SubscribeProperties { subscription_identifier: Some(42), user_properties: Vec::new() };
    let subscriptions = vec![Wanted { filter: text("a/+"), options }];
    client.send(Packet::Subscribe(Subscribe { packet_id: id(1), properties, subscriptions })).await;
    client.suback().await;
    let expected = Subscription {
        filter: text("a/+"),
        qos: QOS1,
        no_local: true,
        retain_as_published: true,
        retain_handling: 2,
        identifier: Some(42),
    };
    assert_eq!(bench.fake.calls(), [Call::Subscribe(vec![expected])]);
}

#[tokio::test(start_paused = true)]
async fn one_filter_too_many_gets_0x97_and_a_known_one_may_be_repeated() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    client.send(subscribe(1, &[("a", QOS0), ("b", QOS0), ("c", QOS0), ("d", QOS0), ("a", QOS1)])).await;
    let granted = ReasonCode::GRANTED_QOS_0;
    let reasons = [granted, granted, granted, ReasonCode::QuotaExceeded, ReasonCode::GrantedQos1];
    assert_eq!(client.suback().await.reasons, reasons);
    client.send(unsubscribe(2, &["b"])).await;
    client.recv().await;
    client.send(subscribe(3, &[("d", QOS0)])).await;
    assert_eq!(client.suback().await.reasons, [granted]);
}

#[tokio::test(start_paused = true)]
async fn subacks_leave_in_the_order_of_their_requests_and_stop_nothing_else() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    bench.fake.set(|state| state.hold = true);
    client.send_all([subscribe(1, &[("a", QOS0)]), unsubscribe(2, &["a"]), subscribe(3, &[("b", QOS0)])]).await;
    client.ping().await;
    bench.fake.complete(2);
    bench.fake.complete(1);
    client.expect_silence(SECOND).await;
    bench.fake.complete(0);
    assert_eq!(client.suback().await.packet_id, id(1));
    assert!(matches!(client.recv().await, Packet::UnsubAck(_)));
    assert_eq!(client.suback().await.packet_id, id(3));
}

#[tokio::test(start_paused = true)]
async fn an_unsubscribe_is_answered_per_filter_3_11_3_1() {
    for version in BOTH {
        let bench = Bench::new();
        let mut client = bench.connect(version).await;
        client.send(unsubscribe(4, &["a", "b"])).await;
        let reasons = if version == V5 { vec![ReasonCode::Success; 2] } else { Vec::new() };
        let expected = UnsubAck { packet_id: id(4), properties: AckProperties::default(), reasons };
        assert_eq!(client.recv().await, Packet::UnsubAck(expected));
        assert_eq!(bench.fake.calls(), [Call::Unsubscribe(vec![text("a"), text("b")])]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_with_too_many_open_requests_is_read_again_when_they_are_answered() {
    let bench = Bench::with(Limits { held_bytes_max: 1 << 20, ..limits() });
    let mut client = bench.connect(V5).await;
    bench.fake.set(|state| state.hold = true);
    client.send_all((1..=300).map(|packet| subscribe(packet, &[("a", QOS0)]))).await;
    client.expect_silence(SECOND).await;
    assert_eq!(subscribed(&bench).len(), 256);
    for packet in 1..=300 {
        bench.fake.complete(packet - 1);
        assert_eq!(usize::from(client.suback().await.packet_id.get()), packet);
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_rule_ends_the_subscriptions_that_it_forbids() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    client.send(subscribe(1, &[("a", QOS1), ("b", QOS1)])).await;
    client.suback().await;
    bench.rules.deny("a");
    client.expect_silence(SECOND).await;
    assert_eq!(bench.fake.calls().last(), Some(&Call::Unsubscribe(vec![text("a")])));
    assert!(bench.counts.has(Count::Revoked));
    client.send(subscribe(2, &[("a", QOS1)])).await;
    assert_eq!(client.suback().await.reasons, [ReasonCode::NotAuthorized]);
    bench.rules.deny("unused");
    client.ping().await;
    assert_eq!(bench.fake.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_subscriptions_of_a_resumed_session_are_held_to_the_rules_of_today() {
    let bench = Bench::new();
    bench.fake.set(|state| {
        state.present = true;
        state.filters = vec![text("a"), text("denied")];
    });
    let mut client = bench.connect_with(Connect { clean_start: false, ..connect(V5) }).await;
    client.ping().await;
    assert_eq!(bench.fake.calls(), [Call::Unsubscribe(vec![text("denied")])]);
    bench.rules.deny("a");
    client.expect_silence(SECOND).await;
    assert_eq!(bench.fake.calls().last(), Some(&Call::Unsubscribe(vec![text("a")])));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_user_is_disconnected_and_refused() {
    for version in [V5, V311] {
        let bench = Bench::new();
        let mut hello = connect(version);
        hello.username = Some(text("ann"));
        hello.password = Some("secret".into());
        let mut client = bench.connect_with(hello.clone()).await;
        let mut other = bench.connect(version).await;
        bench.rules.remove_user("ann");
        assert!(client.expect_end(ReasonCode::NotAuthorized).await < SECOND);
        assert!(bench.counts.has(Count::Closed(Closed::Revoked)));
        let (_, answer) = bench.try_connect(hello).await;
        assert_eq!(answer.reason, ReasonCode::BadUserNameOrPassword);
        other.ping().await;
    }
}
