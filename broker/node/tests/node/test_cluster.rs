//! A test cluster: several nodes in one process, which can be stopped and started.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use covey_codec::packet::PublishProperties;
use covey_codec::{MqttStr, PacketId, ProtocolVersion, QoS};
use covey_contract::config::{Config, Raft};
use covey_contract::{names, proto};
use covey_log::marker::{Directory, Expected};
use covey_log::segment::{Log, Options};
use covey_mqtt::session::{ConnectRequest, Connected, Event, Message, Session, Sessions, Subscription};
use covey_node::{Identity, Membership, Node, NodeSessions, Observer, StartOptions, peer_services, start};
use covey_peer::{Pool, Role, Tls, serve};
use covey_raft::Tuning;
use covey_supervise::Supervisor;
use covey_types::Ordinal;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

const UID: &str = "test-uid";

/// One cluster at a time: free ports are determined before they are used, and the load of several would cause
/// timeouts.
static TURN: LazyLock<Arc<Mutex<()>>> = LazyLock::new(Arc::default);

/// A cluster with its temporary directories and certificates.
pub(crate) struct TestCluster {
    _turn: OwnedMutexGuard<()>,
    /// Running nodes by ordinal; `None` for a stopped one.
    pub(crate) nodes: Vec<Option<Running>>,
    config: Arc<Config>,
    dirs: Vec<TempDir>,
    tls: TempDir,
    pub(crate) counts: Arc<Counts>,
}

pub(crate) struct Running {
    pub(crate) node: Arc<Node>,
    pub(crate) membership: Arc<Membership>,
    pub(crate) sessions: NodeSessions,
    log: Log,
    shutdown: CancellationToken,
}

/// Events that the nodes have counted.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) slow: AtomicU64,
}

impl Observer for Counts {
    fn dropped_unreachable(&self) {}

    fn dropped_slow(&self) {
        self.slow.fetch_add(1, Ordering::Relaxed);
    }

    fn missed(&self, _count: u64) {}
}

fn write_certificates(dir: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![names::PEER_TLS_NAME.into()]).unwrap();
    params.subject_alt_names.push(SanType::URI(names::broker_uri(UID).as_str().try_into().unwrap()));
    let certificate = params.signed_by(&key, &issuer).unwrap();
    std::fs::write(dir.join(names::TLS_CERT), certificate.pem()).unwrap();
    std::fs::write(dir.join(names::TLS_KEY), key.serialize_pem()).unwrap();
    std::fs::write(dir.join(names::TLS_CA), ca).unwrap();
}

/// Returns the first of `count` consecutive free ports.
fn free_ports(count: u16) -> u16 {
    for base in (20_000..30_000_u16).step_by(16).skip(usize::try_from(std::process::id() % 500).unwrap()) {
        let free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (base..base + count).all(free) {
            return base;
        }
    }
    panic!("no free ports");
}

impl TestCluster {
    /// Returns a cluster that is formed and serves.
    pub(crate) async fn formed(count: u32) -> Self {
        let mut cluster = Self::fresh(count).await;
        cluster.form().await;
        cluster.all_serve().await;
        cluster
    }

    pub(crate) async fn fresh(count: u32) -> Self {
        drop(
            tracing_subscriber::fmt()
                .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
                .with_test_writer()
                .try_init(),
        );
        let turn = TURN.clone().lock_owned().await;
        let tls = tempfile::tempdir().unwrap();
        write_certificates(tls.path());
        let port = free_ports(u16::try_from(count).unwrap());
        let yaml = format!("cluster: {{name: test, uid: {UID}, replicas: {count}}}\npeers: {{port: {port}}}\n");
        let mut config = Config::parse(&yaml).unwrap();
        config.raft = Raft {
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_millis(700),
            election_max: Duration::from_millis(1100),
        };
        // Long enough for a debug build on a busy machine.
        config.fence.lease = Duration::from_secs(6);
        let dirs = (0..count).map(|_| tempfile::tempdir().unwrap()).collect();
        let (nodes, config) = ((0..count).map(|_| None).collect(), Arc::new(config));
        let mut cluster = Self { _turn: turn, nodes, config, dirs, tls, counts: Arc::default() };
        for ordinal in 0..count {
            cluster.start(ordinal).await;
        }
        cluster
    }

