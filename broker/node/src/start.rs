//! Construction of a node and start of its tasks.
//!
//! ```text
//! applied states, channels -> groups (replay) -> Router, RetainedMessages, Network -> Node -> tasks
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use covey_contract::config::Config;
use covey_core::shard::Effect;
use covey_log::segment::Log;
use covey_peer::Pool;
use covey_raft::{Channels, Fatal, RaftGroups, StartError, StateMachine, Tuning};
use covey_supervise::Supervisor;
use covey_types::{GroupId, NodeId, ShardId};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::holder_context::NodeHolderContext;
use crate::leader_context::NodeLeaderContext;
use crate::lease::{Grantor, Holder, Lease, Request};
use crate::membership::{Identity, Membership};
use crate::network::Network;
use crate::node::Node;
use crate::observer::Observer;
use crate::publish::{Job, RetainedMessages, Router, WillPublisher};
use crate::session::{NodeSessions, Registry, SessionContext};
use crate::shard::{Inbound, Leader, ShardClient};
use crate::state::{MetaMachine, RetainedMachine, ShardMachine, SharedMeta, SharedRetained, SharedShard};
use crate::tasks::Tasks;
use crate::transient::{Filters, Incoming, Peers};

/// What a node is built from.
pub struct StartOptions {
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

impl std::fmt::Debug for StartOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StartOptions").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Applied states of the groups, shared between the groups and the node.
struct States {
    meta: Arc<SharedMeta>,
    retained: Arc<SharedRetained>,
    /// By shard number.
    shards: Vec<Arc<SharedShard>>,
}

/// Inputs of the task of a shard's leader.
struct LeaderInputs {
    effects: mpsc::UnboundedReceiver<Vec<Effect>>,
    inbound: mpsc::UnboundedReceiver<Inbound>,
}

/// Inputs of the tasks that start once the node is built.
struct Inputs {
    /// By shard number.
    leaders: Vec<LeaderInputs>,
    /// Of the task that commits retained messages.
    writes: mpsc::UnboundedReceiver<Job>,
    /// Of the lease grantor.
    requests: mpsc::Receiver<Request>,
}

/// A node and its membership.
pub type Started = (Arc<Node>, Arc<Membership>);

/// Starts a node: opens the state, replays the log and starts all tasks. The node serves clients when it holds a
/// lease.
///
/// # Errors
/// Returns [`StartError`] if the state store cannot be opened or a group cannot be started.
pub fn start(options: StartOptions) -> BoxFuture<'static, Result<Started, StartError>> {
    Box::pin(async move {
        let StartOptions { config, identity, log, dir, pool, observer, tuning, fatal, supervisor, shutdown } = options;
        let (states, leaders, inputs) = applied_states(&config);
        let channels: Arc<dyn Channels> = Arc::new(pool.clone());
        let id = identity.node();
        let raft = RaftGroups::start(covey_raft::Options {
            node: id,
            dir,
            log,
            timing: config.raft.clone(),
            tuning,
            channels: channels.clone(),
            machines: machines(&states),
            fatal,
            supervisor: supervisor.clone(),
            shutdown: shutdown.clone(),
        })
        .await?;
        let tasks = Tasks::new(supervisor, shutdown);
        let (grantor, requests) = mpsc::channel(1024);
        let (retained, writes) = RetainedMessages::new(id, raft.clone(), states.retained.clone());
        let network = Network::new(id, raft.clone(), states.meta.clone(), channels, leaders, grantor, tasks.clone());
        let node = Parts { config, id, raft, states, retained, network, observer, tasks }.build();
        spawn_tasks(&node, Inputs { leaders: inputs, writes, requests }, identity.incarnation());
        let membership = Membership::new(node.clone(), identity, pool);
        node.tasks.spawn_lasting("membership", membership.clone().run());
        Ok((node, membership))
    })
}

