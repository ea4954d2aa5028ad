//! A test client that sends exactly the packets that the test passes to it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use covey_codec::packet::{
    Ack, ConnAck, Connect, Disconnect, Publish, SubAck, Subscribe, SubscribeProperties, Subscription,
    SubscriptionOptions, Unsubscribe, UnsubscribeProperties,
};
use covey_codec::{Decoder, MqttStr, Packet, PacketId, ProtocolVersion, QoS, ReasonCode, encode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

pub(super) fn text(text: &str) -> MqttStr {
    MqttStr::new(text).unwrap()
}

pub(super) fn id(value: u16) -> PacketId {
    PacketId::new(value).unwrap()
}

/// Returns a CONNECT of client id `c` with Clean Start.
pub(super) fn connect(version: ProtocolVersion) -> Connect {
    Connect::new(version, text("c"))
}

/// Returns a PUBLISH to `t`; packet id 0 means none, for QoS 0.
pub(super) fn publish(qos: QoS, packet_id: u16) -> Publish {
    let payload = Bytes::from_static(b"payload");
    Publish { qos, topic: text("t"), packet_id: PacketId::new(packet_id), payload, ..Publish::default() }
}

pub(super) fn subscribe(packet_id: u16, filters: &[(&str, QoS)]) -> Packet {
    let subscription = |(filter, qos): &(&str, QoS)| Subscription {
        filter: text(filter),
        options: SubscriptionOptions { qos: *qos, ..SubscriptionOptions::default() },
    };
    let subscriptions = filters.iter().map(subscription).collect();
    let properties = SubscribeProperties::default();
    Packet::Subscribe(Subscribe { packet_id: id(packet_id), properties, subscriptions })
}

pub(super) fn unsubscribe(packet_id: u16, filters: &[&str]) -> Packet {
    let properties = UnsubscribeProperties::default();
    let filters = filters.iter().map(|filter| text(filter)).collect();
    Packet::Unsubscribe(Unsubscribe { packet_id: id(packet_id), properties, filters })
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

pub(super) struct Client {
    io: Box<dyn Stream>,
    version: ProtocolVersion,
    decoder: Decoder,
    input: BytesMut,
}

impl Client {
    pub(super) fn new(io: impl Stream + 'static, version: ProtocolVersion) -> Self {
        Self { io: Box::new(io), version, decoder: Decoder::client(version, usize::MAX), input: BytesMut::new() }
    }

    pub(super) async fn send(&mut self, packet: impl Into<Packet>) {
        self.send_all([packet.into()]).await;
    }

    /// Sends all packets in one write.
    pub(super) async fn send_all(&mut self, packets: impl IntoIterator<Item = Packet>) {
        let mut bytes = BytesMut::new();
        for packet in packets {
            encode(&packet, self.version, &mut bytes).unwrap();
        }
        self.send_bytes(&bytes).await;
    }

    pub(super) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    /// Reads whatever bytes are available, and returns their number.
    pub(super) async fn take_some(&mut self) -> usize {
        let mut bytes = [0; 512];
        self.io.read(&mut bytes).await.unwrap()
    }

    /// Returns the next packet; `None` if the server closed the connection.
    pub(super) async fn next(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.input).unwrap() {
                return Some(packet);
            }
            if self.io.read_buf(&mut self.input).await.unwrap() == 0 {
                assert!(self.input.is_empty(), "closed inside a packet");
                return None;
            }
        }
    }

    /// Returns the next packet, which must arrive within 500 ms.
    pub(super) async fn recv(&mut self) -> Packet {
        let next = timeout(Duration::from_millis(500), self.next()).await;
        next.expect("no packet arrived in time").expect("the server closed the connection")
    }

    pub(super) async fn connack(&mut self) -> ConnAck {
        match self.recv().await {
            Packet::ConnAck(ack) => *ack,
            other => panic!("expected connack, got {other:?}"),
        }
    }

    pub(super) async fn suback(&mut self) -> SubAck {
        match self.recv().await {
            Packet::SubAck(ack) => ack,
            other => panic!("expected suback, got {other:?}"),
        }
    }

    /// Asserts that the server sends nothing for `duration`.
    pub(super) async fn expect_silence(&mut self, duration: Duration) {
        if let Ok(next) = timeout(duration, self.next()).await {
            panic!("expected silence, got {next:?}");
        }
    }

    /// Asserts that the server closes without a packet; returns how long that took.
    pub(super) async fn expect_close(&mut self) -> Duration {
        let begin = Instant::now();
        let next = timeout(Duration::from_hours(1), self.next()).await.expect("the server did not close");
        assert_eq!(next, None);
        begin.elapsed()
    }

    /// Asserts that the server closes, in MQTT 5 after this DISCONNECT; returns how long that took.
    pub(super) async fn expect_end(&mut self, reason: ReasonCode) -> Duration {
        let begin = Instant::now();
        if self.version == ProtocolVersion::V5 {
            let next = timeout(Duration::from_hours(1), self.next()).await.expect("the server sent nothing");
            assert_eq!(next, Some(Packet::Disconnect(Disconnect::new(reason))));
        }
        self.expect_close().await;
        begin.elapsed()
    }

    /// Waits until everything sent before has been handled.
    pub(super) async fn ping(&mut self) {
        self.send(Packet::PingReq).await;
        assert_eq!(self.recv().await, Packet::PingResp);
    }

    pub(super) async fn expect_ack(&mut self, packet: fn(Ack) -> Packet, packet_id: u16, reason: ReasonCode) {
        assert_eq!(self.recv().await, packet(Ack::new(id(packet_id), reason)));
    }
}
