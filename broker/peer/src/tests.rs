//! TCP connections over loopback, with generated certificates.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use covey_contract::config::Peers;
use covey_contract::names;
use covey_contract::proto::peer_client::PeerClient;
use covey_contract::proto::peer_server::{Peer, PeerServer};
use covey_contract::proto::{
    AwaitRouteReply, AwaitRouteRequest, Frame, HelloReply, HelloRequest, JoinReply, JoinRequest, ProposeReply,
    ProposeRequest, RaftReply, RaftRequest, ReadIndexReply, ReadIndexRequest, SnapshotChunk,
};
use covey_raft::Purpose;
use covey_types::{NodeId, Ordinal};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::Empty;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use super::*;

/// Ordinal of the peer; the port in the test does not depend on it.
const FIRST: Ordinal = Ordinal::new(0);

const UID: &str = "u-1";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes the files of a directory, with a certificate that carries the URIs.
    fn write(&self, dir: &Path, uris: &[&str]) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![names::PEER_TLS_NAME.into()]).unwrap();
        params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(dir.join(names::TLS_CERT), certificate.pem()).unwrap();
        std::fs::write(dir.join(names::TLS_KEY), key.serialize_pem()).unwrap();
        std::fs::write(dir.join(names::TLS_CA), &self.pem).unwrap();
    }

    fn folder(&self, uris: &[&str]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.write(dir.path(), uris);
        dir
    }

    fn broker(&self, uid: &str) -> Tls {
        Tls::load(self.folder(&[&names::broker_uri(uid)]).path(), uid).unwrap()
    }
}

/// A broker that answers `Hello` and `AwaitRoute`.
struct Node {
    id: u64,
    refuse: bool,
    hellos: Arc<AtomicUsize>,
}

type Nothing<T> = Empty<Result<T, Status>>;

