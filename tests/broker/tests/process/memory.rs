//! Bounds of the resident memory that clients can make a broker use.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use covey_codec::packet::{Connect, Publish};
use covey_codec::{Decoder, MqttStr, Packet, PacketId, ProtocolVersion, QoS, ReasonCode, encode};
use covey_tests::client::{Client, Options};
use covey_tests::local::{Local, free_port};
use covey_tests::{Result, wait};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{folder, manifest};

const V5: ProtocolVersion = ProtocolVersion::V5;
/// Growth in bytes that a broker is allowed: the budget of unfinished CONNECTs is 16 MiB, and the allocator keeps freed
/// memory.
const GROWTH: u64 = 64 << 20;
/// Timeout of one step of a client that is being refused.
const STEP: Duration = Duration::from_secs(2);

/// Returns the resident memory of a process in bytes.
fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line.and_then(|line| line.trim().split(' ').next()).unwrap_or_default().parse()?;
    Ok(kib << 10)
}

/// Returns the highest resident memory in bytes over the next second.
async fn peak(pid: u32) -> Result<u64> {
    let mut peak = 0;
    for _ in 0..20 {
        peak = peak.max(resident(pid)?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(peak)
}

/// Returns a CONNECT with this number of empty user properties and a wrong password.
fn connect(user_properties: usize) -> Result<Bytes> {
    let mut connect = Connect::new(V5, MqttStr::new("flood")?);
    connect.username = Some(MqttStr::new("dispatcher")?);
    connect.password = Some(Bytes::from_static(b"wrong"));
    connect.properties.user_properties = vec![(MqttStr::default(), MqttStr::default()); user_properties];
    let mut bytes = BytesMut::new();
    encode(&Packet::Connect(Box::new(connect)), V5, &mut bytes)?;
    Ok(bytes.freeze())
}

/// Opens sockets and sends the bytes on each, as far as the broker reads them.
async fn sockets(address: &str, count: usize, bytes: &[u8]) -> Result<Vec<TcpStream>> {
    let mut sockets = Vec::new();
    for _ in 0..count {
        let mut socket = TcpStream::connect(address).await?;
        // The broker may refuse, or leave the rest unread.
        drop(tokio::time::timeout(Duration::from_millis(20), socket.write_all(bytes)).await);
        sockets.push(socket);
    }
    Ok(sockets)
}

#[tokio::test]
async fn clients_that_are_not_admitted_cannot_fill_the_memory() -> Result<()> {
    let folder = folder().await?;
    let local = Local::start(&manifest(&folder, 1)?, &folder.path().join("data"), free_port()?).await?;
    let (address, pid) = (local.address(0), local.pid(0)?);
    // 250 KB and 100 KB, above and below the limit of CONNECT.
    let (large, small) = (connect(50_000)?, connect(20_000)?);
    let before = resident(pid)?;
    let mut kept = Vec::new();
    for packet in [&large, &small] {
        kept.push(sockets(&address, 200, packet.get(..packet.len() - 1).unwrap_or_default()).await?);
        kept.push(sockets(&address, 300, packet).await?);
    }
    let grown = peak(pid).await?.saturating_sub(before);
    assert!(grown < GROWTH, "the broker grew by {} MiB", grown >> 20);
    // A client with a small CONNECT is admitted meanwhile.
    let dispatcher = Options::new("d", "dispatcher", &local.password("dispatcher")?);
    let (client, _) = Client::admitted(&address, &dispatcher).await?;
    client.leave().await?;
    drop(kept);
    local.stop().await
}

/// Returns a PUBLISH at QoS 1 with packet identifier 1.
fn publish(payload: usize) -> Result<Bytes> {
    let publish = Publish {
        qos: QoS::AtLeastOnce,
        topic: MqttStr::new("jobs/1")?,
        packet_id: PacketId::new(1),
        payload: vec![b'x'; payload].into(),
        ..Publish::default()
    };
    let mut bytes = BytesMut::new();
    encode(&Packet::Publish(publish), V5, &mut bytes)?;
    Ok(bytes.freeze())
}

/// Returns the last complete packet before the broker ends the connection.
async fn last_packet(mut stream: impl AsyncRead + Unpin) -> Option<Packet> {
    let (mut decoder, mut bytes, mut last) = (Decoder::client(V5, 1 << 20), BytesMut::new(), None);
    loop {
        while let Ok(Some(packet)) = decoder.decode(&mut bytes) {
            last = Some(packet);
        }
        if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
            return last;
        }
    }
}

#[tokio::test]
async fn a_publisher_that_reuses_a_packet_identifier_is_ended_and_fills_nothing() -> Result<()> {
    let folder = folder().await?;
    let local = Local::start(&manifest(&folder, 1)?, &folder.path().join("data"), free_port()?).await?;
    let (address, pid) = (local.address(0), local.pid(0)?);
    // With a subscriber, the messages go through the log.
    let worker = Options::new("deploy.1", "worker", &local.password("worker")?);
    let (mut client, _) = Client::admitted(&address, &worker).await?;
    client.subscribe("jobs/#").await?;
    client.leave().await?;
    let mut hello = Connect::new(V5, MqttStr::new("flood")?);
    hello.username = Some(MqttStr::new("dispatcher")?);
    hello.password = Some(local.password("dispatcher")?.into());
    let mut bytes = BytesMut::new();
    encode(&Packet::Connect(Box::new(hello)), V5, &mut bytes)?;
    let mut socket = TcpStream::connect(&address).await?;
    socket.write_all(&bytes).await?;
    // CONNACK: type, remaining length, flags, reason; then the properties.
    let [_, remaining, _, reason] = socket.read_u32().await?.to_be_bytes();
    assert_eq!(reason, u8::from(ReasonCode::Success));
    let mut properties = vec![0; usize::from(remaining).saturating_sub(2)];
    socket.read_exact(&mut properties).await?;
    let before = resident(pid)?;
    // The small one arrives together with the end of the large one, before the large one can be acknowledged.
    let mut both = BytesMut::new();
    both.put_slice(&publish(250_000)?);
    both.put_slice(&publish(10)?);
    let (reading, mut writing) = socket.into_split();
    let last = tokio::spawn(last_packet(reading));
    for _ in 0..300 {
        // At some point the broker closes the connection or stops reading.
        if !matches!(tokio::time::timeout(STEP, writing.write_all(&both)).await, Ok(Ok(()))) {
            break;
        }
    }
    let last =
        tokio::time::timeout(STEP, last).await.context("the broker accepted 75 MB with one packet identifier")??;
    let Some(Packet::Disconnect(disconnect)) = last else { bail!("expected DISCONNECT, got {last:?}") };
    assert_eq!(disconnect.reason, ReasonCode::ProtocolError);
    let grown = peak(pid).await?.saturating_sub(before);
    assert!(grown < GROWTH, "the broker grew by {} MiB", grown >> 20);
    let again =
        async || Client::open(&address, &worker).await.ok().filter(|(_, answer)| answer.reason == ReasonCode::Success);
    wait::until("the broker serves others", Duration::from_secs(10), again).await?;
    local.stop().await
}
