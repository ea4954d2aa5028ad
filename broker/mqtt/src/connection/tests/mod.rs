//! Connections in front of a fake node, driven packet by packet, in paused time.

mod client;
mod deliver;
mod end;
mod fake;
mod handshake;
mod listener;
mod packet_ids;
mod publish;
mod stall;
mod subscribe;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use covey_codec::packet::{ConnAck, Connect};
use covey_codec::{Packet, ProtocolVersion, ReasonCode};
use tokio::io::DuplexStream;

use self::client::{Client, connect};
use self::fake::{Counts, Fake, Node, Rules};
use super::{Context, Drain, Limits, serve};

const V5: ProtocolVersion = ProtocolVersion::V5;
const V311: ProtocolVersion = ProtocolVersion::V311;
const BOTH: [ProtocolVersion; 2] = [V5, V311];
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SECOND: Duration = Duration::from_secs(1);

fn limits() -> Limits {
    Limits {
        max_connections: 4,
        max_packet_size: 4096,
        connect_size_max: 3000,
        connect_bytes_max: 6000,
        receive_maximum: 4,
        topic_alias_maximum: 2,
        held_bytes_max: 8192,
        max_subscriptions: 3,
        expiry_when_unset: Duration::from_hours(2),
        expiry_max: Duration::from_secs(10_000),
        keep_alive_max: None,
        connect_timeout: 10 * SECOND,
        write_timeout: 10 * SECOND,
        stall_timeout: 5 * SECOND,
    }
}

/// A fake node and the connections that it serves.
struct Bench {
    fake: Arc<Fake>,
    rules: Arc<Rules>,
    counts: Arc<Counts>,
    drain: Drain,
    context: Arc<Context<Node, Rules>>,
}

impl Bench {
    fn new() -> Self {
        Self::with(limits())
    }

    fn with(limits: Limits) -> Self {
        let node = Node::default();
        let (rules, counts, drain) = (Arc::new(Rules::default()), Arc::new(Counts::default()), Drain::default());
        let context = Context::new(
            Arc::new(node.clone()),
            Arc::clone(&rules),
            Arc::clone(&counts) as Arc<dyn super::Observer>,
            limits,
            drain.clone(),
        );
        Self { fake: node.0, rules, counts, drain, context }
    }

    /// Returns a stream whose other end is served. It buffers `room` bytes in each direction.
    fn stream(&self, room: usize) -> DuplexStream {
        let (near, far) = tokio::io::duplex(room);
        self.drain.tasks().spawn(serve(far, PEER, Arc::clone(&self.context)));
        near
    }

    /// Returns a client that has sent nothing yet.
    fn socket(&self, version: ProtocolVersion) -> Client {
        Client::new(self.stream(256 * 1024), version)
    }

    /// Sends the CONNECT and returns the client with the CONNACK.
    async fn try_connect(&self, connect: Connect) -> (Client, ConnAck) {
        let mut client = self.socket(connect.protocol_version);
        client.send(Packet::Connect(Box::new(connect))).await;
        let answer = client.connack().await;
        (client, answer)
    }

    async fn connect_with(&self, connect: Connect) -> Client {
        let (client, answer) = self.try_connect(connect).await;
        assert_eq!(answer.reason, ReasonCode::Success);
        client
    }

    async fn connect(&self, version: ProtocolVersion) -> Client {
        self.connect_with(connect(version)).await
    }

    /// Waits until every connection has ended and has been counted.
    async fn all_over(&self) {
        self.drain.tasks().close();
        self.drain.tasks().wait().await;
        self.drain.tasks().reopen();
    }
}
