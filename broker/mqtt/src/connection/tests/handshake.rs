//! CONNECT and CONNACK (3.1, 3.2).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use covey_codec::packet::{ConnAckProperties, Connect, Publish, PublishProperties, Will, WillProperties};
use covey_codec::{Packet, ProtocolVersion, QoS, ReasonCode, encode};
use tokio::time::sleep;

use super::client::{connect, publish, text};
use super::fake::{Call, Count};
use super::{BOTH, Bench, SECOND, V5, V311, limits};
use crate::connection::{Closed, Limits, Rejected};

/// Returns the reason code that a client of this version decodes from a CONNACK: the nearest one that the version has.
fn nearest(version: ProtocolVersion, code: ReasonCode) -> ReasonCode {
    if version == V5 {
        return code;
    }
    ReasonCode::from_connect_return_code(code.connect_return_code().unwrap()).unwrap()
}

async fn expect_refusal(bench: &Bench, connect: Connect, code: ReasonCode, counted: Rejected) {
    let version = connect.protocol_version;
    let (mut client, answer) = bench.try_connect(connect).await;
    assert_eq!(answer.reason, nearest(version, code));
    assert!(!answer.session_present, "[MQTT-3.2.2-6]");
    client.expect_close().await;
    assert_eq!(bench.counts.all().last(), Some(&Count::Rejected(counted)));
    assert!(!bench.counts.has(Count::Opened));
}

fn with_credentials(version: ProtocolVersion, name: &str, password: &'static [u8]) -> Connect {
    Connect { username: Some(text(name)), password: Some(Bytes::from_static(password)), ..connect(version) }
}

#[tokio::test(start_paused = true)]
async fn a_silent_socket_is_closed_after_the_connect_timeout() {
    let bench = Bench::new();
    let mut client = bench.socket(V5);
    client.send_bytes(&[0x10]).await;
    assert_eq!(client.expect_close().await, 10 * SECOND);
    assert_eq!(bench.counts.all(), [Count::Rejected(Rejected::Timeout)]);
}

