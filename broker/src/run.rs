//! A broker, from its configuration to its end.
//!
//! ```text
//!  disk (whose is it?) -> log -> TLS, pool -> node -> peer and admin ports -> HTTP -> listeners
//!  shutdown: not ready -> clients drained -> leaderships handed away -> everything stops; the node stays a member
//! ```

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use covey_contract::config::{Config, Listener as ListenerConfig};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};
use uuid::Uuid;

use crate::access::{self, Access};
use crate::admin::AdminService;
use crate::cluster::{StartError, Tuning};
use crate::connection::{Context, Drain, Limits};
use crate::gauges::Gauges;
use crate::glue::{Counting, Door, NodeFacts};
use crate::http::{self, Readiness};
use crate::listener::Listener;
use crate::metrics::{Check, Metrics, StorageKind};
use crate::node::{self, Identity, Membership, Node, NodeSessions, Parts};
use crate::peer::{self, Pool, Role, Tls, TlsError};
use crate::storage::marker::{self, Directory, Expected};
use crate::storage::segment::{self, Expect, Log};

/// How long leaderships may take to move when the node stops.
const HANDOVER: Duration = Duration::from_secs(5);

/// What a broker is started with.
#[derive(Debug)]
pub struct Options {
    pub config: Config,
    /// Name of the node; it ends in its ordinal, as pods of a StatefulSet do.
    pub name: String,
    /// What the program was built from.
    pub commit: String,
}

/// Why a broker could not start, or had to end. The texts name the file and the next step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the node's name {0:?} does not end in its ordinal (as in prod-0)")]
    Name(String),
    #[error("the cluster id {0:?} in the configuration is not a UUID")]
    ClusterId(String),
    #[error(transparent)]
    Disk(#[from] marker::Error),
    #[error(transparent)]
    Log(#[from] segment::OpenError),
    #[error("failed to load the peer certificate: {0}")]
    Tls(#[from] TlsError),
    #[error("failed to start the Raft groups: {0}")]
    Groups(#[from] StartError),
    #[error("failed to register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("failed to listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the address to listen on, {0:?}, is not an IP address")]
    Bind(String),
}

/// The parts that stop in order.
struct Broker {
    node: Arc<Node>,
    identity: Arc<Identity>,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    drain: Drain,
    log: Log,
    tasks: TaskTracker,
    /// Ends the ports and tasks, after the clients have gone.
    stop: CancellationToken,
}

/// Runs a broker until `shutdown`; a stopped node stays a member of its cluster.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let broker = start(options).await?;
    shutdown.cancelled().await;
    broker.stop().await;
    Ok(())
}

/// The ordinal at the end of a node's name.
pub fn ordinal_of(name: &str) -> Result<u32, Error> {
    let ordinal = name.rsplit_once('-').and_then(|(_, ordinal)| ordinal.parse().ok());
    ordinal.ok_or_else(|| Error::Name(name.to_owned()))
}

async fn start(options: Options) -> Result<Broker, Error> {
    let Options { config, name, commit } = options;
    let ordinal = ordinal_of(&name)?;
    let config = Arc::new(config);
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), &commit)?;
    let (identity, log) = open_disk(&config, &name, ordinal, &metrics)?;
    info!(node = format!("{:016x}", identity.node), ordinal, incarnation = identity.incarnation, "disk opened");
    let tls = Tls::load(&config.paths.peer_tls, &config.cluster.uid)?;
    let greeting = identity.clone();
    let pool = Pool::new(tls.clone(), config.peers.clone(), move |_, channel| greeting.greet(channel));
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let readiness = Readiness::new(metrics.clone());
    readiness.set(Check::NotDraining, true);
    let access = Access::open(access::Options {
        data: config.paths.data.clone(),
        mount: config.paths.access.clone(),
        anonymous: config.anonymous,
        metrics: metrics.clone(),
    });
    let (node, membership) = node::start(Parts {
        config: config.clone(),
        identity: identity.clone(),
        log: log.clone(),
        dir: config.paths.data.clone(),
        pool,
        observer: Arc::new(Counting(metrics.clone())),
        tuning: Tuning::default(),
        fatal: Arc::new(|group, reason| end_process(&format!("group {group} cannot go on: {reason}"))),
        shutdown: stop.clone(),
    })
    .await?;
    let broker = Broker { node, identity, readiness, metrics, drain: Drain::default(), log, tasks, stop };
    broker.serve(&config, ordinal, membership, access, tls).await?;
    Ok(broker)
}

/// Opens the data directory: whose is it, and what does its log say.
fn open_disk(config: &Config, name: &str, ordinal: u32, metrics: &Arc<Metrics>) -> Result<(Arc<Identity>, Log), Error> {
    let parse = |id: &String| Uuid::parse_str(id).map_err(|_| Error::ClusterId(id.clone()));
    let cluster_id = config.cluster.id.as_ref().map(parse).transpose()?;
    let dir = &config.paths.data;
    let directory = Directory::open(dir, &Expected { cluster_id, node_name: name })?;
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
            // Only now: a disk whose log is refused stays as it was.
            (disk.claim()?, log)
        }
        Directory::Fresh(fresh) => {
            options.expect = Expect::Newcomer;
            let (log, _) = Log::open(&log_dir, options)?;
            (fresh.create()?, log)
        }
    };
    Ok((Identity::new(disk, ordinal), log))
}

