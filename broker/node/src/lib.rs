//! The node: everything between client connections and the cluster runtime.
//!
//! ```text
//! connection ── session ─┬─ publish ── routes (meta), peers' filters, local filters
//!                        │      └── shard::Client ══ shard::Leader (on this node or another one)
//!                        │      └── transient::Outgoing ══ transient::Incoming (on other nodes)
//!                        └─ registry of local sessions ── state
//! lease::Holder ── renews at ── lease::Grantor (meta leader)     membership ── formation, joining, voters
//! ```
//! Invariant: nothing is acknowledged to a client unless the node held its lease after the work was done.
//!
//! This crate owns leases, shards, publishes, transient sessions and membership. It does not own the protocol of clients
//! (`covey-mqtt`, whose traits it implements), replication (`covey-raft`) or the replicated state machines
//! (`covey-core`). Start reading at [`start`](fn@start) and [`NodeSessions`].

mod channel;
mod clock;
#[cfg(test)]
mod format;
mod inflight;
mod lease;
mod membership;
mod message;
mod network;
mod publish;
mod registry;
mod retained;
mod server;
mod services;
mod session;
mod shard;
mod start;
mod state;
mod transient;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use covey_codec::ReasonCode;
use covey_contract::config::Config;
use covey_core::shard::{Claim, Claimed, End, Limits, Operation, Outcome, Will};
use covey_mqtt::session::{Close, ConnectRequest, Connected, Message, Sessions};
use covey_raft::{Channels, Cluster};
use covey_supervise::{Supervisor, contained};
use covey_types::{ConnectionId, GroupId, NodeEpoch, NodeId, Ordinal, ShardId};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

pub use membership::{FormError, Identity, Membership};
pub use session::NodeSession;
pub use start::{Parts, peer_routes, start};

use inflight::Inflight;
use lease::Lease;
use registry::{EVENT_CAPACITY, LocalSession, Registry, SessionState};
use shard::{Inbound, LinkId};
use state::{SharedMeta, SharedRetained};
use transient::{Filters, Incoming, Peers, TransientSession};

/// A replica that lacks at most this many entries counts as in sync.
const IN_SYNC_LAG: u64 = 100;
/// Time that a CONNECT waits for its shard.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);

/// Counts events of the node. Methods may be called from any task and must not block.
pub trait Observer: Send + Sync + 'static {
    /// A QoS 0 message was dropped because its receiver is not reachable, or because too many wait to be routed.
    fn dropped_unreachable(&self);
    /// A QoS 0 message was dropped because the client's connection is too slow.
    fn dropped_slow(&self);
    /// `count` full inboxes did not take a message.
    fn missed(&self, count: u64);
}

