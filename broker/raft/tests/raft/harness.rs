//! Nodes that communicate over loopback, partitions between them, and a state machine that can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use covey_contract::config::Raft as Timing;
use covey_contract::proto;
use covey_contract::proto::peer_server::{Peer, PeerServer};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use parking_lot::{Mutex, RwLock};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use covey_log::segment;
use covey_raft::{
    ChangeError, ChannelError, Channels, MAX_MESSAGE, Member, Options, Purpose, RaftGroups, Rows, StateMachine,
    StoreError, Tuning,
};
use covey_supervise::Supervisor;
use covey_types::{GroupId, NodeId, Ordinal, ShardId};

pub(crate) const GROUP: GroupId = GroupId::META;
pub(crate) const OTHER: GroupId = GroupId::shard(ShardId::new(0));
/// Long enough for a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A command of this client makes every state machine panic.
pub(crate) const POISON: u32 = u32::MAX;
/// A command of this client is refused by every machine as one that it cannot read.
pub(crate) const UNREADABLE: u32 = u32::MAX - 1;

/// Content of a state machine, for comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Log index and command in order of application, without repetitions.
    pub(crate) entries: Vec<(u64, Bytes)>,
    /// Log indexes applied since the machine was loaded, repetitions included.
    pub(crate) applies: Vec<u64>,
    pub(crate) loads: usize,
}

/// Appends commands to a list, each once. A command is a client (u32), a sequence number (u32) and padding.
#[derive(Default)]
pub(crate) struct ListMachine {
    seen: BTreeSet<(u32, u32)>,
    contents: Arc<Mutex<Contents>>,
}

pub(crate) fn command(client: u32, sequence: u32, padding: usize) -> Bytes {
    [&client.to_be_bytes()[..], &sequence.to_be_bytes(), &vec![b'x'; padding]].concat().into()
}

pub(crate) fn parse(mut command: &[u8]) -> (u32, u32) {
    (command.get_u32(), command.get_u32())
}

impl StateMachine for ListMachine {
    fn apply(&mut self, index: u64, command: &Bytes, rows: &mut Rows) -> Result<Bytes, StoreError> {
        let mut contents = self.contents.lock();
        contents.applies.push(index);
        let (client, sequence) = parse(command);
        assert_ne!(client, POISON, "as the test wants it");
        if client == UNREADABLE {
            return Err(StoreError::Decode("no such operation".into()));
        }
        if !self.seen.insert((client, sequence)) {
            return Ok(Bytes::from_static(b"repeat"));
        }
        contents.entries.push((index, command.clone()));
        rows.put(index.to_be_bytes(), command.clone());
        Ok(Bytes::from(contents.entries.len().to_string()))
    }

    fn written(&mut self) {}

    fn load(
        &mut self,
        _applied: u64,
        rows: &mut dyn Iterator<Item = Result<(Bytes, Bytes), StoreError>>,
    ) -> Result<(), StoreError> {
        let mut contents = self.contents.lock();
        contents.entries.clear();
        contents.applies.clear();
        contents.loads += 1;
        self.seen.clear();
        for row in rows {
            let (mut key, command) = row?;
            self.seen.insert(parse(&command));
            contents.entries.push((key.get_u64(), command));
        }
        Ok(())
    }
}

/// Addresses of the nodes, and which of them are isolated.
#[derive(Default)]
pub(crate) struct Net {
    addresses: RwLock<BTreeMap<u32, SocketAddr>>,
    /// Nodes that neither reach others nor are reached.
    cut: RwLock<BTreeSet<u64>>,
    pub(crate) snapshots_sent: AtomicUsize,
    /// Number of times that a node asked for a channel to another one.
    pub(crate) asked: AtomicUsize,
}

impl Net {
    pub(crate) fn cut(&self, node: u64) {
        self.cut.write().insert(node);
    }

    pub(crate) fn heal(&self) {
        self.cut.write().clear();
    }

    fn check(&self, a: u64, b: u64) -> Result<(), Status> {
        let cut = self.cut.read();
        if cut.contains(&a) || cut.contains(&b) { Err(Status::unavailable("cut")) } else { Ok(()) }
    }
}