/// After a failed fsync or a broken group nothing that this process says can be believed.
fn end_process(reason: &str) {
    error!(reason, "this process ends now; it starts again from its disk");
    std::process::exit(1);
}

impl Broker {
    async fn serve(
        &self,
        config: &Arc<Config>,
        ordinal: u32,
        membership: Arc<Membership>,
        access: Access,
        tls: Tls,
    ) -> Result<(), Error> {
        let bind = |port| address(config, port, ordinal);
        self.serve_peers(bind(config.peers.port)?, membership.clone(), &tls).await?;
        self.serve_admin(bind(config.peers.admin_port)?, membership, &access, &tls, &config.paths.data).await?;
        let http = listen(bind(config.peers.http_port)?).await?;
        self.tasks.spawn(complain(
            "HTTP",
            http::serve(http, self.metrics.clone(), self.readiness.clone(), self.stop.clone()),
        ));
        self.tasks.spawn(access.clone().follow(self.stop.clone()));
        self.tasks.spawn(tls.clone().follow(self.stop.clone()));
        self.tasks.spawn(self.metrics.clone().measure_lag(self.stop.clone()));
        let context = Context::new(
            Arc::new(NodeSessions(self.node.clone())),
            Arc::new(Door(access.clone())),
            Arc::new(Counting(self.metrics.clone())),
            Limits::from_config(config),
            self.drain.clone(),
        );
        for listener in &config.listeners {
            let address = bind(listener.port)?;
            let bound = Listener::bind(address, context.clone()).await;
            let bound = bound.map_err(|source| Error::Listen { address, source })?;
            info!(listener = listener.name, %address, "listening for clients");
            self.tasks.spawn(bound.run());
        }
        let gauges = Gauges {
            node: self.node.clone(),
            metrics: self.metrics.clone(),
            readiness: self.readiness.clone(),
            access,
            tls,
            log: self.log.clone(),
            data: config.paths.data.clone(),
            listener: config.listeners.first().map_or_else(|| "none".to_owned(), listener_name),
            connections: Arc::new(move || context.connections()),
        };
        self.tasks.spawn(gauges.run(self.stop.clone()));
        Ok(())
    }

    async fn serve_peers(&self, address: SocketAddr, membership: Arc<Membership>, tls: &Tls) -> Result<(), Error> {
        let listener = listen(address).await?;
        let routes = node::peer_routes(self.node.clone(), membership);
        self.tasks.spawn(complain("peer", peer::serve(listener, tls.clone(), Role::Broker, routes, self.stop.clone())));
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
        let facts = NodeFacts { access: access.clone(), readiness: self.readiness.clone(), data: PathBuf::from(data) };
        let service = AdminService { node: self.node.clone(), membership, facts: Arc::new(facts) };
        let routes = service.into_routes();
        self.tasks
            .spawn(complain("admin", peer::serve(listener, tls.clone(), Role::Operator, routes, self.stop.clone())));
        Ok(())
    }

    /// Stops in order; SIGTERM means stop, never leave.
    async fn stop(self) {
        info!("stopping: clients are sent away");
        self.readiness.set(Check::NotDraining, false);
        self.metrics.node.draining.set(1);
        let drain = &self.node.config.drain;
        self.drain.run(drain.rate, drain.deadline).await;
        if tokio::time::timeout(HANDOVER, self.node.transfer_leaders()).await.is_err() {
            info!("some leaderships were not taken in time; their groups elect");
        }
        self.stop.cancel();
        self.tasks.close();
        self.node.tasks.close();
        self.node.tasks.wait().await;
        self.node.cluster.stop().await;
        self.log.close();
        self.tasks.wait().await;
        self.identity.release();
        info!("stopped");
    }
}

fn listener_name(listener: &ListenerConfig) -> String {
    listener.name.clone()
}

fn address(config: &Config, port: u16, ordinal: u32) -> Result<SocketAddr, Error> {
    let bind: IpAddr = config.peers.bind.parse().map_err(|_| Error::Bind(config.peers.bind.clone()))?;
    Ok(SocketAddr::new(bind, config.peers.port_of(port, ordinal)))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

/// A port that fails while the broker runs says so.
async fn complain<E: std::fmt::Display>(port: &'static str, serving: impl Future<Output = Result<(), E>>) {
    if let Err(error) = serving.await {
        error!(port, %error, "a port is not served any more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ordinal_is_the_end_of_the_name() {
        assert_eq!(ordinal_of("prod-eu-12").unwrap(), 12);
        assert!(ordinal_of("prod").is_err());
    }
}