/// One broker of the cluster: state that its connections, leaders and streams share.
pub struct Node {
    /// Node id, made once per data directory.
    pub id: NodeId,
    /// The broker's configuration.
    pub config: Arc<Config>,
    /// The Raft groups.
    pub cluster: Cluster,
    /// Counts events of the node.
    pub metrics: Arc<dyn Observer>,
    /// All tasks of the node, to wait for them at its end.
    pub tasks: TaskTracker,
    /// Ends the process if a task fails that the node cannot do without.
    supervisor: Supervisor,
    /// This node's epoch and lease.
    pub lease: Arc<Lease>,
    /// Applied state of the meta group: members, epochs and routes.
    meta: Arc<SharedMeta>,
    /// Applied state of the retained group.
    retained: Arc<SharedRetained>,
    /// Numbers and commits this node's retained messages.
    writer: Arc<retained::Writer>,
    /// Client of each shard, by shard number.
    shards: Vec<Arc<shard::Client>>,
    /// Applied state of each shard, by shard number; without meaning where this node has no replica.
    states: Vec<Arc<state::SharedShard>>,
    /// Inputs of the leader tasks of this node, by shard number.
    leaders: Vec<mpsc::UnboundedSender<Inbound>>,
    /// Input of the lease grantor, which answers while this node leads meta.
    grantor: mpsc::Sender<lease::Request>,
    /// Sessions whose connections are on this node.
    registry: Arc<Registry>,
    /// Subscriptions of the transient sessions on this node.
    filters: Arc<Filters>,
    /// Streams on which this node publishes to the transient sessions of others.
    peers: Arc<Peers>,
    /// Streams on which other nodes publish to the transient sessions here.
    incoming: Arc<Incoming>,
    /// Connections to other nodes.
    channels: Arc<dyn Channels>,
    /// Number of the next client connection.
    connections: AtomicU64,
    /// Number of the next link.
    links: AtomicU64,
    /// Cancelled when the current epoch ends.
    epoch_over: Mutex<CancellationToken>,
    /// Cancelled when the node stops.
    shutdown: CancellationToken,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Node {
    /// Index of the shard of a client id. Never changes: `crc32c(client id) mod shards` is part of the format on disk
    /// (docs/clustering.md#groups).
    fn shard_index(&self, client: &str) -> usize {
        crc32c::crc32c(client.as_bytes()) as usize % self.shards.len().max(1)
    }

    fn shard_of(&self, client: &str) -> &shard::Client {
        let shard = self.shards.get(self.shard_index(client));
        shard.unwrap_or_else(|| unreachable!("the configuration was checked: there is at least one shard"))
    }

    /// Starts the task of one client or one stream. It ends with the node; a panic affects only what the task owns.
    pub(crate) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            shutdown.run_until_cancelled(contained(name, task)).await;
        });
    }

    /// Starts a task that the node cannot do without.
    pub(crate) fn spawn_lasting(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.supervisor.clone().lasting(name, self.shutdown.clone(), task));
    }

    fn next_link(&self) -> LinkId {
        self.links.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits until the change of this node's transient filters is known on every node that may hold a lease.
    async fn known_everywhere(&self, epoch: NodeEpoch, change: u64) -> Result<(), lease::EpochOver> {
        let mut leased = self.lease.leased_from_now(epoch).await?;
        leased.retain(|node| *node != self.id);
        let patience = self.config.fence.lease / 6;
        loop {
            tokio::select! {
                () = self.incoming.known_by(&leased, change) => return Ok(()),
                // A node that does not answer may have lost its lease in the meantime.
                () = tokio::time::sleep(patience) => {
                    leased = self.lease.leased_from_now(epoch).await?;
                    leased.retain(|node| *node != self.id);
                }
            }
        }
    }

    /// Commits a claim. Returns `None` if the shard did not answer in time; a claim that is committed later is ended
    /// at once.
    async fn claim(self: &Arc<Self>, claim: Claim) -> Option<Outcome> {
        let client = claim.client.clone();
        let until = tokio::time::Instant::now() + CLAIM_TIMEOUT;
        let mut answer = self.shard_of(&client).call_until(Operation::Claim(claim), Some(until));
        tokio::select! {
            outcome = &mut answer => outcome.ok(),
            () = tokio::time::sleep_until(until) => {
                let node = self.clone();
                self.spawn("late claim", async move {
                    if let Ok(Outcome::Claimed(claimed)) = answer.await {
                        let end = End { client, owner: claimed.owner, expiry: None, drop_will: true };
                        let shard = node.shard_of(&end.client);
                        drop(shard.call(Operation::End(end)));
                    }
                });
                None
            }
        }
    }

    fn claim_of(&self, request: &ConnectRequest, epoch: NodeEpoch, connection: ConnectionId) -> Claim {
        let sessions = &self.config.sessions;
        Claim {
            client: request.client_id.as_str().into(),
            principal: request.principal.as_ref().into(),
            node: self.id,
            epoch,
            connection,
            clean_start: request.clean_start,
            expiry: seconds(request.expiry),
            will: request.will.as_ref().map(|will| will_of(will, request.will_delay)),
            limits: Limits {
                messages: sessions.max_queued_messages,
                bytes: sessions.max_queued_bytes,
                subscriptions: sessions.max_subscriptions,
            },
        }
    }

    /// Registers a session whose claim is committed and returns it for the connection.
    fn open(
        self: &Arc<Self>,
        request: &ConnectRequest,
        claimed: &Claimed,
        epoch: NodeEpoch,
        connection: ConnectionId,
    ) -> Connected<NodeSession> {
        let (events, receiver) = mpsc::channel(EVENT_CAPACITY);
        let state = if claimed.durable {
            SessionState::Durable(Inflight::default())
        } else {
            SessionState::Transient(TransientSession::new(connection, request.receive_maximum))
        };
        let client: Box<str> = request.client_id.as_str().into();
        let local = Arc::new(LocalSession {
            client: client.clone(),
            principal: request.principal.clone(),
            owner: claimed.owner,
            epoch,
            connection,
            events: Mutex::new(Some(events)),
            state: Mutex::new(state),
        });
        self.registry.insert(local.clone());
        if !self.lease.is_valid(epoch) && self.lease.epoch() != Some(epoch) {
            self.registry.close(&local, Close::Fenced);
        }
        let window = request.receive_maximum;
        self.shard_of(&client).hold(wire::HeldSession { client, owner: claimed.owner, window });
        Connected {
            session_present: claimed.present,
            filters: claimed.filters.iter().map(|filter| message::text(filter)).collect(),
            session: NodeSession { node: self.clone(), local, queue: Arc::default() },
            events: receiver,
        }
    }

    /// Returns the number of sessions that connections of this node hold.
    pub fn sessions_here(&self) -> usize {
        self.registry.len()
    }

    /// Returns the number of sessions on this node, by user name.
    pub fn clients_by_user(&self) -> std::collections::HashMap<String, u32> {
        self.registry.by_user()
    }

    /// Returns the number of members that this node hears, itself included, and the number of members of the cluster.
    pub fn members_heard(&self) -> (usize, usize) {
        let members = self.meta.machine.read().members().filter(|(_, member)| !member.removed).count();
        (1 + self.peers.heard(self.config.fence.lease).len(), members)
    }

    /// Returns totals of the durable sessions in the shards that this node leads. Takes each shard's lock for a pass
    /// over its sessions.
    pub fn durable_totals(&self) -> Durables {
        let mut totals = Durables::default();
        let led = |shard| self.cluster.leadership(GroupId::shard(shard)).borrow().ours;
        for (state, _) in self.states.iter().zip(self.shard_ids()).filter(|(_, shard)| led(*shard)) {
            let machine = state.machine.lock();
            machine
                .sessions()
                .filter(|(_, session)| session.profile.durable)
                .for_each(|(_, session)| totals.add(session));
        }
        totals
    }

    /// Returns the number of transient sessions on this node.
    pub fn transient_sessions(&self) -> usize {
        self.registry.transient()
    }

    /// Returns whether this node knows the leader of a group. It cannot know that of a group that it does not hold.
    pub fn knows_leader(&self, group: GroupId) -> bool {
        self.cluster.leadership(group).borrow().leader.is_some()
    }

    /// Groups of which this node is a voter or a learner.
    pub fn groups_held(&self) -> impl Iterator<Item = GroupId> {
        let members = self.members_by_ordinal();
        self.groups().filter(move |group| self.holds(*group, &members))
    }

    /// Returns whether this node has a replica of the group. A node that was removed from a group may never receive
    /// the entry that removes it and still list itself, so the placement must name it as well, unless it still leads.
    fn holds(&self, group: GroupId, members: &BTreeMap<Ordinal, NodeId>) -> bool {
        let status = self.cluster.status(group);
        if !status.has_member(self.id) {
            return false;
        }
        let (voters, learners) = membership::placement(group, members);
        // Before the cluster is formed meta has no members.
        members.is_empty()
            || voters.contains_key(&self.id)
            || learners.contains_key(&self.id)
            || self.cluster.leadership(group).borrow().ours
    }

    /// Groups that this node leads.
    pub fn groups_led(&self) -> impl Iterator<Item = GroupId> {
        self.groups().filter(|group| self.cluster.leadership(*group).borrow().ours)
    }

    /// All groups of the cluster.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        [GroupId::META, GroupId::RETAINED].into_iter().chain(self.shard_ids().map(GroupId::shard))
    }

    fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        ShardId::all(self.config.cluster.shards)
    }

    /// Returns the members that were not removed, by ordinal, as of the meta entries applied here.
    pub fn members_by_ordinal(&self) -> BTreeMap<Ordinal, NodeId> {
        let machine = self.meta.machine.read();
        machine.members().filter(|(_, member)| !member.removed).map(|(node, member)| (member.ordinal, node)).collect()
    }

    /// Returns whether this node is a member, as of the meta entries applied here.
    pub fn is_member(&self) -> bool {
        self.meta.machine.read().member(self.id).is_some_and(|member| !member.removed)
    }

    /// Returns the voters that lack more than `IN_SYNC_LAG` entries or are not heard, for each group that this node leads and
    /// that has such voters.
    pub fn voters_behind(&self) -> BTreeMap<GroupId, Vec<NodeId>> {
        let behind = |group: GroupId| {
            let status = self.cluster.status(group);
            let is_behind = |node: &NodeId, lag: Option<u64>| {
                status.voters.contains_key(node) && lag.is_none_or(|lag| lag > IN_SYNC_LAG)
            };
            let voters: Vec<NodeId> =
                status.lag.iter().filter(|(node, lag)| is_behind(node, **lag)).map(|(node, _)| *node).collect();
            (!voters.is_empty()).then_some((group, voters))
        };
        self.groups_led().filter_map(behind).collect()
    }

    /// Transfers every leadership to the voter that lacks the fewest entries. A transfer that fails is logged and
    /// skipped.
    pub async fn transfer_leaders(&self) {
        let led: Vec<GroupId> = self.groups_led().collect();
        for group in led {
            let status = self.cluster.status(group);
            let behind = |node: &NodeId| status.lag.get(node).copied().flatten().unwrap_or(u64::MAX);
            let others = status.voters.keys().copied().filter(|node| *node != self.id);
            if let Some(to) = others.min_by_key(behind)
                && let Err(error) = self.cluster.transfer_leader(group, to).await
            {
                debug!(%group, %error, "leadership not transferred");
            }
        }
    }

    /// Returns the number of retained messages and the bytes that they are charged.
    pub fn retained_size(&self) -> (usize, u64) {
        let machine = self.retained.machine.read();
        (machine.len(), machine.bytes())
    }
}