/// One node's connections.
struct Wire {
    net: Arc<Net>,
    node: u64,
    cached: Mutex<BTreeMap<(u32, Purpose), (SocketAddr, Channel)>>,
}

impl Channels for Wire {
    fn channel(
        &self,
        node: NodeId,
        ordinal: Ordinal,
        purpose: Purpose,
    ) -> BoxFuture<'_, Result<Channel, ChannelError>> {
        self.net.asked.fetch_add(1, Ordering::Relaxed);
        let ordinal = ordinal.get();
        Box::pin(async move {
            self.net.check(self.node, node.get())?;
            let address = *self.net.addresses.read().get(&ordinal).ok_or("no address")?;
            if let Some((known, channel)) = self.cached.lock().get(&(ordinal, purpose))
                && *known == address
            {
                return Ok(channel.clone());
            }
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(Duration::from_secs(1));
            let channel = endpoint.connect().await?;
            self.cached.lock().insert((ordinal, purpose), (address, channel.clone()));
            Ok(channel)
        })
    }
}

struct Service {
    cluster: RaftGroups,
    net: Arc<Net>,
    node: u64,
}

type Frames = BoxStream<'static, Result<proto::Frame, Status>>;

fn unused<T>() -> Result<T, Status> {
    Err(Status::unimplemented("not in this test"))
}

#[tonic::async_trait]
impl Peer for Service {
    type AppendStream = BoxStream<'static, Result<proto::RaftReply, Status>>;
    type ShardStream = Frames;
    type TransientStream = Frames;

    async fn hello(&self, _: Request<proto::HelloRequest>) -> Result<Response<proto::HelloReply>, Status> {
        unused()
    }

    async fn join(&self, _: Request<proto::JoinRequest>) -> Result<Response<proto::JoinReply>, Status> {
        unused()
    }

    async fn raft(&self, request: Request<proto::RaftRequest>) -> Result<Response<proto::RaftReply>, Status> {
        let request = request.into_inner();
        let from = request.from;
        self.net.check(from, self.node)?;
        let reply = self.cluster.serve_raft(request).await?;
        self.net.check(from, self.node)?;
        Ok(Response::new(reply))
    }

    async fn append(
        &self,
        request: Request<Streaming<proto::RaftRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let (net, node) = (Arc::clone(&self.net), self.node);
        let requests = request.into_inner().map(move |request| {
            let request = request?;
            net.check(request.from, node)?;
            Ok(request)
        });
        let net = Arc::clone(&self.net);
        let replies = self.cluster.serve_append(requests.boxed());
        let replies = replies.map(move |reply| {
            net.check(node, node)?;
            reply
        });
        Ok(Response::new(replies.boxed()))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotChunk>>,
    ) -> Result<Response<proto::RaftReply>, Status> {
        self.net.snapshots_sent.fetch_add(1, Ordering::Relaxed);
        let (net, node) = (Arc::clone(&self.net), self.node);
        let chunks = request.into_inner().map(move |chunk| {
            let chunk = chunk?;
            net.check(chunk.from, node)?;
            Ok(chunk)
        });
        self.cluster.serve_snapshot(chunks.boxed()).await.map(Response::new)
    }

    async fn propose(&self, request: Request<proto::ProposeRequest>) -> Result<Response<proto::ProposeReply>, Status> {
        self.net.check(self.node, self.node)?;
        Ok(Response::new(self.cluster.serve_propose(request.into_inner()).await))
    }

    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexReply>, Status> {
        self.net.check(self.node, self.node)?;
        Ok(Response::new(self.cluster.serve_read_index(request.into_inner()).await))
    }

    async fn shard(&self, _: Request<Streaming<proto::Frame>>) -> Result<Response<Frames>, Status> {
        unused()
    }

    async fn renew(&self, _: Request<proto::Frame>) -> Result<Response<proto::Frame>, Status> {
        unused()
    }

    async fn transient(&self, _: Request<Streaming<proto::Frame>>) -> Result<Response<Frames>, Status> {
        unused()
    }

    async fn await_route(
        &self,
        _: Request<proto::AwaitRouteRequest>,
    ) -> Result<Response<proto::AwaitRouteReply>, Status> {
        unused()
    }
}

