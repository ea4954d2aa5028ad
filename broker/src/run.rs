//! Starts and stops a broker.
//!
//! ```text
//!  lock the disk -> HTTP (live, not ready) -> log -> TLS, pool -> access rules -> node -> peer and admin ports -> listeners
//!  shutdown: not ready -> clients drained -> leaderships transferred -> everything stops; the node stays a member
//! ```

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use covey_contract::config::{Config, Listener as ListenerConfig};
use covey_log::marker::{self, Claimed, Directory, Expected, Fresh};
use covey_log::segment::{self, Expect, Log};
use covey_mqtt::connection::{Context, Drain, Limits};
use covey_mqtt::listener::Listener;
use covey_node::{self as node, Identity, Membership, Node, StartOptions};
use covey_peer::{self as peer, Pool, Role, Tls, TlsError};
use covey_raft::{StartError, Tuning};
use covey_supervise::{Supervisor, count_panics};
use covey_types::Ordinal;
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::access::{self, Access};
use crate::adapters::{AccessGuard, BrokerBackend, MetricsObserver};
use crate::admin::AdminService;
use crate::http;
use crate::metrics::{Check, Metrics, StorageKind};
use crate::readiness::{Judge, Readiness};
use crate::sampling::Sampling;

/// Time for other nodes to take over leaderships when the node stops.
const HANDOVER: Duration = Duration::from_secs(5);

/// Parameters of [`run`].
#[derive(Debug)]
pub struct Options {
    /// Configuration of the broker.
    pub config: Config,
    /// Name of the node. It ends in its ordinal, like the name of a pod of a StatefulSet.
    pub name: String,
    /// Commit that the program was built from, for the build info metric.
    pub commit: String,
}