#[tonic::async_trait]
impl Peer for Node {
    type AppendStream = Nothing<RaftReply>;
    type ShardStream = Nothing<Frame>;
    type TransientStream = Nothing<Frame>;

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        self.hellos.fetch_add(1, Ordering::SeqCst);
        let caller = Caller::of(&request)?;
        let refused = if self.refuse { "not today".to_owned() } else { String::new() };
        if !self.refuse {
            caller.accept(request.into_inner());
        }
        Ok(Response::new(HelloReply { refused, node_id: self.id, ..HelloReply::default() }))
    }

    async fn await_route(&self, request: Request<AwaitRouteRequest>) -> Result<Response<AwaitRouteReply>, Status> {
        let hello = Caller::of(&request)?.hello().unwrap_or_default();
        Ok(Response::new(AwaitRouteReply { error: hello.node_id.to_string() }))
    }

    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn raft(&self, _: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn append(&self, _: Request<Streaming<RaftRequest>>) -> Result<Response<Nothing<RaftReply>>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn snapshot(&self, _: Request<Streaming<SnapshotChunk>>) -> Result<Response<RaftReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn propose(&self, _: Request<ProposeRequest>) -> Result<Response<ProposeReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn read_index(&self, _: Request<ReadIndexRequest>) -> Result<Response<ReadIndexReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn shard(&self, _: Request<Streaming<Frame>>) -> Result<Response<Nothing<Frame>>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn renew(&self, _: Request<Frame>) -> Result<Response<Frame>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn transient(&self, _: Request<Streaming<Frame>>) -> Result<Response<Nothing<Frame>>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct Server {
    address: SocketAddr,
    hellos: Arc<AtomicUsize>,
    stop: DropGuard,
}

/// Starts a server of node 7. Dropping the guard ends the accept loop, which drops the listener.
async fn start(tls: &Tls, role: Role, refuse: bool, address: &str) -> Server {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let hellos = Arc::new(AtomicUsize::new(0));
    let node = Node { id: 7, refuse, hellos: hellos.clone() };
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone().drop_guard();
    let routes = Routes::new(PeerServer::new(node));
    tokio::spawn(serve(listener, tls.clone(), role, routes, shutdown));
    Server { address, hellos, stop }
}

async fn start_broker(tls: &Tls) -> Server {
    start(tls, Role::Broker, false, "127.0.0.1:0").await
}

fn pool(tls: &Tls, server: &Server) -> Pool {
    let peers = Peers { port: server.address.port(), ..Peers::default() };
    Pool::new(tls.clone(), peers, |_, channel| {
        async move {
            let hello = HelloRequest { node_id: 42, ..HelloRequest::default() };
            Ok(PeerClient::new(channel).hello(hello).await?.into_inner())
        }
        .boxed()
    })
}

async fn call(channel: Channel) -> Result<String, Status> {
    Ok(PeerClient::new(channel).await_route(AwaitRouteRequest { index: 1 }).await?.into_inner().error)
}

/// Retries until there is an answer, because the pool pauses between attempts.
async fn eventually(pool: &Pool) -> Channel {
    for _ in 0..200 {
        match pool.channel(None, FIRST, Purpose::Data).await {
            Ok(channel) => return channel,
            Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
        }
    }
    panic!("no channel")
}

#[tokio::test]
async fn a_greeted_channel_is_kept_and_purposes_are_apart() {
    let tls = Authority::new().broker(UID);
    let server = start_broker(&tls).await;
    let pool = pool(&tls, &server);
    for purpose in [Purpose::Data, Purpose::Data, Purpose::Raft, Purpose::Snapshot] {
        let channel = pool.channel(Some(NodeId::new(7)), FIRST, purpose).await.unwrap();
        assert_eq!(call(channel).await.unwrap(), "42", "the server knows who said hello");
    }
    assert_eq!(server.hellos.load(Ordering::SeqCst), 3);
    let other = pool.channel(Some(NodeId::new(8)), FIRST, Purpose::Data).await;
    assert!(
        matches!(other, Err(Error::OtherNode { wanted, found }) if (wanted.get(), found.get()) == (8, 7)),
        "{other:?}"
    );
}

#[tokio::test]
async fn nothing_runs_before_hello() {
    let tls = Authority::new().broker(UID);
    let server = start_broker(&tls).await;
    let (channel, _) = client::connect(&tls, "127.0.0.1".into(), server.address.port()).await.unwrap();
    assert_eq!(call(channel).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_refused_hello_gives_no_channel() {
    let tls = Authority::new().broker(UID);
    let server = start(&tls, Role::Broker, true, "127.0.0.1:0").await;
    let pool = pool(&tls, &server);
    let refused = pool.channel(None, FIRST, Purpose::Raft).await;
    assert!(matches!(&refused, Err(Error::Refused(reason)) if reason == "not today"), "{refused:?}");
    let again = pool.channel(None, FIRST, Purpose::Raft).await;
    assert!(matches!(again, Err(Error::Pausing)), "{again:?}");
    assert_eq!(server.hellos.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn another_ca_is_refused_by_both_sides() {
    let (ours, theirs) = (Authority::new().broker(UID), Authority::new().broker(UID));
    let server = start_broker(&theirs).await;
    let outcome = pool(&ours, &server).channel(None, FIRST, Purpose::Data).await;
    assert!(matches!(outcome, Err(Error::Connect(_))), "{outcome:?}");
    assert_eq!(server.hellos.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_stranger_is_refused_by_the_server_alone() {
    let (ca, foreign) = (Authority::new(), Authority::new());
    let server = start_broker(&ca.broker(UID)).await;
    // The client trusts the server but has a certificate of another CA.
    let dir = foreign.folder(&[&names::broker_uri(UID)]);
    std::fs::write(dir.path().join(names::TLS_CA), &ca.pem).unwrap();
    let tls = Tls::load(dir.path(), UID).unwrap();
    assert!(pool(&tls, &server).channel(None, FIRST, Purpose::Data).await.is_err());
    assert_eq!(server.hellos.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn another_cluster_of_the_same_ca_is_refused_by_both_sides() {
    let ca = Authority::new();
    let (one, two) = (ca.broker("u-1"), ca.broker("u-2"));
    let server = start_broker(&two).await;
    let outcome = pool(&one, &server).channel(None, FIRST, Purpose::Data).await;
    assert!(matches!(&outcome, Err(Error::Connect(_))), "{outcome:?}");
    assert_eq!(server.hellos.load(Ordering::SeqCst), 0);
    assert!(!reaches(&ca.folder(&[&names::broker_uri("u-1")]), &server).await, "the server has to check it too");
    assert!(reaches(&ca.folder(&[&names::broker_uri("u-2")]), &server).await);
}

/// Returns whether the service answers a client with the files of this directory that checks nothing but the CA.
async fn reaches(dir: &TempDir, server: &Server) -> bool {
    let read = |file: &str| std::fs::read(dir.path().join(file)).unwrap();
    let chain = CertificateDer::pem_slice_iter(&read(names::TLS_CERT)).map(Result::unwrap).collect();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&read(names::TLS_CA)).unwrap()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&read(names::TLS_KEY)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];

    let connector = Raw { config: Arc::new(config), address: server.address };
    let endpoint = tonic::transport::Endpoint::from_static("http://peer");
    match endpoint.connect_with_connector(connector).await {
        Ok(channel) => !matches!(call(channel).await, Err(status) if status.code() != Code::FailedPrecondition),
        Err(_) => false,
    }
}

struct Raw {
    config: Arc<rustls::ClientConfig>,
    address: SocketAddr,
}

impl tonic::codegen::Service<tonic::codegen::http::Uri> for Raw {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, std::io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: tonic::codegen::http::Uri) -> Self::Future {
        let (config, address) = (self.config.clone(), self.address);
        async move {
            let socket = TcpStream::connect(address).await?;
            let name = names::PEER_TLS_NAME.try_into().unwrap();
            Ok(TokioIo::new(TlsConnector::from(config).connect(name, socket).await?))
        }
        .boxed()
    }
}

#[tokio::test]
async fn each_port_takes_its_own_role_only() {
    let ca = Authority::new();
    let broker = ca.folder(&[&names::broker_uri(UID)]);
    let operator = ca.folder(&[&names::operator_uri(UID)]);
    let both = ca.folder(&[&names::operator_uri(UID), &names::broker_uri(UID)]);
    for dir in [&operator, &both] {
        assert!(matches!(Tls::load(dir.path(), UID), Err(TlsError::Own(_))), "a broker does not start with it");
    }
    let none = ca.folder(&[]);
    let tls = ca.broker(UID);
    let peer_port = start(&tls, Role::Broker, false, "127.0.0.1:0").await;
    let admin_port = start(&tls, Role::Operator, false, "127.0.0.1:0").await;
    for (holder, peer, admin) in
        [(&broker, true, false), (&operator, false, true), (&both, false, false), (&none, false, false)]
    {
        assert_eq!(reaches(holder, &peer_port).await, peer);
        assert_eq!(reaches(holder, &admin_port).await, admin);
    }
}

#[tokio::test]
async fn a_lost_connection_is_greeted_again() {
    let tls = Authority::new().broker(UID);
    let server = start_broker(&tls).await;
    let pool = pool(&tls, &server);
    let old = eventually(&pool).await;
    let address = server.address.to_string();
    drop(server.stop);
    // The graceful shutdown of the server closes an idle connection.
    while pool.is_connected(FIRST, Purpose::Data) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let server = start(&tls, Role::Broker, false, &address).await;
    let error = call(old).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "the old channel must not connect by itself: {error:?}");
    assert_eq!(call(eventually(&pool).await).await.unwrap(), "42");
    assert_eq!(server.hellos.load(Ordering::SeqCst), 1);
}

/// Forwards bytes to the server until it is told to drop them.
async fn start_wire(to: SocketAddr) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, cut) = (listener.local_addr().unwrap(), CancellationToken::new());
    let swallow = cut.clone();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(to).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                // Kept open, so that neither side notices.
                () = swallow.cancelled() => held.push((near, far)),
            }
        }
    });
    (address, cut)
}

