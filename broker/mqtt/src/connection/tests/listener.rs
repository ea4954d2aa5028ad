//! Both protocol versions on one TCP port.

use std::sync::Arc;
use std::time::Duration;

use covey_codec::{Packet, ProtocolVersion, QoS, ReasonCode};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::{Client, connect, publish};
use super::fake::Count;
use super::{BOTH, Bench};
use crate::connection::Closed;
use crate::listener::Listener;

async fn dial(address: std::net::SocketAddr, version: ProtocolVersion) -> Client {
    let mut client = Client::new(TcpStream::connect(address).await.unwrap(), version);
    client.send(Packet::Connect(Box::new(connect(version)))).await;
    assert_eq!(client.connack().await.reason, ReasonCode::Success);
    client
}

#[tokio::test]
async fn one_port_serves_both_versions_until_it_drains() {
    let bench = Bench::new();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Arc::clone(&bench.context)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = tokio::spawn(listener.run());
    let mut clients = Vec::new();
    for version in BOTH {
        let mut client = dial(address, version).await;
        client.send(Packet::Publish(publish(QoS::AtLeastOnce, 1))).await;
        client.expect_ack(Packet::PubAck, 1, ReasonCode::Success).await;
        clients.push(client);
    }
    let drain = bench.drain.clone();
    let drained = tokio::spawn(async move { drain.run(1000, Duration::from_secs(5)).await });
    for client in &mut clients {
        client.expect_end(ReasonCode::ServerShuttingDown).await;
    }
    drop(clients);
    timeout(Duration::from_secs(5), async { tokio::try_join!(accepting, drained) }).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    assert_eq!(bench.counts.all().iter().filter(|count| **count == Count::Closed(Closed::Drain)).count(), 2);
}