/// A running node.
pub(crate) struct TestNode {
    pub(crate) cluster: RaftGroups,
    pub(crate) ordinal: u32,
    pub(crate) log: segment::Log,
    contents: BTreeMap<GroupId, Arc<Mutex<Contents>>>,
    server: tokio::task::JoinHandle<()>,
    stop_server: CancellationToken,
}

impl TestNode {
    pub(crate) fn contents(&self, group: GroupId) -> Contents {
        self.contents[&group].lock().clone()
    }
}

/// A cluster whose nodes can be stopped and started.
pub(crate) struct TestCluster {
    pub(crate) net: Arc<Net>,
    /// By the number of the node id, which is small here.
    pub(crate) nodes: BTreeMap<u64, TestNode>,
    pub(crate) tuning: Tuning,
    pub(crate) segment_bytes: u64,
    pub(crate) timing: Timing,
    pub(crate) groups: Vec<GroupId>,
    pub(crate) fatal: Arc<Mutex<Vec<String>>>,
    dirs: TempDir,
}

pub(crate) fn members(nodes: &[(u64, u32)]) -> BTreeMap<NodeId, Member> {
    nodes.iter().map(|(id, ordinal)| (NodeId::new(*id), Member { ordinal: Ordinal::new(*ordinal) })).collect()
}

/// Timing for a machine that is busy with other tests.
fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(75),
        election_min: Duration::from_millis(500),
        election_max: Duration::from_millis(900),
    }
}

/// Thresholds that are never reached.
pub(crate) fn quiet() -> Tuning {
    Tuning { check_every: Duration::from_millis(50), ..Tuning::default() }
}

impl TestCluster {
    pub(crate) fn new(tuning: Tuning) -> Self {
        let dirs = tempfile::tempdir().unwrap();
        let fatal = Arc::default();
        Self {
            net: Arc::default(),
            nodes: BTreeMap::new(),
            tuning,
            segment_bytes: 64 << 20,
            timing: timing(),
            groups: vec![GROUP, OTHER],
            fatal,
            dirs,
        }
    }

    /// Returns a formed cluster of three nodes, 1 to 3.
    pub(crate) async fn formed(tuning: Tuning) -> Self {
        let mut cluster = Self::new(tuning);
        for (id, ordinal) in [(1, 0), (2, 1), (3, 2)] {
            cluster.start(id, ordinal).await;
        }
        let members = members(&[(1, 0), (2, 1), (3, 2)]);
        for node in cluster.nodes.values() {
            node.cluster.initialize(&members).await.unwrap();
        }
        cluster
    }

    pub(crate) fn dir(&self, id: u64) -> PathBuf {
        self.dirs.path().join(id.to_string())
    }

