//! A blocking MQTT client on the project's codec, which can also send bytes that are no packet.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use covey_codec::packet::{
    Ack, ConnAck, Connect, ConnectProperties, Publish, Subscribe, SubscribeProperties, Subscription,
    SubscriptionOptions,
};
use covey_codec::{DecodeError, Decoder, MqttStr, Packet, PacketId, ProtocolVersion, QoS, encode};

use crate::Failure;
use crate::broker::Broker;

/// How long a broker on loopback may be silent before it counts as silent.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// What comes from the broker.
#[derive(Debug)]
pub enum Event {
    Packet(Packet),
    /// Bytes that our codec refuses.
    Malformed(DecodeError),
    Closed,
    Silence,
}

pub struct Client {
    stream: TcpStream,
    decoder: Decoder,
    buffer: BytesMut,
    version: ProtocolVersion,
}

impl Client {
    /// Opens a connection without a CONNECT.
    pub fn open(broker: &Broker, version: ProtocolVersion) -> Result<Self, Failure> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, broker.port(version)))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, decoder: Decoder::client(version, 1 << 28), buffer: BytesMut::new(), version })
    }

    /// Connects; a session that is not clean lasts an hour.
    pub fn connect(
        broker: &Broker,
        version: ProtocolVersion,
        id: &str,
        clean: bool,
    ) -> Result<(Self, ConnAck), Failure> {
        let mut client = Self::open(broker, version)?;
        let mut connect = Connect::new(version, MqttStr::new(id)?);
        connect.clean_start = clean;
        connect.keep_alive = 60;
        if !clean && version == ProtocolVersion::V5 {
            connect.properties =
                ConnectProperties { session_expiry_interval: Some(3600), ..ConnectProperties::default() };
        }
        client.send(&Packet::Connect(Box::new(connect)))?;
        match client.next()? {
            Event::Packet(Packet::ConnAck(ack)) => Ok((client, *ack)),
            other => Err(format!("no connack for {id}: {other:?}").into()),
        }
    }

    pub fn send(&mut self, packet: &Packet) -> Result<(), Failure> {
        let mut out = BytesMut::new();
        encode(packet, self.version, &mut out)?;
        self.send_bytes(&out)
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// The next packet, or how the wait for it ended.
    pub fn next(&mut self) -> Result<Event, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.decoder.decode(&mut self.buffer) {
                Ok(Some(packet)) => return Ok(Event::Packet(packet)),
                Err(error) => return Ok(Event::Malformed(error)),
                Ok(None) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Event::Silence);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 16_384];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(Event::Closed),
                Ok(len) => self.buffer.extend_from_slice(&chunk[..len]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    return Ok(Event::Closed);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Subscribes at QoS 1 and returns what answers.
    pub fn subscribe(&mut self, filter: &str) -> Result<Event, Failure> {
        let options = SubscriptionOptions { qos: QoS::AtLeastOnce, ..SubscriptionOptions::default() };
        self.send(&Packet::Subscribe(Subscribe {
            packet_id: PacketId::new(1).ok_or("packet id")?,
            properties: SubscribeProperties::default(),
            subscriptions: vec![Subscription { filter: MqttStr::new(filter)?, options }],
        }))?;
        self.next()
    }

    /// Publishes at QoS 1 and returns what answers.
    pub fn publish(&mut self, topic: &str, payload: &str, retain: bool) -> Result<Event, Failure> {
        self.send(&Packet::Publish(Publish {
            qos: QoS::AtLeastOnce,
            retain,
            topic: MqttStr::new(topic)?,
            packet_id: PacketId::new(2),
            payload: payload.to_owned().into(),
            ..Publish::default()
        }))?;
        self.next()
    }

    /// Reads and acknowledges messages until the broker is silent; returns their payloads.
    pub fn drain(&mut self) -> Result<Vec<String>, Failure> {
        let mut payloads = Vec::new();
        loop {
            match self.next()? {
                Event::Packet(Packet::Publish(publish)) => {
                    payloads.push(String::from_utf8_lossy(&publish.payload).into_owned());
                    if let Some(id) = publish.packet_id {
                        self.send(&Packet::PubAck(Ack::success(id)))?;
                    }
                }
                Event::Packet(_) => {}
                Event::Silence => return Ok(payloads),
                other => {
                    println!("  the subscriber's connection ended: {other:?}");
                    return Ok(payloads);
                }
            }
        }
    }
}
