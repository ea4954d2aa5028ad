//! How connections end: keep alive (3.1.2.10), DISCONNECT (3.14), errors (4.13) and drain.

use std::time::Duration;

use covey_codec::packet::{Auth, AuthProperties, Connect, Disconnect, DisconnectProperties, Publish};
use covey_codec::{Packet, QoS, ReasonCode};
use tokio::time::{Instant, sleep};

use super::client::{Client, connect, publish, text};
use super::fake::Count;
use super::{BOTH, Bench, PEER, SECOND, V5, V311, serve};
use crate::connection::{Closed, Rejected};
use crate::session::Ended;

const WILL_STAYS: Ended = Ended { drop_will: false, expiry: None };

#[tokio::test(start_paused = true)]
async fn silence_of_one_and_a_half_keep_alives_ends_the_connection_3_1_2_22() {
    for version in BOTH {
        let bench = Bench::new();
        let mut client = bench.connect_with(Connect { keep_alive: 10, ..connect(version) }).await;
        assert_eq!(client.expect_end(ReasonCode::KeepAliveTimeout).await, 15 * SECOND);
        assert_eq!(bench.counts.all(), [Count::Opened, Count::Closed(Closed::KeepAliveTimeout)]);
        assert_eq!(bench.fake.ended(), [WILL_STAYS]);
    }
}

