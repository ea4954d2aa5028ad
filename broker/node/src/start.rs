//! Construction of a node and start of its tasks.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use covey_contract::config::Config;
use covey_contract::proto::peer_server::PeerServer;
use covey_log::segment::Log;
use covey_peer::Pool;
use covey_raft::{Cluster, Fatal, MAX_MESSAGE, Machine, StartError, Tuning};
use covey_supervise::Supervisor;
use covey_types::{GroupId, ShardId};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

use super::lease::{Grantor, Holder, Lease};
use super::membership::{Identity, Membership};
use super::registry::Registry;
use super::server::PeerService;
use super::services::Handle;
use super::shard::{Client, Inbound, Leader};
use super::state::{MetaMachine, RetainedMachine, ShardMachine, SharedMeta, SharedRetained, SharedShard};
use super::transient::{Filters, Incoming, Peers};
use super::{Node, Observer, retained};

/// What a node is built from.
pub struct Parts {
    /// The broker's configuration.
    pub config: Arc<Config>,
    /// The claimed data directory, with node id and incarnation.
    pub identity: Arc<Identity>,
    /// The opened segment log.
    pub log: Log,
    /// Directory of the state store and the snapshots.
    pub dir: PathBuf,
    /// Connections to other nodes.
    pub pool: Pool,
    /// Counts events of the node.
    pub observer: Arc<dyn Observer>,
    /// Thresholds of snapshots and of the log.
    pub tuning: Tuning,
    /// Called if a group cannot continue.
    pub fatal: Fatal,
    /// Watches tasks that the node cannot do without.
    pub supervisor: Supervisor,
    /// Stops the node.
    pub shutdown: CancellationToken,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// A shard's state, and the inputs of its leader.
struct ShardParts {
    state: Arc<SharedShard>,
    effects: mpsc::UnboundedReceiver<Vec<covey_core::shard::Effect>>,
    inbound: mpsc::UnboundedReceiver<Inbound>,
}

/// Starts a node: opens the state, replays the log and starts all tasks. The node serves clients when it holds a
/// lease.
///
/// # Errors
/// Returns [`StartError`] if the state store cannot be opened or a group cannot be started.
pub async fn start(parts: Parts) -> Result<(Arc<Node>, Arc<Membership>), StartError> {
    let Parts { config, identity, log, dir, pool, observer, tuning, fatal, supervisor, shutdown } = parts;
    let (meta, retained_state) = (SharedMeta::new(), SharedRetained::new(config.mqtt.max_retained_bytes));
    let mut machines: Vec<(GroupId, Box<dyn Machine>)> = vec![
        (GroupId::META, Box::new(MetaMachine(meta.clone()))),
        (GroupId::RETAINED, Box::new(RetainedMachine(retained_state.clone()))),
    ];
    let (mut shards, mut leaders) = (Vec::new(), Vec::new());
    for shard in ShardId::all(config.cluster.shards) {
        let (state, effects) = SharedShard::new();
        let (leader, inbound) = mpsc::unbounded_channel();
        machines.push((GroupId::shard(shard), Box::new(ShardMachine(state.clone()))));
        shards.push(ShardParts { state, effects, inbound });
        leaders.push(leader);
    }
    let channels: Arc<dyn covey_raft::Channels> = Arc::new(pool.clone());
    let cluster = Cluster::start(covey_raft::Options {
        node: identity.node,
        dir,
        log,
        timing: config.raft.clone(),
        tuning,
        channels: channels.clone(),
        machines,
        fatal,
        supervisor: supervisor.clone(),
        shutdown: shutdown.clone(),
    })
    .await?;
    let states = shards.iter().map(|shard| shard.state.clone()).collect();
    let (grantor, requests) = mpsc::channel(1024);
    let (writer, writes) = retained::Writer::new();
    let filters = Filters::new();
    let registry = Registry::new(filters.clone(), observer.clone());
    let deliver = registry.clone();
    let node = Arc::new(Node {
        id: identity.node,
        shards: ShardId::all(config.cluster.shards).map(|shard| Client::new(shard, identity.node)).collect(),
        incoming: Incoming::new(filters.clone(), Arc::new(move |message| deliver.deliver(&message))),
        peers: Peers::new(identity.node, meta.clone()),
        config,
        cluster,
        metrics: observer,
        tasks: TaskTracker::new(),
        supervisor,
        lease: Lease::new(),
        meta,
        retained: retained_state,
        writer,
        states,
        leaders,
        grantor,
        registry,
        filters,
        channels,
        connections: AtomicU64::new(1),
        links: AtomicU64::new(1),
        epoch_over: Mutex::default(),
        shutdown,
    });
    spawn_tasks(&node, shards, writes, requests, &identity);
    let membership = Arc::new(Membership { node: node.clone(), identity, pool });
    node.spawn_lasting("membership", membership.clone().run());
    Ok((node, membership))
}

fn spawn_tasks(
    node: &Arc<Node>,
    shards: Vec<ShardParts>,
    writes: mpsc::UnboundedReceiver<retained::Job>,
    requests: mpsc::Receiver<super::lease::Request>,
    identity: &Identity,
) {
    let handle = Arc::new(Handle(node.clone()));
    for (shard, parts) in node.shard_ids().zip(shards) {
        let Some(rows) = node.cluster.rows(GroupId::shard(shard)) else {
            error!(shard = shard.get(), "the shard's group is not running; the shard is not led here");
            continue;
        };
        let leader = Leader {
            shard,
            cluster: node.cluster.clone(),
            rows,
            replica: parts.state,
            meta: node.meta.clone(),
            context: handle.clone(),
            inbound: parts.inbound,
            effects: parts.effects,
            shutdown: node.shutdown.clone(),
            order: 0,
        };
        node.spawn_lasting("shard leader", leader.run());
    }
    for client in &node.shards {
        let client = client.clone();
        node.spawn_lasting("shard client", client.run(handle.clone(), handle.clone(), node.shutdown.clone()));
    }
    let grantor = Grantor {
        cluster: node.cluster.clone(),
        meta: node.meta.clone(),
        lease: node.config.fence.lease,
        close_clients_after: node.config.fence.close_clients_after,
        requests,
        shutdown: node.shutdown.clone(),
    };
    node.spawn_lasting("lease grantor", grantor.run());
    let holder = Holder {
        lease: node.lease.clone(),
        cluster: node.cluster.clone(),
        node: node.id,
        incarnation: identity.incarnation,
        duration: node.config.fence.lease,
        close_clients_after: node.config.fence.close_clients_after,
        transport: handle,
        shutdown: node.shutdown.clone(),
    };
    node.spawn_lasting("lease holder", holder.run());
    let (writer, cluster) = (node.writer.clone(), node.cluster.clone());
    let (retained_state, shutdown) = (node.retained.clone(), node.shutdown.clone());
    node.spawn_lasting("retained writer", retained::run(writes, writer, cluster, retained_state, shutdown));
}

/// Returns the gRPC routes of the peer port.
pub fn peer_routes(node: Arc<Node>, membership: Arc<Membership>) -> tonic::service::Routes {
    let service = PeerServer::new(PeerService { node, membership })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    tonic::service::Routes::new(service)
}