/// Totals of durable sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Durables {
    /// Sessions with a connection.
    pub online: usize,
    /// Sessions without a connection.
    pub offline: usize,
    /// Subscriptions.
    pub subscriptions: usize,
    /// Messages in inboxes.
    pub queued: usize,
    /// Bytes that they are charged.
    pub queued_bytes: u64,
    /// Fullest inbox, as a fraction of its limit of messages or bytes.
    pub fill_ratio_max: f64,
}

impl Durables {
    fn add(&mut self, session: &covey_core::shard::Session) {
        let (profile, inbox) = (&session.profile, &session.inbox);
        if profile.holder.is_some() {
            self.online += 1;
        } else {
            self.offline += 1;
        }
        self.subscriptions += profile.subscriptions.len();
        self.queued += inbox.len();
        self.queued_bytes += inbox.bytes();
        let messages = u32::try_from(inbox.len()).map_or(1.0, f64::from) / f64::from(profile.limits.messages.max(1));
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        let bytes = inbox.bytes() as f64 / profile.limits.bytes.max(1) as f64;
        self.fill_ratio_max = self.fill_ratio_max.max(messages).max(bytes);
    }
}

fn will_of(will: &Message, delay: Duration) -> Will {
    Will {
        topic: will.topic.as_str().into(),
        qos: will.qos,
        retain: will.retain,
        delay: seconds(delay),
        body: message::encode(will),
    }
}