    pub(crate) async fn start(&mut self, ordinal: u32) {
        let dir = self.dirs[ordinal as usize].path().to_owned();
        let name = format!("test-{ordinal}");
        let directory = Directory::open(&dir, &Expected { cluster_id: None, node_name: &name }).unwrap();
        let open_log = || Log::open(&dir.join("log"), Options::new(Arc::new(|error| panic!("{error}")))).unwrap().0;
        let (log, disk) = match directory {
            Directory::Fresh(fresh) => (open_log(), fresh.create().unwrap()),
            Directory::Existing(existing) => (open_log(), existing.claim().unwrap()),
            Directory::Left(left) => {
                let fresh = left.empty().unwrap();
                (open_log(), fresh.create().unwrap())
            }
        };
        let identity = Identity::new(disk, Ordinal::new(ordinal));
        let tls = Tls::load(self.tls.path(), UID).unwrap();
        let greeting = identity.clone();
        let pool = Pool::new(tls.clone(), self.config.peers.clone(), move |_, channel| greeting.greet(channel));
        let shutdown = CancellationToken::new();
        let (node, membership) = start(StartOptions {
            config: self.config.clone(),
            identity,
            log: log.clone(),
            dir,
            pool,
            observer: self.counts.clone(),
            tuning: Tuning::default(),
            fatal: Arc::new(|group, reason| panic!("{group}: {reason}")),
            supervisor: Supervisor::new(|reason| panic!("{reason}")),
            shutdown: shutdown.clone(),
        })
        .await
        .unwrap();
        let port = self.config.peers.port_of(self.config.peers.port, ordinal);
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
        let routes = peer_services(&node, membership.clone());
        tokio::spawn(serve(listener, tls, Role::Broker, routes, shutdown.clone()));
        let sessions = node.sessions();
        self.nodes[ordinal as usize] = Some(Running { node, membership, sessions, log, shutdown });
    }

    /// Stops a node without disconnecting its clients or transferring leaderships.
    pub(crate) async fn stop(&mut self, ordinal: usize) {
        let running = self.nodes[ordinal].take().unwrap();
        running.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), running.node.stop()).await.expect("the tasks did not end");
        running.log.close();
        running.membership.identity().release();
    }

    pub(crate) async fn form(&mut self) {
        let members = self
            .nodes
            .iter()
            .zip(0..)
            .filter_map(|(running, ordinal)| Some((running.as_ref()?, ordinal)))
            .map(|(running, ordinal)| proto::Member { ordinal, node_id: running.node.id().to_string() })
            .collect();
        let cluster_id = "6f1c3a52-0000-4000-8000-000000000001".into();
        let request = proto::InitializeRequest { cluster_id, members };
        for running in self.nodes.iter().flatten() {
            running.membership.initialize(&request).await.unwrap();
        }
    }

    pub(crate) async fn all_serve(&self) {
        until("every node serves", || self.nodes.iter().flatten().all(|running| running.sessions.is_serving())).await;
    }

    pub(crate) fn sessions(&self, ordinal: usize) -> &NodeSessions {
        &self.nodes[ordinal].as_ref().unwrap().sessions
    }

    pub(crate) async fn connect(&self, ordinal: usize, client: &str, expiry: u64) -> Connected<impl Session + use<>> {
        self.sessions(ordinal).connect(request(client, expiry)).await.unwrap()
    }
}

pub(crate) async fn until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..600 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not reached within 30 s: {what}");
}

pub(crate) fn request(client: &str, expiry: u64) -> ConnectRequest {
    ConnectRequest {
        client_id: text(client),
        assigned: false,
        principal: "someone".into(),
        version: ProtocolVersion::V5,
        clean_start: false,
        expiry: Duration::from_secs(expiry),
        receive_maximum: 100,
        will: None,
        will_delay: Duration::ZERO,
    }
}

pub(crate) fn text(text: &str) -> MqttStr {
    MqttStr::new(text).unwrap()
}

pub(crate) fn message(topic: &str, payload: &str) -> Message {
    Message {
        topic: text(topic),
        payload: payload.to_owned().into(),
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: PublishProperties::default(),
    }
}

pub(crate) fn filter(filter: &str) -> Subscription {
    Subscription {
        filter: text(filter),
        qos: QoS::AtLeastOnce,
        no_local: false,
        retain_as_published: false,
        retain_handling: 0,
        identifier: None,
    }
}

/// Waits up to 10 s for the next delivery; returns its payload and packet id.
pub(crate) async fn receive<S>(connected: &mut Connected<S>) -> (String, PacketId) {
    let event = tokio::time::timeout(Duration::from_secs(10), connected.events.recv()).await;
    match event.expect("no delivery within 10 s").expect("the session was closed") {
        Event::Deliver(delivery) => {
            let payload = String::from_utf8(delivery.message.payload.to_vec()).unwrap();
            (payload, delivery.packet_id.unwrap())
        }
        other => panic!("{other:?}"),
    }
}