/// Error that keeps a broker from starting.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("node name {0:?} does not end in its ordinal (as in prod-0)")]
    Name(String),
    #[error("cluster id {0:?} in the configuration is not a UUID")]
    ClusterId(String),
    #[error(transparent)]
    Disk(#[from] marker::Error),
    #[error(transparent)]
    Log(#[from] segment::OpenError),
    #[error("failed to load the peer certificate")]
    Tls(#[from] TlsError),
    #[error("failed to start the Raft groups")]
    Groups(#[from] StartError),
    #[error("failed to open the data directory")]
    Opening(#[source] tokio::task::JoinError),
    #[error("failed to register metrics")]
    Metrics(#[from] prometheus::Error),
    #[error("failed to listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("listen address {0:?} in the configuration is not an IP address")]
    Bind(String),
}

/// Parts that run before the disk is opened, which may take minutes.
struct Host {
    /// Metrics of the process.
    metrics: Arc<Metrics>,
    /// Readiness checks served on the HTTP port.
    readiness: Readiness,
    /// Ends the process if a task fails.
    supervisor: Supervisor,
    /// Tasks that end after `stop`.
    tasks: TaskTracker,
    /// Stops ports and tasks, after the clients were disconnected.
    stop: CancellationToken,
}

impl Host {
    fn new(metrics: Arc<Metrics>) -> Self {
        let readiness = Readiness::new(metrics.clone());
        readiness.set(Check::NotDraining, true);
        Self {
            metrics,
            readiness,
            supervisor: Supervisor::new(end_process),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Spawns a task that runs until the broker stops; if it ends earlier, the process ends.
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.supervisor.clone().lasting(name, self.stop.clone(), task));
    }

    /// Serves HTTP from now on and waits for `node`, which opens the disk: the process is live meanwhile, but not ready.
    ///
    /// # Errors
    /// Returns the error of `node`.
    async fn open<T>(&self, http: TcpListener, node: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let serving = http::serve(http, self.metrics.clone(), self.readiness.clone(), self.stop.clone());
        self.spawn("HTTP port", complain("HTTP", serving));
        let node = node.await?;
        self.readiness.set(Check::Disk, true);
        // A node whose certificate cannot be loaded does not open.
        self.readiness.set(Check::Certificate, true);
        Ok(node)
    }
}

/// A running broker: the parts that have to be stopped in order.
struct Broker {
    /// Metrics, readiness and supervised tasks.
    host: Host,
    /// The node.
    node: Arc<Node>,
    /// The disk, whose lock is released last.
    identity: Arc<Identity>,
    /// Disconnects the clients.
    drain: Drain,
    /// The log.
    log: Log,
}

/// Runs a broker until `shutdown`. A stopped node stays a member of its cluster.
///
/// The future is boxed so that its code is generated in this crate: that of an `async fn` is generated in the crate that
/// polls it, and with this one would come all of the broker.
///
/// # Errors
/// Returns why the broker could not start. Failures after the start end the process.
pub fn run(options: Options, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    Box::pin(async move {
        let broker = start(options).await?;
        shutdown.cancelled().await;
        broker.stop().await;
        Ok(())
    })
}

/// Parses the ordinal at the end of a node's name.
///
/// # Errors
/// Fails if the name does not end in `-` and a number.
pub fn ordinal_of(name: &str) -> Result<Ordinal, Error> {
    let ordinal = name.rsplit_once('-').and_then(|(_, ordinal)| ordinal.parse().ok());
    ordinal.ok_or_else(|| Error::Name(name.to_owned()))
}

async fn start(options: Options) -> Result<Broker, Error> {
    let Options { config, name, commit } = options;
    let ordinal = ordinal_of(&name)?;
    let config = Arc::new(config);
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), &commit)?;
    let panics = metrics.node.task_panics.clone();
    count_panics(move || panics.inc());
    // First, so that a second process on this disk fails on its lock and not on a port.
    let directory = take_disk(&config, &name)?;
    let host = Host::new(metrics);
    let http = listen(address(&config, config.peers.http_port, ordinal)?).await?;
    let opening = open_node_blocking(NodeOptions {
        config: config.clone(),
        directory,
        ordinal,
        metrics: host.metrics.clone(),
        supervisor: host.supervisor.clone(),
        stop: host.stop.clone(),
    });
    let NodeParts { node, membership, identity, log, access, tls } = host.open(http, opening).await?;
    let broker = Broker { host, node, identity, drain: Drain::default(), log };
    broker.serve(&config, ordinal, membership, access, tls).await?;
    Ok(broker)
}

/// Parameters of [`open_node`].
struct NodeOptions {
    config: Arc<Config>,
    directory: Directory,
    ordinal: Ordinal,
    metrics: Arc<Metrics>,
    supervisor: Supervisor,
    stop: CancellationToken,
}

/// A node on its open disk, and the parts that it was started with.
struct NodeParts {
    node: Arc<Node>,
    membership: Arc<Membership>,
    identity: Arc<Identity>,
    log: Log,
    access: Access,
    tls: Tls,
}

/// Runs [`open_node`] on a blocking thread: replaying the log and loading the state would keep a worker thread from
/// answering probes.
async fn open_node_blocking(options: NodeOptions) -> Result<NodeParts, Error> {
    let runtime = tokio::runtime::Handle::current();
    let opening = tokio::task::spawn_blocking(move || runtime.block_on(open_node(options)));
    opening.await.map_err(Error::Opening)?
}

/// Opens the disk and starts the node on it.
async fn open_node(options: NodeOptions) -> Result<NodeParts, Error> {
    let NodeOptions { config, directory, ordinal, metrics, supervisor, stop } = options;
    let (identity, log) = open_log(&config, directory, ordinal, &metrics)?;
    info!(node = %identity.node(), ordinal = ordinal.get(), incarnation = identity.incarnation(), "disk opened");
    let tls = Tls::load(&config.paths.peer_tls, &config.cluster.uid)?;
    let greeting = identity.clone();
    let pool = Pool::new(tls.clone(), config.peers.clone(), move |_, channel| greeting.greet(channel));
    let access = Access::open(access::Options {
        data: config.paths.data.clone(),
        mount: config.paths.access.clone(),
        anonymous: config.anonymous,
        observer: Arc::new(MetricsObserver(metrics.clone())),
    });
    let (node, membership) = node::start(StartOptions {
        config: config.clone(),
        identity: identity.clone(),
        log: log.clone(),
        dir: config.paths.data.clone(),
        pool,
        observer: Arc::new(MetricsObserver(metrics)),
        tuning: Tuning::default(),
        fatal: Arc::new(|group, reason| end_process(&format!("group {group} cannot go on: {reason}"))),
        supervisor,
        shutdown: stop,
    })
    .await?;
    Ok(NodeParts { node, membership, identity, log, access, tls })
}

/// Locks the data directory and checks that it belongs to this node.
fn take_disk(config: &Config, name: &str) -> Result<Directory, Error> {
    let parse = |id: &String| Uuid::parse_str(id).map_err(|_| Error::ClusterId(id.clone()));
    let cluster_id = config.cluster.id.as_ref().map(parse).transpose()?;
    Ok(Directory::open(&config.paths.data, &Expected { cluster_id, node_name: name })?)
}

/// Opens and replays the log, then claims the disk for this process.
fn open_log(
    config: &Config,
    directory: Directory,
    ordinal: Ordinal,
    metrics: &Arc<Metrics>,
) -> Result<(Arc<Identity>, Log), Error> {
    let dir = &config.paths.data;
    let mut options = segment::Options::new(Arc::new(|error| end_process(&format!("the log failed: {error}"))));
    let synced = metrics.clone();
    options.on_sync = Arc::new(move |duration| {
        synced.storage.fsync_duration.get(StorageKind::Wal).observe(duration.as_secs_f64());
    });
    let log_dir = dir.join("log");
    let (disk, log) = match directory {
        Directory::Existing(disk) => {
            options.expect = Expect::Member;
            let (log, _) = Log::open(&log_dir, options)?;
            // After the log was opened: a disk whose log is refused is not changed.
            (disk.claim()?, log)
        }
        Directory::Fresh(fresh) => created(fresh, &log_dir, options)?,
        Directory::Left(disk) => {
            warn!(node = %disk.marker().node_id, "this node has left its cluster; its files are deleted");
            created(disk.empty()?, &log_dir, options)?
        }
    };
    Ok((Identity::new(disk, ordinal), log))
}

/// Creates the log of a node with an empty disk, then its marker.
fn created(fresh: Fresh, log_dir: &Path, mut options: segment::Options) -> Result<(Claimed, Log), Error> {
    options.expect = Expect::Newcomer;
    let (log, _) = Log::open(log_dir, options)?;
    Ok((fresh.create()?, log))
}

/// Ends the process. After a failed fsync or a broken group its state in memory may differ from the disk.
fn end_process(reason: &str) {
    error!(reason, "this process ends now; it starts again from its disk");
    std::process::exit(1);
}

impl Broker {
    async fn serve(
        &self,
        config: &Arc<Config>,
        ordinal: Ordinal,
        membership: Arc<Membership>,
        access: Access,
        tls: Tls,
    ) -> Result<(), Error> {
        let bind = |port| address(config, port, ordinal);
        self.serve_peers(bind(config.peers.port)?, membership.clone(), &tls).await?;
        self.serve_admin(bind(config.peers.admin_port)?, membership, &access, &tls, &config.paths.data).await?;
        let host = &self.host;
        host.spawn("access rules", access.clone().follow(host.stop.clone()));
        host.spawn("peer certificate", tls.clone().follow(host.stop.clone()));
        host.spawn("event loop lag", host.metrics.clone().measure_lag(host.stop.clone()));
        let (identity, stop) = (self.identity.clone(), host.stop.clone());
        host.tasks.spawn(async move {
            if stop.run_until_cancelled(identity.left()).await.is_some() {
                end_process("this node has left the cluster; its disk is emptied at the next start");
            }
        });
        let context = Context::new(
            Arc::new(self.node.sessions()),
            Arc::new(AccessGuard(access.clone())),
            Arc::new(MetricsObserver(host.metrics.clone())),
            Limits::from_config(config),
            self.drain.clone(),
        );
        for listener in &config.listeners {
            let address = bind(listener.port)?;
            let bound = Listener::bind(address, context.clone()).await;
            let bound = bound.map_err(|source| Error::Listen { address, source })?;
            info!(listener = listener.name, %address, "listening for clients");
            let stopped = self.drain.stopped().clone();
            host.tasks.spawn(host.supervisor.clone().lasting("listener", stopped, bound.run()));
        }
        let judge =
            Judge { node: self.node.clone(), metrics: host.metrics.clone(), readiness: host.readiness.clone(), access };
        host.spawn("readiness", judge.run(host.stop.clone()));
        let sampling = Sampling {
            node: self.node.clone(),
            metrics: host.metrics.clone(),
            tls,
            log: self.log.clone(),
            data: config.paths.data.clone(),
            listener: config.listeners.first().map_or_else(|| "none".to_owned(), listener_name),
            connections: Arc::new(move || context.connections()),
        };
        host.spawn("sampling", sampling.run(host.stop.clone()));
        Ok(())
    }

    async fn serve_peers(&self, address: SocketAddr, membership: Arc<Membership>, tls: &Tls) -> Result<(), Error> {
        let listener = listen(address).await?;
        let routes = node::peer_services(&self.node, membership);
        let serving = peer::serve(listener, tls.clone(), Role::Broker, routes, self.host.stop.clone());
        self.host.spawn("peer port", complain("peer", serving));
        Ok(())
    }

    async fn serve_admin(
        &self,
        address: SocketAddr,
        membership: Arc<Membership>,
        access: &Access,
        tls: &Tls,
        data: &Path,
    ) -> Result<(), Error> {
        let listener = listen(address).await?;
        let backend =
            BrokerBackend { access: access.clone(), readiness: self.host.readiness.clone(), data: PathBuf::from(data) };
        let service = AdminService { node: self.node.clone(), membership, backend: Arc::new(backend) };
        let routes = service.into_routes();
        let serving = peer::serve(listener, tls.clone(), Role::Operator, routes, self.host.stop.clone());
        self.host.spawn("admin port", complain("admin", serving));
        Ok(())
    }

    /// Stops the parts in order. The node stays a member of its cluster.
    async fn stop(self) {
        info!("stopping, clients are being disconnected");
        let host = self.host;
        host.readiness.set(Check::NotDraining, false);
        host.metrics.node.draining.set(1);
        let drain = &self.node.config().drain;
        self.drain.run(drain.rate, drain.deadline).await;
        if tokio::time::timeout(HANDOVER, self.node.transfer_leaders()).await.is_err() {
            info!("some leaderships were not transferred in time, their groups hold elections");
        }
        host.stop.cancel();
        host.tasks.close();
        self.node.stop().await;
        self.log.close();
        host.tasks.wait().await;
        self.identity.release();
        info!("stopped");
    }
}

fn listener_name(listener: &ListenerConfig) -> String {
    listener.name.clone()
}

fn address(config: &Config, port: u16, ordinal: Ordinal) -> Result<SocketAddr, Error> {
    let bind: IpAddr = config.peers.bind.parse().map_err(|_| Error::Bind(config.peers.bind.clone()))?;
    Ok(SocketAddr::new(bind, config.peers.port_of(port, ordinal.get())))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

/// Serves a port and logs its error. The end of the task ends the process.
async fn complain<E: std::fmt::Display>(port: &'static str, serving: impl Future<Output = Result<(), E>>) {
    if let Err(error) = serving.await {
        error!(port, %error, "failed to serve a port, the process ends");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Requests a path. Panics without an answer within five seconds.
    async fn get(address: SocketAddr, path: &str) -> String {
        let limit = Duration::from_secs(5);
        tokio::time::timeout(limit, answer(address, path)).await.expect("the HTTP port answers")
    }

    async fn answer(address: SocketAddr, path: &str) -> String {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_broker_whose_disk_is_being_opened_is_live_and_not_ready() {
        let host = Arc::new(Host::new(Metrics::new("0", "0").unwrap()));
        let http = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = http.local_addr().unwrap();
        let (done, replay) = tokio::sync::oneshot::channel::<()>();
        let (starting, opening) = (host.clone(), async { replay.await.map_err(|_| Error::Bind("x".into())) });
        let opened = tokio::spawn(async move { starting.open(http, opening).await });
        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        let ready = get(address, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("\ndisk\n"), "{ready}");
        let metrics = get(address, "/metrics").await;
        assert!(metrics.contains("mqtt_broker_readiness_check{check=\"disk\"} 0\n"), "{metrics}");
        done.send(()).unwrap();
        opened.await.unwrap().unwrap();
        let ready = get(address, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503") && !ready.contains("\ndisk\n"), "{ready}");
        host.stop.cancel();
        host.tasks.close();
        host.tasks.wait().await;
    }

    #[tokio::test]
    async fn a_disk_that_is_refused_ends_the_start() {
        let host = Host::new(Metrics::new("0", "0").unwrap());
        let http = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let refused = host.open(http, std::future::ready(Err::<(), _>(Error::Name("x".into())))).await;
        assert!(matches!(refused, Err(Error::Name(_))));
        assert!(host.readiness.failing().contains(&Check::Disk));
    }

    #[test]
    fn the_ordinal_is_the_end_of_the_name() {
        assert_eq!(ordinal_of("prod-eu-12").unwrap(), Ordinal::new(12));
        assert!(ordinal_of("prod").is_err());
    }
}