/// Returns whole seconds, at most `u32::MAX`.
fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// The node's sessions, as connections use them.
#[derive(Debug, Clone)]
pub struct NodeSessions(pub Arc<Node>);

impl Sessions for NodeSessions {
    type Session = NodeSession;

    fn is_serving(&self) -> bool {
        self.0.lease.valid_epoch().is_some() && !self.0.shutdown.is_cancelled()
    }

    async fn connect(&self, request: ConnectRequest) -> Result<Connected<NodeSession>, ReasonCode> {
        let node = &self.0;
        let Some(epoch) = node.lease.valid_epoch() else { return Err(ReasonCode::ServerUnavailable) };
        let connection = ConnectionId::new(node.connections.fetch_add(1, Ordering::Relaxed));
        let outcome = node.claim(node.claim_of(&request, epoch, connection)).await;
        let claimed = match outcome {
            Some(Outcome::Claimed(claimed)) => claimed,
            Some(Outcome::WrongPrincipal) => {
                info!(client_id = %request.client_id, user = %request.principal, "refused: the session belongs to another user");
                return Err(ReasonCode::ClientIdentifierNotValid);
            }
            Some(_) | None => {
                debug!(client_id = %request.client_id, "refused: the session's shard did not answer in time");
                return Err(ReasonCode::ServerUnavailable);
            }
        };
        if claimed.missed > 0 {
            info!(client_id = %request.client_id, missed = claimed.missed, "the session's full queue missed messages");
        }
        let connected = node.open(&request, &claimed, epoch, connection);
        if node.lease.held(epoch).await.is_err() {
            return Err(ReasonCode::ServerUnavailable);
        }
        Ok(connected)
    }
}