#[tokio::test]
async fn a_silent_peer_is_given_up_in_seconds() {
    let tls = Authority::new().broker(UID);
    let mut server = start_broker(&tls).await;
    let (wire, cut) = start_wire(server.address).await;
    server.address = wire;
    let pool = pool(&tls, &server);
    let channel = pool.channel(None, FIRST, Purpose::Raft).await.unwrap();
    cut.cancel();
    let waiting = tokio::time::timeout(Duration::from_secs(5), call(channel));
    assert!(waiting.await.expect("the keep alive must end the connection").is_err());
    assert!(!pool.is_connected(FIRST, Purpose::Raft));
}

#[tokio::test]
async fn new_files_are_used_by_new_connections_on_both_sides() {
    let (old, new) = (Authority::new(), Authority::new());
    let uri = names::broker_uri(UID);
    let (server_dir, client_dir) = (old.folder(&[&uri]), old.folder(&[&uri]));
    let (server_tls, client_tls) =
        (Tls::load(server_dir.path(), UID).unwrap(), Tls::load(client_dir.path(), UID).unwrap());
    let server = start_broker(&server_tls).await;
    let first = pool(&client_tls, &server);
    let kept = eventually(&first).await;
    assert!(!server_tls.reload().unwrap());

    new.write(server_dir.path(), &[&uri]);
    assert!(server_tls.reload().unwrap());
    assert!(pool(&client_tls, &server).channel(None, FIRST, Purpose::Data).await.is_err());
    assert_eq!(call(kept).await.unwrap(), "42", "an existing connection goes on");

    new.write(client_dir.path(), &[&uri]);
    assert!(client_tls.reload().unwrap());
    assert_eq!(call(eventually(&pool(&client_tls, &server)).await).await.unwrap(), "42");
}

#[test]
fn half_a_set_keeps_the_former_one() {
    let ca = Authority::new();
    let dir = ca.folder(&[&names::broker_uri(UID)]);
    let tls = Tls::load(dir.path(), UID).unwrap();
    let before = tls.client();
    let other = ca.folder(&[&names::broker_uri(UID)]);
    std::fs::copy(other.path().join(names::TLS_KEY), dir.path().join(names::TLS_KEY)).unwrap();
    assert!(matches!(tls.reload(), Err(TlsError::Rustls(_))), "a key that does not fit");
    std::fs::remove_file(dir.path().join(names::TLS_CA)).unwrap();
    assert!(matches!(tls.reload(), Err(TlsError::Read { .. })));
    assert!(Arc::ptr_eq(&before, &tls.client()));
}
