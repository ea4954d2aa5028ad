//! A small MQTT 5 client that sends exactly the requested packets and returns the broker's reason codes.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::{Bytes, BytesMut};
use covey_codec::packet::{
    Ack, ConnAck, Connect, Disconnect, Publish, Subscribe, SubscribeProperties, Subscription, SubscriptionOptions,
};
use covey_codec::{Decoder, MqttStr, Packet, PacketId, ProtocolVersion, QoS, ReasonCode, encode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Result;

const V5: ProtocolVersion = ProtocolVersion::V5;
/// Time to wait for a reply.
const ANSWER: Duration = Duration::from_secs(10);
/// Time to wait until a broker is available. On a busy machine a broker may lose its lease for a moment.
const AVAILABLE: Duration = Duration::from_secs(20);

/// Parameters of a connection.
#[derive(Clone)]
pub struct Options {
    pub client_id: String,
    pub username: Option<String>,
    pub password: Option<String>,
    pub clean_start: bool,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

impl Options {
    /// Returns the options of a user with a password and a durable session.
    pub fn new(client_id: &str, username: &str, password: &str) -> Self {
        Self {
            client_id: client_id.to_owned(),
            username: Some(username.to_owned()),
            password: Some(password.to_owned()),
            clean_start: false,
        }
    }

    /// Returns the options of a client without user name and password.
    pub fn nobody(client_id: &str) -> Self {
        Self { client_id: client_id.to_owned(), username: None, password: None, clean_start: true }
    }
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    decoder: Decoder,
    buffer: BytesMut,
    /// Messages that arrived while another packet was awaited.
    messages: VecDeque<Publish>,
    next_id: u16,
}

impl Client {
    /// Connects and returns the CONNACK, whatever its reason code.
    ///
    /// # Errors
    /// Fails if no CONNACK comes.
    pub async fn open(address: &str, options: &Options) -> Result<(Self, ConnAck)> {
        let stream = tokio::time::timeout(ANSWER, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        let decoder = Decoder::client(V5, 1 << 20);
        let mut client = Self { stream, decoder, buffer: BytesMut::new(), messages: VecDeque::new(), next_id: 1 };
        let mut connect = Connect::new(V5, text(&options.client_id)?);
        connect.clean_start = options.clean_start;
        connect.keep_alive = 30;
        connect.username = options.username.as_deref().map(text).transpose()?;
        connect.password = options.password.clone().map(Bytes::from);
        client.send(&Packet::Connect(Box::new(connect))).await?;
        match client.packet(ANSWER).await? {
            Packet::ConnAck(answer) => Ok((client, *answer)),
            other => bail!("expected CONNACK, got {other:?}"),
        }
    }

    /// Connects and returns the CONNACK. Retries while the broker is unavailable (0x88), as a client should.
    ///
    /// # Errors
    /// Fails if no other CONNACK comes in time.
    pub async fn answered(address: &str, options: &Options) -> Result<(Self, ConnAck)> {
        let look = async || {
            let answered = Self::open(address, options).await;
            answered.ok().filter(|(_, answer)| answer.reason != ReasonCode::ServerUnavailable)
        };
        crate::wait::until("the broker is available", AVAILABLE, look).await
    }

    /// Connects successfully and returns whether the session was present.
    ///
    /// # Errors
    /// Fails if the broker refuses the client.
    pub async fn admitted(address: &str, options: &Options) -> Result<(Self, bool)> {
        let (client, answer) = Self::answered(address, options).await?;
        anyhow::ensure!(answer.reason == ReasonCode::Success, "refused: {:?}", answer.reason);
        Ok((client, answer.session_present))
    }

    /// Tries the addresses in turn until a broker admits the client. Returns whether the session was present.
    ///
    /// # Errors
    /// Fails if no broker admits it in time.
    pub async fn anywhere(addresses: &[String], options: &Options, limit: Duration) -> Result<(Self, bool)> {
        let mut turn = 0;
        let look = async || {
            let address = addresses.get(turn % addresses.len())?;
            turn += 1;
            let (client, answer) = Self::open(address, options).await.ok()?;
            (answer.reason == ReasonCode::Success).then_some((client, answer.session_present))
        };
        crate::wait::until("some broker admits the client", limit, look).await
    }

    /// Subscribes at QoS 1 and returns the reason code of the SUBACK.
    ///
    /// # Errors
    /// Fails if no SUBACK comes.
    pub async fn subscribe(&mut self, filter: &str) -> Result<ReasonCode> {
        let packet_id = self.id()?;
        let options = SubscriptionOptions { qos: QoS::AtLeastOnce, ..SubscriptionOptions::default() };
        let subscriptions = vec![Subscription { filter: text(filter)?, options }];
        let properties = SubscribeProperties::default();
        self.send(&Packet::Subscribe(Subscribe { packet_id, properties, subscriptions })).await?;
        let answer = self.answer(|packet| match packet {
            Packet::SubAck(ack) if ack.packet_id == packet_id => ack.reasons.first().copied(),
            _ => None,
        });
        answer.await
    }

    /// Publishes at QoS 1 and returns the reason code of the PUBACK.
    ///
    /// # Errors
    /// Fails if no PUBACK comes. It is not known then whether the message was stored.
    pub async fn publish(&mut self, topic: &str, payload: &str) -> Result<ReasonCode> {
        let packet_id = self.id()?;
        let publish = Publish {
            qos: QoS::AtLeastOnce,
            topic: text(topic)?,
            packet_id: Some(packet_id),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            ..Publish::default()
        };
        self.send(&Packet::Publish(publish)).await?;
        let answer = self.answer(|packet| match packet {
            Packet::PubAck(ack) if ack.packet_id == packet_id => Some(ack.reason),
            _ => None,
        });
        answer.await
    }

    /// Returns topic and payload of the next message, which it acknowledges; `None` if none comes in time.
    ///
    /// # Errors
    /// Fails if the connection ended.
    pub async fn message(&mut self, limit: Duration) -> Result<Option<(String, String)>> {
        let message = match self.messages.pop_front() {
            Some(message) => message,
            None => match self.next_message(limit).await? {
                Some(message) => message,
                None => return Ok(None),
            },
        };
        if let Some(id) = message.packet_id {
            self.send(&Packet::PubAck(Ack::success(id))).await?;
        }
        let payload = String::from_utf8_lossy(&message.payload).into_owned();
        Ok(Some((message.topic.as_str().to_owned(), payload)))
    }

    async fn next_message(&mut self, limit: Duration) -> Result<Option<Publish>> {
        let wait = async {
            loop {
                if let Packet::Publish(message) = self.packet(Duration::MAX).await? {
                    return Ok(message);
                }
            }
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(message) => message.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Waits until the broker ends the connection, and returns the reason code of its DISCONNECT, if it sent one.
    ///
    /// # Errors
    /// Fails if the broker does not end the connection in time.
    pub async fn closed(mut self, limit: Duration) -> Result<Option<ReasonCode>> {
        let wait = async {
            let mut reason = None;
            while let Ok(packet) = self.packet(Duration::MAX).await {
                if let Packet::Disconnect(disconnect) = packet {
                    reason = Some(disconnect.reason);
                }
            }
            reason
        };
        tokio::time::timeout(limit, wait).await.context("the broker did not end the connection")
    }

    /// Disconnects and keeps the session.
    ///
    /// # Errors
    /// Fails if the connection had ended.
    pub async fn leave(mut self) -> Result<()> {
        self.send(&Packet::Disconnect(Disconnect::new(ReasonCode::NORMAL_DISCONNECTION))).await?;
        Ok(self.stream.shutdown().await?)
    }

    fn id(&mut self) -> Result<PacketId> {
        let id = self.next_id;
        self.next_id = if id == u16::MAX { 1 } else { id + 1 };
        PacketId::new(id).context("packet id 0")
    }

    async fn send(&mut self, packet: &Packet) -> Result<()> {
        let mut bytes = BytesMut::new();
        encode(packet, V5, &mut bytes)?;
        Ok(self.stream.write_all(&bytes).await?)
    }

    async fn answer<T>(&mut self, pick: impl Fn(&Packet) -> Option<T>) -> Result<T> {
        let wait = async {
            loop {
                let packet = self.packet(Duration::MAX).await?;
                if let Some(found) = pick(&packet) {
                    return Ok(found);
                }
                match packet {
                    Packet::Publish(message) => self.messages.push_back(message),
                    Packet::Disconnect(disconnect) => bail!("the broker disconnects: {:?}", disconnect.reason),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(ANSWER, wait).await.context("no reply in time")?
    }

    /// Returns the next packet. Cancel safe: bytes that were read stay in the buffer.
    async fn packet(&mut self, limit: Duration) -> Result<Packet> {
        let wait = async {
            loop {
                if let Some(packet) = self.decoder.decode(&mut self.buffer)? {
                    return Ok(packet);
                }
                let read = self.stream.read_buf(&mut self.buffer).await?;
                anyhow::ensure!(read > 0, "the connection ended");
            }
        };
        if limit == Duration::MAX {
            return wait.await;
        }
        tokio::time::timeout(limit, wait).await.context("no packet in time")?
    }
}

fn text(text: &str) -> Result<MqttStr> {
    Ok(MqttStr::new(text)?)
}