    pub(crate) async fn start(&mut self, id: u64, ordinal: u32) {
        let dir = self.dir(id);
        std::fs::create_dir_all(&dir).unwrap();
        let fatal = Arc::clone(&self.fatal);
        let on_fatal = Arc::new(move |error: &segment::Error| fatal.lock().push(format!("log: {error:?}")));
        let mut options = segment::Options::new(on_fatal);
        options.segment_bytes = self.segment_bytes;
        let (log, _recovered) = segment::Log::open(&dir.join("log"), options).unwrap();
        let contents: BTreeMap<GroupId, Arc<Mutex<Contents>>> =
            self.groups.iter().map(|group| (*group, Arc::default())).collect();
        let machines = contents.iter().map(|(group, contents)| {
            let machine = ListMachine { seen: BTreeSet::new(), contents: Arc::clone(contents) };
            (*group, Box::new(machine) as Box<dyn StateMachine>)
        });
        let (fatal, failed) = (Arc::clone(&self.fatal), Arc::clone(&self.fatal));
        let wire = Wire { net: Arc::clone(&self.net), node: id, cached: Mutex::default() };
        let cluster = RaftGroups::start(Options {
            node: NodeId::new(id),
            dir,
            log: log.clone(),
            timing: self.timing.clone(),
            tuning: self.tuning.clone(),
            channels: Arc::new(wire),
            machines: machines.collect(),
            fatal: Arc::new(move |group, reason| fatal.lock().push(format!("{id} {group}: {reason}"))),
            supervisor: Supervisor::new(move |reason| failed.lock().push(format!("{id}: {reason}"))),
            shutdown: CancellationToken::new(),
        });
        let cluster = cluster.await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.net.addresses.write().insert(ordinal, listener.local_addr().unwrap());
        let service = Service { cluster: cluster.clone(), net: Arc::clone(&self.net), node: id };
        let service = PeerServer::new(service).max_decoding_message_size(MAX_MESSAGE);
        let stop_server = CancellationToken::new();
        let stopped = stop_server.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener).inspect_ok(|stream| stream.set_nodelay(true).unwrap());
            let serving = Server::builder().add_service(service).serve_with_incoming(incoming);
            tokio::select! {
                result = serving => result.unwrap(),
                () = stopped => (),
            }
        });
        self.nodes.insert(id, TestNode { cluster, ordinal, log, contents, server, stop_server });
    }

    /// Stops a node; its files stay.
    pub(crate) async fn stop(&mut self, id: u64) {
        let node = self.nodes.remove(&id).unwrap();
        node.stop_server.cancel();
        node.server.await.unwrap();
        node.cluster.stop().await;
        node.log.close();
    }

    pub(crate) async fn stop_all(&mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }

    /// Waits for the node that leads the group and accepts commands.
    pub(crate) async fn leader(&self, group: GroupId) -> u64 {
        self.leader_where(group, |_| true).await
    }

    pub(crate) async fn leader_where(&self, group: GroupId, accept: impl Fn(u64) -> bool) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leads = |node: &TestNode| node.cluster.leadership(group).borrow().ours;
            if let Some((id, _)) = self.nodes.iter().find(|(id, node)| accept(**id) && leads(node)) {
                return *id;
            }
            assert!(Instant::now() < deadline, "no leader of {group}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn cluster(&self, id: u64) -> RaftGroups {
        self.nodes[&id].cluster.clone()
    }

    /// Proposes at whichever node leads, until it is acknowledged.
    pub(crate) async fn write(&self, group: GroupId, command: Bytes) -> covey_raft::Response {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leader = self.leader(group).await;
            if let Ok(Ok(response)) =
                timeout(Duration::from_secs(2), self.cluster(leader).propose(group, command.clone())).await
            {
                return response;
            }
            assert!(Instant::now() < deadline, "no answer");
        }
    }

    /// Changes the members at the leader until it succeeds.
    pub(crate) async fn set_voters(
        &self,
        group: GroupId,
        voters: &BTreeMap<NodeId, Member>,
        learners: &BTreeMap<NodeId, Member>,
    ) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leader = self.cluster(self.leader(group).await);
            match leader.set_voters(group, voters.clone(), learners.clone()).await {
                Ok(()) => return,
                Err(ChangeError::NotLeader(_) | ChangeError::InProgress) => (),
                Err(other) => assert_eq!(other, ChangeError::InProgress),
            }
            assert!(Instant::now() < deadline, "the members did not change");
        }
    }

    /// Waits until all nodes have applied what the leader has, and compares their contents.
    pub(crate) async fn converged(&self, group: GroupId) -> Vec<(u64, Bytes)> {
        let deadline = Instant::now() + PATIENCE;
        // A leader that was just replaced may not know it yet.
        let (leader, index) = loop {
            let leader = self.leader(group).await;
            match self.cluster(leader).read_index(group).await {
                Ok(index) => break (leader, index),
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        };
        for (id, node) in &self.nodes {
            let applied = timeout(PATIENCE, node.cluster.await_applied(group, index)).await;
            assert_eq!(applied, Ok(true), "node {id} did not apply {index}: {:?}", node.cluster.status(group));
        }
        let expected = self.nodes[&leader].contents(group).entries;
        for (id, node) in &self.nodes {
            assert_eq!(node.contents(group).entries, expected, "node {id} differs from leader {leader}");
        }
        expected
    }

    pub(crate) fn assert_no_fatal(&self) {
        assert_eq!(*self.fatal.lock(), Vec::<String>::new());
    }
}

/// Waits until the condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}