#[tokio::test(start_paused = true)]
async fn a_first_packet_other_than_connect_closes_without_connack_3_1_0_1() {
    let bench = Bench::new();
    let mut client = bench.socket(V5);
    client.send_bytes(&[0xc0, 0x00]).await;
    client.expect_close().await;
    assert_eq!(bench.counts.all(), [Count::Rejected(Rejected::BadProtocol)]);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_protocol_level_is_told_return_code_1_3_1_2_2() {
    let bench = Bench::new();
    let mut client = bench.socket(V311);
    client.send_bytes(b"\x10\x0d\x00\x04MQTT\x03\x02\x00\x00\x00\x01c").await;
    assert_eq!(client.connack().await.reason, ReasonCode::UnsupportedProtocolVersion);
    client.expect_close().await;
    assert_eq!(bench.counts.all(), [Count::Rejected(Rejected::BadProtocol)]);
}

#[tokio::test(start_paused = true)]
async fn a_malformed_connect_is_told_so_in_mqtt_5_and_closed_in_3_1_1_3_1_4_1() {
    let bench = Bench::new();
    let mut five = bench.socket(V5);
    five.send_bytes(b"\x10\x0e\x00\x04MQTT\x05\x03\x00\x00\x00\x00\x01c").await;
    assert_eq!(five.connack().await.reason, ReasonCode::MalformedPacket);
    five.expect_close().await;
    let mut three = bench.socket(V311);
    three.send_bytes(b"\x10\x0d\x00\x04MQTT\x04\x03\x00\x00\x00\x01c").await;
    three.expect_close().await;
    assert_eq!(bench.counts.all(), [Count::Rejected(Rejected::BadProtocol); 2]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_serve_answers_0x88_before_it_looks_at_anything() {
    for version in BOTH {
        let bench = Bench::new();
        bench.fake.set_serving(false);
        let connect = with_credentials(version, "nobody", b"");
        expect_refusal(&bench, connect, ReasonCode::ServerUnavailable, Rejected::Unavailable).await;
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_users_and_wrong_passwords_get_0x86_and_forbidden_client_ids_0x87() {
    for version in BOTH {
        let bench = Bench::new();
        let bad = ReasonCode::BadUserNameOrPassword;
        expect_refusal(&bench, with_credentials(version, "nobody", b"secret"), bad, Rejected::Auth).await;
        expect_refusal(&bench, with_credentials(version, "ann", b"wrong"), bad, Rejected::Auth).await;
        let other = Connect { client_id: text("not-yours"), ..with_credentials(version, "ann", b"secret") };
        expect_refusal(&bench, other, ReasonCode::NotAuthorized, Rejected::Auth).await;
        bench.connect_with(with_credentials(version, "ann", b"secret")).await;
        assert_eq!(&*bench.fake.request().principal, "ann");
        assert_eq!(bench.fake.set(|state| state.requests.len()), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn extended_authentication_gets_0x8c() {
    let bench = Bench::new();
    let mut connect = connect(V5);
    connect.properties.authentication_method = Some(text("SCRAM"));
    expect_refusal(&bench, connect, ReasonCode::BadAuthenticationMethod, Rejected::Auth).await;
}

#[tokio::test(start_paused = true)]
async fn one_client_too_many_gets_0x97_and_a_closed_one_makes_room() {
    for version in BOTH {
        let bench = Bench::with(Limits { max_connections: 1, ..limits() });
        let first = bench.connect(version).await;
        let (_, answer) = bench.try_connect(connect(version)).await;
        assert_eq!(answer.reason, nearest(version, ReasonCode::QuotaExceeded));
        assert!(bench.counts.has(Count::Rejected(Rejected::ConnectionLimit)));
        drop(first);
        bench.all_over().await;
        bench.connect(version).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_without_id_gets_one_assigned_3_1_3_6() {
    let bench = Bench::new();
    let nameless = |version| Connect { client_id: text(""), ..connect(version) };
    let (_five, answer) = bench.try_connect(nameless(V5)).await;
    let assigned = answer.properties.assigned_client_identifier.unwrap();
    assert_eq!(bench.fake.request().client_id, assigned);
    assert!(bench.fake.request().assigned && assigned.len() > 30);
    bench.connect_with(nameless(V311)).await;
    assert!(bench.fake.request().assigned);
    assert_ne!(bench.fake.request().client_id, assigned);
}

#[tokio::test(start_paused = true)]
async fn no_id_without_clean_session_gets_return_code_2_in_3_1_1_3_1_3_8() {
    let bench = Bench::new();
    let connect = Connect { client_id: text(""), clean_start: false, ..connect(V311) };
    expect_refusal(&bench, connect, ReasonCode::ClientIdentifierNotValid, Rejected::ClientId).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_id_beyond_1024_bytes_gets_0x85() {
    let bench = Bench::new();
    let connect = |length: usize| Connect { client_id: text(&"x".repeat(length)), ..connect(V5) };
    expect_refusal(&bench, connect(1025), ReasonCode::ClientIdentifierNotValid, Rejected::ClientId).await;
    bench.connect_with(connect(1024)).await;
}

#[tokio::test(start_paused = true)]
async fn session_expiry_is_bounded_completed_and_stated() {
    let five = |clean_start, client_id: &str, expiry| {
        let mut connect = Connect { clean_start, client_id: text(client_id), ..connect(V5) };
        connect.properties.session_expiry_interval = expiry;
        connect
    };
    let three = |clean_start| Connect { clean_start, ..connect(V311) };
    // Requested expiry, effective expiry, expiry in CONNACK.
    let cases = [
        (five(false, "c", None), 7200, Some(7200)),
        (five(true, "c", None), 0, Some(0)),
        (five(false, "", None), 0, Some(0)),
        (five(false, "c", Some(0)), 0, None),
        (five(true, "c", Some(60)), 60, None),
        (five(false, "c", Some(10_001)), 10_000, Some(10_000)),
        (five(false, "c", Some(u32::MAX)), 10_000, Some(10_000)),
        (three(false), 10_000, None),
        (three(true), 0, None),
    ];
    for (connect, holds, stated) in cases {
        let bench = Bench::new();
        let (_client, answer) = bench.try_connect(connect.clone()).await;
        assert_eq!(bench.fake.request().expiry, Duration::from_secs(holds), "{connect:?}");
        assert_eq!(answer.properties.session_expiry_interval, stated, "{connect:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn connack_states_what_the_server_takes_3_2_2_3() {
    let bench = Bench::new();
    let mut connect = connect(V5);
    connect.properties.session_expiry_interval = Some(60);
    connect.properties.receive_maximum = Some(7);
    let (_client, answer) = bench.try_connect(connect).await;
    let expected = ConnAckProperties {
        receive_maximum: Some(4),
        maximum_packet_size: Some(4096),
        topic_alias_maximum: Some(2),
        wildcard_subscription_available: Some(true),
        subscription_identifiers_available: Some(true),
        shared_subscription_available: Some(false),
        ..ConnAckProperties::default()
    };
    assert_eq!(answer.properties, expected);
    assert_eq!(bench.fake.request().receive_maximum, 7);
}

#[tokio::test(start_paused = true)]
async fn a_keep_alive_over_the_bound_is_lowered_and_enforced_3_2_2_21() {
    for (asked, stated) in [(0, Some(20)), (21, Some(20)), (20, None)] {
        let bench = Bench::with(Limits { keep_alive_max: Some(20), ..limits() });
        let (mut client, answer) = bench.try_connect(Connect { keep_alive: asked, ..connect(V5) }).await;
        assert_eq!(answer.properties.server_keep_alive, stated);
        assert_eq!(client.expect_end(ReasonCode::KeepAliveTimeout).await, 30 * SECOND);
    }
}

fn with_will(version: ProtocolVersion, topic: &str) -> Connect {
    let properties =
        WillProperties { will_delay_interval: Some(9), content_type: Some(text("a/b")), ..Default::default() };
    let properties = if version == V5 { properties } else { WillProperties::default() };
    let payload = Bytes::from_static(b"gone");
    let will = Will { topic: text(topic), payload, qos: QoS::AtLeastOnce, retain: true, properties };
    Connect { will: Some(will), ..connect(version) }
}

#[tokio::test(start_paused = true)]
async fn a_will_that_the_rules_deny_gets_0x87() {
    for version in BOTH {
        let bench = Bench::new();
        expect_refusal(&bench, with_will(version, "denied"), ReasonCode::NotAuthorized, Rejected::Auth).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_will_reaches_the_session_as_it_was_given() {
    let bench = Bench::new();
    bench.connect_with(with_will(V5, "t")).await;
    let request = bench.fake.request();
    let will = request.will.unwrap();
    assert_eq!((&*will.topic, will.qos, will.retain), ("t", QoS::AtLeastOnce, true));
    assert_eq!(will.properties.content_type, Some(text("a/b")));
    assert_eq!(request.will_delay, 9 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_node_is_passed_on() {
    for version in BOTH {
        let bench = Bench::new();
        for (code, counted) in [
            (ReasonCode::ClientIdentifierNotValid, Rejected::ClientId),
            (ReasonCode::ServerUnavailable, Rejected::Unavailable),
        ] {
            bench.fake.set(|state| state.refuse = Some(code));
            expect_refusal(&bench, connect(version), code, counted).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn session_present_is_the_nodes_word_and_never_set_after_clean_start_3_2_2_2() {
    for version in BOTH {
        let bench = Bench::new();
        bench.fake.set(|state| state.present = true);
        let (_a, kept) = bench.try_connect(Connect { clean_start: false, ..connect(version) }).await;
        let (_b, clean) = bench.try_connect(connect(version)).await;
        assert_eq!((kept.session_present, clean.session_present), (true, false));
        assert!(bench.fake.request().clean_start);
    }
}

#[tokio::test(start_paused = true)]
async fn packets_behind_connect_are_handled_only_if_it_is_accepted_3_1_4_5() {
    let bench = Bench::new();
    let behind = || Packet::Publish(publish(QoS::AtLeastOnce, 1));
    let mut refused = bench.socket(V5);
    refused.send_all([Packet::Connect(Box::new(with_credentials(V5, "nobody", b""))), behind()]).await;
    assert_eq!(refused.connack().await.reason, ReasonCode::BadUserNameOrPassword);
    refused.expect_close().await;
    assert_eq!(bench.fake.calls(), []);
    let mut accepted = bench.socket(V5);
    accepted.send_all([Packet::Connect(Box::new(connect(V5))), behind()]).await;
    assert_eq!(accepted.connack().await.reason, ReasonCode::Success);
    accepted.expect_ack(Packet::PubAck, 1, ReasonCode::Success).await;
    assert!(matches!(bench.fake.calls()[..], [Call::Publish(..)]));
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_closes_before_connect_is_counted_once() {
    let bench = Bench::new();
    drop(bench.socket(V5));
    bench.all_over().await;
    assert_eq!(bench.counts.all(), [Count::Rejected(Rejected::Lost)]);
}

#[tokio::test(start_paused = true)]
async fn an_accepted_connection_is_counted_once_each_way() {
    let bench = Bench::new();
    drop(bench.connect(V5).await);
    bench.all_over().await;
    assert_eq!(bench.counts.all(), [Count::Opened, Count::Closed(Closed::Lost)]);
}

/// Returns a CONNECT of about this many bytes.
fn large(version: ProtocolVersion, bytes: usize) -> Vec<u8> {
    let password = Some(Bytes::from(vec![b'x'; bytes]));
    let packet = Connect { username: Some(text("ann")), password, ..connect(version) };
    let mut out = BytesMut::new();
    encode(&Packet::Connect(Box::new(packet)), version, &mut out).unwrap();
    out.to_vec()
}

#[tokio::test(start_paused = true)]
async fn a_connect_over_its_limit_is_refused_before_it_has_come() {
    for version in BOTH {
        let bench = Bench::new();
        let mut client = bench.socket(version);
        // Fixed header, protocol name and level; the packet limit is 4096, that of CONNECT 3000.
        client.send_bytes(&large(version, 3500)[..10]).await;
        if version == V5 {
            assert_eq!(client.connack().await.reason, ReasonCode::PacketTooLarge);
        }
        client.expect_close().await;
        assert_eq!(bench.counts.all(), [Count::Rejected(Rejected::BadProtocol)]);
    }
}

#[tokio::test(start_paused = true)]
async fn large_connects_share_one_budget_and_small_ones_do_not_need_it() {
    let bench = Bench::new();
    let hello = large(V5, 2500);
    let (mut first, mut second, mut third) = (bench.socket(V5), bench.socket(V5), bench.socket(V5));
    for client in [&mut first, &mut second] {
        client.send_bytes(&hello[..2000]).await;
    }
    sleep(SECOND).await;
    third.send_bytes(&hello).await;
    third.expect_silence(SECOND).await;
    bench.connect(V5).await;
    drop(first);
    assert_eq!(third.connack().await.reason, ReasonCode::BadUserNameOrPassword);
    second.send_bytes(&hello[2000..]).await;
    assert_eq!(second.connack().await.reason, ReasonCode::BadUserNameOrPassword);
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_gets_no_room_in_time_is_counted_as_overload() {
    let bench = Bench::with(Limits { connect_bytes_max: 2000, ..limits() });
    let mut client = bench.socket(V5);
    client.send_bytes(&large(V5, 2500)).await;
    assert_eq!(client.expect_close().await, 10 * SECOND);
    assert_eq!(bench.counts.all(), [Count::Rejected(Rejected::Overload)]);
}

#[tokio::test(start_paused = true)]
async fn user_properties_that_are_forwarded_are_bounded_and_others_are_skipped() {
    let properties = |count: usize| vec![(text(""), text("")); count];
    let bench = Bench::new();
    let mut hello = connect(V5);
    hello.properties.user_properties = properties(300);
    let mut client = bench.connect_with(hello).await;
    let with = |count| {
        let properties = PublishProperties { user_properties: properties(count), ..PublishProperties::default() };
        Packet::Publish(Publish { properties, ..publish(QoS::AtMostOnce, 0) })
    };
    client.send(with(256)).await;
    client.ping().await;
    client.send(with(257)).await;
    client.expect_end(ReasonCode::QuotaExceeded).await;

    let mut hello = with_will(V5, "t");
    hello.will.as_mut().unwrap().properties.user_properties = properties(257);
    let (mut client, answer) = bench.try_connect(hello).await;
    assert_eq!(answer.reason, ReasonCode::QuotaExceeded);
    client.expect_close().await;
}