#[tokio::test(start_paused = true)]
async fn any_packet_restarts_the_keep_alive_and_a_part_of_one_does_not() {
    let bench = Bench::new();
    let mut client = bench.connect_with(Connect { keep_alive: 10, ..connect(V5) }).await;
    for _ in 0..5 {
        sleep(14 * SECOND).await;
        client.send(Packet::Publish(publish(QoS::AtMostOnce, 0))).await;
    }
    sleep(14 * SECOND).await;
    client.ping().await;
    sleep(14 * SECOND).await;
    client.send_bytes(&[0xc0]).await;
    assert_eq!(client.expect_end(ReasonCode::KeepAliveTimeout).await, SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_keep_alive_of_zero_is_off_3_1_2_23() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    client.expect_silence(Duration::from_hours(100)).await;
    client.ping().await;
}

fn disconnect(reason: ReasonCode, expiry: Option<u32>) -> Packet {
    let properties = DisconnectProperties { session_expiry_interval: expiry, ..DisconnectProperties::default() };
    Packet::Disconnect(Disconnect { reason, properties })
}

/// Connects a client with session expiry `expiry` and sends a DISCONNECT.
async fn leave(bench: &Bench, expiry: u32, packet: Packet) -> Client {
    let mut hello = connect(V5);
    hello.properties.session_expiry_interval = Some(expiry);
    let mut client = bench.connect_with(hello).await;
    client.send(packet).await;
    client
}

#[tokio::test(start_paused = true)]
async fn a_normal_disconnect_drops_the_will_and_any_other_keeps_it_3_14_4_3() {
    for (reason, drop_will) in [
        (ReasonCode::NORMAL_DISCONNECTION, true),
        (ReasonCode::DisconnectWithWillMessage, false),
        (ReasonCode::UnspecifiedError, false),
    ] {
        let bench = Bench::new();
        let mut client = leave(&bench, 60, disconnect(reason, None)).await;
        client.expect_close().await;
        assert_eq!(bench.fake.ended(), [Ended { drop_will, expiry: None }]);
        assert!(bench.counts.has(Count::Closed(Closed::Client)));
    }
    let bench = Bench::new();
    let mut client = bench.connect(V311).await;
    client.send(disconnect(ReasonCode::NORMAL_DISCONNECTION, None)).await;
    client.expect_close().await;
    assert_eq!(bench.fake.ended(), [Ended { drop_will: true, expiry: None }]);
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_may_change_the_session_expiry_within_the_bound_3_14_2_2_2() {
    for (asked, holds) in [(0, 0), (5000, 5000), (u32::MAX, 10_000)] {
        let bench = Bench::new();
        let packet = disconnect(ReasonCode::NORMAL_DISCONNECTION, Some(asked));
        leave(&bench, 60, packet).await.expect_close().await;
        assert_eq!(bench.fake.ended(), [Ended { drop_will: true, expiry: Some(Duration::from_secs(holds)) }]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_without_expiry_cannot_get_one_at_disconnect_3_14_2_2_2() {
    let bench = Bench::new();
    let mut client = leave(&bench, 0, disconnect(ReasonCode::NORMAL_DISCONNECTION, Some(1))).await;
    client.expect_end(ReasonCode::ProtocolError).await;
    assert_eq!(bench.fake.ended(), [WILL_STAYS]);
    assert!(bench.counts.has(Count::Closed(Closed::ProtocolError)));
}

#[tokio::test(start_paused = true)]
async fn an_expiry_that_the_server_chose_may_be_changed_at_disconnect() {
    let bench = Bench::new();
    let mut client = bench.connect_with(Connect { clean_start: false, ..connect(V5) }).await;
    client.send(disconnect(ReasonCode::NORMAL_DISCONNECTION, Some(60))).await;
    client.expect_close().await;
    assert_eq!(bench.fake.ended(), [Ended { drop_will: true, expiry: Some(60 * SECOND) }]);
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_keeps_the_will() {
    for version in BOTH {
        let bench = Bench::new();
        drop(bench.connect(version).await);
        bench.all_over().await;
        assert_eq!(bench.fake.ended(), [WILL_STAYS]);
        assert!(bench.counts.has(Count::Closed(Closed::Lost)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_protocol_error_is_told_in_mqtt_5_and_closes_in_3_1_1_4_13_1() {
    for version in BOTH {
        let bench = Bench::new();
        let mut client = bench.connect(version).await;
        client.send(Packet::Connect(Box::new(connect(version)))).await;
        client.expect_end(ReasonCode::ProtocolError).await;
        assert_eq!(bench.counts.all(), [Count::Opened, Count::Closed(Closed::ProtocolError)]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_came_before_a_malformed_packet_is_handled_and_nothing_behind_it() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    // PINGREQ, a SUBSCRIBE with wrong reserved flags, PINGREQ.
    client.send_bytes(&[0xc0, 0x00, 0x80, 0x00, 0xc0, 0x00]).await;
    assert_eq!(client.recv().await, Packet::PingResp);
    client.expect_end(ReasonCode::MalformedPacket).await;
}

#[tokio::test(start_paused = true)]
async fn a_socket_is_read_on_for_a_second_so_that_no_reset_overtakes_the_last_packet() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    client.send_bytes(&[0x80, 0x00]).await;
    client.expect_end(ReasonCode::MalformedPacket).await;
    let begin = Instant::now();
    client.send_bytes(&[0xc0; 4096]).await;
    bench.all_over().await;
    assert_eq!(begin.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn auth_without_a_method_in_connect_is_a_protocol_error_3_15() {
    let bench = Bench::new();
    let mut client = bench.connect(V5).await;
    let properties = AuthProperties { authentication_method: Some(text("SCRAM")), ..AuthProperties::default() };
    client.send(Packet::Auth(Auth { reason: ReasonCode::ReAuthenticate, properties })).await;
    client.expect_end(ReasonCode::ProtocolError).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_over_the_clients_maximum_packet_size_is_never_sent_3_1_2_24() {
    let bench = Bench::new();
    let mut hello = connect(V5);
    hello.properties.maximum_packet_size = Some(10);
    let mut client = bench.socket(V5);
    client.send(Packet::Connect(Box::new(hello))).await;
    client.expect_close().await;
    assert_eq!(bench.counts.all(), [Count::Rejected(Rejected::BadProtocol)]);
    assert_eq!(bench.fake.ended(), [WILL_STAYS]);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_dropped_ends_its_session() {
    let bench = Bench::new();
    let (near, far) = tokio::io::duplex(4096);
    let task = bench.drain.tasks().spawn(serve(far, PEER, bench.context.clone()));
    let mut client = Client::new(near, V5);
    client.send(Packet::Connect(Box::new(connect(V5)))).await;
    client.connack().await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(bench.fake.ended(), [WILL_STAYS]);
}

async fn connected(bench: &Bench, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for number in 0..count {
        clients.push(bench.connect(BOTH[number % 2]).await);
    }
    clients
}

#[tokio::test(start_paused = true)]
async fn a_drain_sends_clients_away_at_its_rate_with_0x8b() {
    let bench = Bench::with(super::Limits { max_connections: 20, ..super::limits() });
    let mut clients = connected(&bench, 20).await;
    let begin = Instant::now();
    let drain = bench.drain.clone();
    let done = tokio::spawn(async move { drain.run(2, 60 * SECOND).await });
    let mut times = Vec::new();
    for client in &mut clients {
        client.expect_end(ReasonCode::ServerShuttingDown).await;
        times.push(begin.elapsed());
    }
    done.await.unwrap();
    for (number, time) in (1_u32..).zip(&times) {
        let due = number * SECOND / 2;
        assert!(*time >= due && *time <= due + SECOND / 10, "client {number} left at {time:?}");
    }
    assert_eq!(bench.counts.all().iter().filter(|count| **count == Count::Closed(Closed::Drain)).count(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_nobody_stay_beyond_its_deadline() {
    let bench = Bench::new();
    let mut clients = connected(&bench, 4).await;
    let mut silent = bench.socket(V5);
    let drain = bench.drain.clone();
    let done = tokio::spawn(async move { drain.run(1, 2 * SECOND).await });
    let begin = Instant::now();
    for client in &mut clients {
        client.expect_end(ReasonCode::ServerShuttingDown).await;
    }
    silent.expect_close().await;
    drop(clients);
    done.await.unwrap();
    assert!(begin.elapsed() >= 2 * SECOND && begin.elapsed() < 4 * SECOND, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_only_the_connection_that_it_is_in() {
    let bench = Bench::new();
    let mut other = bench.connect(V5).await;
    let mut client = bench.connect(V5).await;
    client.send(Packet::Publish(Publish { topic: text("panic"), ..publish(QoS::AtMostOnce, 0) })).await;
    client.expect_close().await;
    assert!(bench.counts.has(Count::Closed(Closed::InternalError)));
    assert_eq!(bench.fake.ended(), [WILL_STAYS], "its session ends like that of a broken connection");
    other.ping().await;
    let mut client = bench.socket(V5);
    client
        .send(Packet::Connect(Box::new(Connect { client_id: text("panic"), username: Some(text("x")), ..connect(V5) })))
        .await;
    client.expect_close().await;
    assert!(bench.counts.has(Count::Rejected(Rejected::InternalError)));
    other.ping().await;
}
