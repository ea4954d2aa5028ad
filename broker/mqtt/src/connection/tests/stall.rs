//! Connections whose node or client is too slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::{io, pin::Pin};

use covey_codec::packet::Connect;
use covey_codec::{Packet, QoS, ReasonCode};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::time::{Instant, sleep};

use super::client::{Client, connect, publish};
use super::deliver::delivery;
use super::fake::{Call, Count};
use super::{Bench, PEER, SECOND, V5, V311, serve};
use crate::connection::Closed;
use crate::session::{Ended, Event};

fn publishes(count: u16) -> impl Iterator<Item = Packet> {
    (1..=count).map(|id| Packet::Publish(publish(QoS::AtLeastOnce, id)))
}

fn begun(bench: &Bench) -> usize {
    bench.fake.calls().iter().filter(|call| matches!(call, Call::Publish(..))).count()
}

#[tokio::test(start_paused = true)]
async fn a_3_1_1_client_that_publishes_far_ahead_is_paused_and_goes_on_when_acknowledged() {
    let bench = Bench::new();
    let mut client = bench.connect(V311).await;
    bench.fake.set(|state| state.hold = true);
    client.send_all(publishes(20)).await;
    sleep(4 * SECOND).await;
    assert_eq!(begun(&bench), 5, "the bound is 4");
    for number in 0..20 {
        bench.fake.complete(number);
        client.expect_ack(Packet::PubAck, u16::try_from(number + 1).unwrap(), ReasonCode::Success).await;
        client.expect_silence(SECOND / 10).await;
    }
    client.ping().await;
}

#[tokio::test(start_paused = true)]
async fn a_3_1_1_client_whose_publishes_stay_held_is_closed_unacknowledged() {
    let bench = Bench::new();
    let mut client = bench.connect(V311).await;
    bench.fake.set(|state| state.hold = true);
    client.send_all(publishes(4)).await;
    sleep(60 * SECOND).await;
    client.ping().await;
    client.send(Packet::Publish(publish(QoS::AtLeastOnce, 5))).await;
    assert_eq!(client.expect_close().await, 5 * SECOND);
    assert!(bench.counts.has(Count::Closed(Closed::PublishStalled)));
    assert_eq!(bench.fake.ended(), [Ended { drop_will: false, expiry: None }]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_closed_after_the_write_timeout() {
    let bench = Bench::new();
    let mut client = Client::new(bench.stream(1024), V5);
    client.send(Packet::Connect(Box::new(connect(V5)))).await;
    client.connack().await;
    let begin = Instant::now();
    for _ in 0..10 {
        bench.fake.tell(Event::Deliver(delivery(QoS::AtMostOnce, None, 60 * 1024))).await;
    }
    sleep(SECOND).await;
    assert_eq!(bench.fake.waiting_events(), 8, "a connection that cannot send handles no more events");
    bench.all_over().await;
    assert_eq!(begin.elapsed(), 10 * SECOND);
    assert!(bench.counts.has(Count::Closed(Closed::WriteTimeout)));
    assert_eq!(bench.fake.ended().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_that_takes_a_little_now_and_then_is_kept() {
    let bench = Bench::new();
    let mut client = Client::new(bench.stream(512), V5);
    client.send(Packet::Connect(Box::new(connect(V5)))).await;
    client.connack().await;
    bench.fake.tell(Event::Deliver(delivery(QoS::AtMostOnce, None, 4000))).await;
    let begin = Instant::now();
    let mut taken = 0;
    while taken < 4000 {
        sleep(9 * SECOND).await;
        let some = client.take_some().await;
        assert!(some > 0, "closed after {:?}", begin.elapsed());
        taken += some;
    }
    assert!(begin.elapsed() > 50 * SECOND);
    assert_eq!(bench.counts.all(), [Count::Opened]);
}

#[tokio::test(start_paused = true)]
async fn keep_alive_is_not_judged_while_the_client_is_not_read() {
    let bench = Bench::with(crate::connection::Limits { stall_timeout: 600 * SECOND, ..super::limits() });
    let mut client = bench.connect_with(Connect { keep_alive: 10, ..connect(V311) }).await;
    bench.fake.set(|state| state.hold = true);
    client.send_all(publishes(5)).await;
    client.expect_silence(300 * SECOND).await;
    (0..5).for_each(|number| bench.fake.complete(number));
    for id in 1..=5 {
        client.expect_ack(Packet::PubAck, id, ReasonCode::Success).await;
    }
    assert_eq!(client.expect_close().await, 15 * SECOND);
    assert!(bench.counts.has(Count::Closed(Closed::KeepAliveTimeout)));
}

/// Counts the writes that reach a stream.
struct Counting {
    inner: DuplexStream,
    writes: Arc<AtomicUsize>,
}

impl AsyncRead for Counting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn what_came_in_one_read_is_answered_in_one_write() {
    let bench = Bench::with(crate::connection::Limits { receive_maximum: 200, ..super::limits() });
    let (near, inner) = tokio::io::duplex(64 * 1024);
    let writes = Arc::new(AtomicUsize::new(0));
    let counting = Counting { inner, writes: Arc::clone(&writes) };
    bench.drain.tasks().spawn(serve(counting, PEER, Arc::clone(&bench.context)));
    let mut client = Client::new(near, V5);
    client.send(Packet::Connect(Box::new(connect(V5)))).await;
    client.connack().await;
    writes.store(0, Ordering::SeqCst);
    client.send_all(publishes(200)).await;
    for id in 1..=200 {
        client.expect_ack(Packet::PubAck, id, ReasonCode::Success).await;
    }
    assert_eq!(writes.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn the_task_of_a_connection_is_small() {
    let bench = Bench::new();
    let (_near, far) = tokio::io::duplex(64);
    let size = size_of_val(&serve(far, PEER, Arc::clone(&bench.context)));
    let open = size_of::<crate::connection::open::Open<super::Node, super::Rules>>();
    assert!(size + open <= 2048, "{size} and {open} bytes");
}