/// Returns the empty states of all groups, and both ends of the leaders' inputs.
fn applied_states(config: &Config) -> (States, Vec<mpsc::UnboundedSender<Inbound>>, Vec<LeaderInputs>) {
    let (mut shards, mut leaders, mut inputs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in ShardId::all(config.cluster.shards) {
        let (state, effects) = SharedShard::new();
        let (leader, inbound) = mpsc::unbounded_channel();
        shards.push(state);
        leaders.push(leader);
        inputs.push(LeaderInputs { effects, inbound });
    }
    let retained = SharedRetained::new(config.mqtt.max_retained_bytes);
    (States { meta: SharedMeta::new(), retained, shards }, leaders, inputs)
}

/// Returns the state machine of each group.
fn machines(states: &States) -> Vec<(GroupId, Box<dyn StateMachine>)> {
    let mut machines: Vec<(GroupId, Box<dyn StateMachine>)> = vec![
        (GroupId::META, Box::new(MetaMachine(states.meta.clone()))),
        (GroupId::RETAINED, Box::new(RetainedMachine(states.retained.clone()))),
    ];
    for (number, state) in (0..).zip(&states.shards) {
        machines.push((GroupId::shard(ShardId::new(number)), Box::new(ShardMachine(state.clone()))));
    }
    machines
}

/// Parts of which [`Node`] consists.
struct Parts {
    config: Arc<Config>,
    id: NodeId,
    raft: RaftGroups,
    states: States,
    retained: Arc<RetainedMessages>,
    network: Arc<Network>,
    observer: Arc<dyn Observer>,
    tasks: Tasks,
}

impl Parts {
    fn build(self) -> Arc<Node> {
        let Self { config, id, raft, states, retained, network, observer, tasks } = self;
        let filters = Filters::new();
        let registry = Registry::new(filters.clone(), observer.clone());
        let deliver = registry.clone();
        let incoming = Incoming::new(filters.clone(), Arc::new(move |message| deliver.deliver(&message)));
        let lease = Lease::new();
        let router = Arc::new(Router {
            meta: states.meta.clone(),
            shards: ShardId::all(config.cluster.shards).map(|shard| ShardClient::new(shard, id)).collect(),
            peers: Peers::new(id, states.meta.clone()),
            sessions: registry.clone(),
            lease: lease.clone(),
            observer: observer.clone(),
        });
        let sessions = NodeSessions::new(SessionContext {
            node: id,
            config: config.clone(),
            lease: lease.clone(),
            router: router.clone(),
            retained: retained.clone(),
            registry,
            filters: filters.clone(),
            incoming: incoming.clone(),
            observer,
            connections: AtomicU64::new(1),
            tasks: tasks.clone(),
        });
        let (meta, replicas) = (states.meta, states.shards);
        Arc::new(Node {
            id,
            config,
            raft,
            meta,
            replicas,
            lease,
            router,
            retained,
            sessions,
            filters,
            incoming,
            network,
            tasks,
        })
    }
}

fn spawn_tasks(node: &Node, inputs: Inputs, incarnation: u64) {
    spawn_leaders(node, inputs.leaders);
    for client in &node.router.shards {
        let run = client.clone().run(node.network.clone(), node.router.sessions.clone(), node.tasks.shutdown().clone());
        node.tasks.spawn_lasting("shard client", run);
    }
    let fence = &node.config.fence;
    let grantor = Grantor {
        raft: node.raft.clone(),
        meta: node.meta.clone(),
        lease: fence.lease,
        close_clients_after: fence.close_clients_after,
        requests: inputs.requests,
        shutdown: node.tasks.shutdown().clone(),
    };
    node.tasks.spawn_lasting("lease grantor", grantor.run());
    let context = NodeHolderContext {
        network: node.network.clone(),
        router: node.router.clone(),
        retained: node.retained.clone(),
        filters: node.filters.clone(),
        incoming: node.incoming.clone(),
        tasks: node.tasks.clone(),
        lease: fence.lease,
        epoch_over: Mutex::default(),
    };
    let holder = Holder {
        lease: node.lease.clone(),
        raft: node.raft.clone(),
        node: node.id,
        incarnation,
        duration: fence.lease,
        close_clients_after: fence.close_clients_after,
        context: Arc::new(context),
        shutdown: node.tasks.shutdown().clone(),
    };
    node.tasks.spawn_lasting("lease holder", holder.run());
    let run = node.retained.clone().run(inputs.writes, node.tasks.shutdown().clone());
    node.tasks.spawn_lasting("retained writer", run);
}

/// Starts the task of each shard's leader, which sleeps while another node leads the shard.
fn spawn_leaders(node: &Node, inputs: Vec<LeaderInputs>) {
    let wills =
        WillPublisher { router: node.router.clone(), retained: node.retained.clone(), lease: node.lease.clone() };
    let context = Arc::new(NodeLeaderContext {
        raft: node.raft.clone(),
        network: node.network.clone(),
        retained: node.retained.clone(),
        wills: Arc::new(wills),
        observer: node.router.observer.clone(),
        lease: node.config.fence.lease,
    });
    let shards = ShardId::all(node.config.cluster.shards).zip(&node.replicas);
    for ((shard, replica), inputs) in shards.zip(inputs) {
        let Some(rows) = node.raft.rows(GroupId::shard(shard)) else {
            error!(shard = shard.get(), "the shard's group is not running; the shard is not led here");
            continue;
        };
        let leader = Leader {
            shard,
            raft: node.raft.clone(),
            rows,
            replica: replica.clone(),
            meta: node.meta.clone(),
            context: context.clone(),
            inbound: inputs.inbound,
            effects: inputs.effects,
            shutdown: node.tasks.shutdown().clone(),
            order: 0,
        };
        node.tasks.spawn_lasting("shard leader", leader.run());
    }
}
