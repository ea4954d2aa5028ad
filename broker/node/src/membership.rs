//! Membership: formation, hello between nodes, joining with an empty disk, and the voters of the groups that this node
//! leads.
//!
//! ```text
//! no cluster id --Initialize (from the operator)--> member     the disk belongs to its cluster for good
//!       '--------Join (admitted by the meta leader)--> member
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use covey_contract::proto;
use covey_core::meta::{Answer, Command};
use covey_log::marker::Claimed;
use covey_peer::Pool;
use covey_raft::{Member, Purpose};
use covey_types::{GroupId, NodeId, Ordinal};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tonic::Status;
use tonic::transport::Channel;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::Node;
use super::lease::Request;

/// Interval at which a node tries to join, or checks the voters of the groups that it leads.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Voters of a shard.
pub(super) const SHARD_VOTERS: usize = 3;

/// Identity of this node: its data directory, and what is known of other processes.
#[derive(Debug)]
pub struct Identity {
    /// The claimed data directory.
    disk: Mutex<Claimed>,
    /// Node id, made once per data directory.
    pub node: NodeId,
    /// Ordinal of the node's pod.
    pub ordinal: Ordinal,
    /// Number of this process start on the data directory.
    pub incarnation: u64,
    /// Highest incarnation that each node has said hello with. An older process is refused.
    seen: Mutex<HashMap<NodeId, u64>>,
}

/// Error of a formation request. The texts are returned to the operator.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// The request has no valid cluster id.
    #[error("the cluster id is not a UUID")]
    ClusterId,
    /// The request does not list this node.
    #[error("this node ({0}) is not among the members")]
    NotListed(NodeId),
    /// The data directory belongs to another cluster, or could not be written.
    #[error(transparent)]
    Disk(#[from] covey_log::marker::Error),
    #[error(transparent)]
    Groups(#[from] covey_raft::InitializeError),
}

impl Identity {
    /// Wraps a claimed data directory.
    pub fn new(disk: Claimed, ordinal: Ordinal) -> Arc<Self> {
        let (node, incarnation) = (disk.marker().node_id, disk.marker().incarnation);
        Arc::new(Self { disk: Mutex::new(disk), node, ordinal, incarnation, seen: Mutex::default() })
    }

    /// Returns the cluster of this data directory; `None` if it has none yet.
    pub fn cluster(&self) -> Option<Uuid> {
        self.disk.lock().marker().cluster_id
    }

    /// Releases the lock of the data directory for another process. The last step of a node's shutdown.
    pub fn release(&self) {
        self.disk.lock().release();
    }

    fn bind(&self, cluster: Uuid) -> Result<(), covey_log::marker::Error> {
        self.disk.lock().bind(cluster)
    }

    fn cluster_text(&self) -> String {
        self.cluster().map(|cluster| cluster.to_string()).unwrap_or_default()
    }

    fn hello(&self) -> proto::HelloRequest {
        proto::HelloRequest {
            cluster_id: self.cluster_text(),
            node_id: self.node.get(),
            ordinal: self.ordinal.get(),
            incarnation: self.incarnation,
        }
    }

    /// Answers a hello of another node. Refuses a node of another cluster, and an older process of a known node.
    pub fn on_hello(&self, hello: &proto::HelloRequest) -> proto::HelloReply {
        let (cluster, node) = (self.cluster_text(), NodeId::new(hello.node_id));
        let refused = if !cluster.is_empty() && !hello.cluster_id.is_empty() && cluster != hello.cluster_id {
            format!("node {node} belongs to cluster {}, this one to {cluster}", hello.cluster_id)
        } else {
            let mut seen = self.seen.lock();
            let known = seen.entry(node).or_default();
            if hello.incarnation < *known {
                format!("a newer process of node {node} was here: incarnation {known}")
            } else {
                *known = hello.incarnation;
                String::new()
            }
        };
        if !refused.is_empty() {
            warn!(refused, ordinal = hello.ordinal, "refused a node's hello");
        }
        proto::HelloReply { refused, cluster_id: cluster, node_id: self.node.get(), incarnation: self.incarnation }
    }

    /// Sends this node's hello on a new channel and returns the reply.
    ///
    /// # Errors
    /// Resolves to the status of a failed call. A refusal is part of the reply.
    pub fn greet(self: &Arc<Self>, channel: Channel) -> BoxFuture<'static, Result<proto::HelloReply, Status>> {
        let hello = self.hello();
        Box::pin(async move {
            let mut peer = proto::peer_client::PeerClient::new(channel);
            peer.hello(hello).await.map(tonic::Response::into_inner)
        })
    }
}

/// Forms the cluster, joins it and keeps the groups' voters.
#[derive(Debug)]
pub struct Membership {
    /// The node.
    pub node: Arc<Node>,
    /// Its identity.
    pub identity: Arc<Identity>,
    /// Connections to other nodes, also before they are members.
    pub pool: Pool,
}

impl Membership {
    /// Forms the cluster on this node. A repetition has no effect.
    ///
    /// # Errors
    /// Returns [`FormError`] if the request is not valid for this node, or the disk or the groups refuse it.
    pub async fn initialize(&self, request: &proto::InitializeRequest) -> Result<(), FormError> {
        let cluster = Uuid::parse_str(&request.cluster_id).map_err(|_| FormError::ClusterId)?;
        let mut members = BTreeMap::new();
        for member in &request.members {
            let id = member.node_id.parse().map_err(|_| FormError::NotListed(self.identity.node))?;
            members.insert(id, Member { ordinal: Ordinal::new(member.ordinal) });
        }
        if !members.contains_key(&self.identity.node) {
            return Err(FormError::NotListed(self.identity.node));
        }
        let was_member = self.identity.cluster().is_some();
        self.identity.bind(cluster)?;
        if was_member && self.node.is_member() {
            return Ok(());
        }
        info!(%cluster, members = members.len(), "forming the cluster");
        self.node.cluster.initialize(&members).await?;
        let command = Command::Form {
            cluster: cluster.to_string().into(),
            shards: self.node.config.cluster.shards,
            members: members.into_iter().map(|(node, member)| (node, member.ordinal)).collect(),
        };
        let node = self.node.clone();
        let forming = async move {
            while node.meta.machine.read().header().cluster.is_empty() {
                drop(node.cluster.propose_at_leader(GroupId::META, command.encode()).await);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let (supervisor, shutdown) = (self.node.supervisor.clone(), self.node.shutdown.clone());
        self.node.tasks.spawn(supervisor.ending("formation", shutdown, forming));
        Ok(())
    }

    /// Answers a node with an empty disk that asks to join. Only the meta leader admits; other nodes name its ordinal.
    pub async fn on_join(&self, join: &proto::JoinRequest) -> proto::JoinReply {
        let refuse = |refused: &str| proto::JoinReply { refused: refused.into(), ..proto::JoinReply::default() };
        let Some(cluster) = self.identity.cluster() else { return refuse("not in a cluster yet") };
        let leadership = *self.node.cluster.leadership(GroupId::META).borrow();
        if !leadership.ours {
            let ask =
                leadership.leader.and_then(|leader| self.node.meta.machine.read().member(leader).map(|m| m.ordinal));
            return proto::JoinReply { ask: ask.map(Ordinal::get), ..refuse("this node does not lead the meta group") };
        }
        if let Some(reason) = self.objection(join).await {
            return refuse(&reason);
        }
        let (node, ordinal) = (NodeId::new(join.node_id), Ordinal::new(join.ordinal));
        let command = Command::Join { node, ordinal };
        let answer = self.node.cluster.propose_at_leader(GroupId::META, command.encode()).await;
        match answer.map(|response| Answer::decode(&response.bytes)) {
            Ok(Some(Answer::Done)) => {
                info!(%node, ordinal = ordinal.get(), "node admitted");
                proto::JoinReply { cluster_id: cluster.to_string(), ..proto::JoinReply::default() }
            }
            _ => refuse("meta refused the node (its id was removed or has another ordinal) or did not answer"),
        }
    }

    /// Returns why the node must not join, if its ordinal has another disk: that disk may still be alive, or the
    /// members without it are no majority.
    async fn objection(&self, join: &proto::JoinRequest) -> Option<String> {
        let members: Vec<(NodeId, Ordinal)> = {
            let machine = self.node.meta.machine.read();
            machine
                .members()
                .filter(|(_, member)| !member.removed)
                .map(|(node, member)| (node, member.ordinal))
                .collect()
        };
        let wanted = (NodeId::new(join.node_id), Ordinal::new(join.ordinal));
        let former = members.iter().find(|(node, ordinal)| *ordinal == wanted.1 && *node != wanted.0)?.0;
        let mut alive = 0;
        for (node, _) in &members {
            let (answer, receiver) = oneshot::channel();
            self.node.grantor.send(Request::IsAlive(*node, answer)).await.ok()?;
            if receiver.await.unwrap_or(true) {
                if *node == former {
                    return Some(format!("ordinal {} is held by node {former}, which may be alive", join.ordinal));
                }
                alive += 1;
            }
        }
        (alive * 2 <= members.len()).then(|| "no majority without the lost disk".to_owned())
    }

    /// Joins while this disk belongs to no cluster, then keeps the voters of the groups that this node leads. Runs
    /// until shutdown.
    pub async fn run(self: Arc<Self>) {
        let shutdown = self.node.shutdown.clone();
        while shutdown.run_until_cancelled(tokio::time::sleep(CHECK_INTERVAL)).await.is_some() {
            if self.identity.cluster().is_none() {
                self.try_join().await;
            } else {
                self.keep_voters().await;
            }
        }
    }

    async fn try_join(&self) {
        let replicas = self.node.config.cluster.replicas;
        for ordinal in (0..replicas).map(Ordinal::new).filter(|ordinal| *ordinal != self.identity.ordinal) {
            let mut ask = Some(ordinal);
            while let Some(ordinal) = ask.take() {
                let Ok(channel) = self.pool.channel(None, ordinal, Purpose::Data).await else { break };
                let request = proto::JoinRequest {
                    node_id: self.identity.node.get(),
                    ordinal: self.identity.ordinal.get(),
                    incarnation: self.identity.incarnation,
                };
                let Ok(reply) = proto::peer_client::PeerClient::new(channel).join(request).await else { break };
                let reply = reply.into_inner();
                if let (true, Ok(cluster)) = (reply.refused.is_empty(), Uuid::parse_str(&reply.cluster_id)) {
                    match self.identity.bind(cluster) {
                        Ok(()) => info!(%cluster, "joined"),
                        Err(error) => warn!(%error, "failed to join"),
                    }
                    return;
                }
                debug!(ordinal = ordinal.get(), refused = reply.refused, "join refused");
                ask = reply.ask.map(Ordinal::new).filter(|asked| *asked != ordinal && *asked != self.identity.ordinal);
            }
        }
    }

    async fn keep_voters(&self) {
        let members = self.node.members_by_ordinal();
        if members.is_empty() {
            return;
        }
        let led: Vec<GroupId> = self.node.groups_led().collect();
        for group in led {
            let (voters, learners) = placement(group, &members);
            let status = self.node.cluster.status(group);
            // A change that an earlier leader left unfinished is completed here.
            if !status.joint && status.voters == voters && status.learners == learners {
                continue;
            }
            info!(%group, voters = voters.len(), learners = learners.len(), "changing the group's members");
            if let Err(error) = self.node.cluster.set_voters(group, voters, learners).await {
                warn!(%group, %error, "failed to change the group's members; retrying");
            }
        }
    }
}

type Members = BTreeMap<NodeId, Member>;

/// Returns voters and learners of a group. A shard has [`SHARD_VOTERS`] voters, chosen in turn by shard number, and no
/// learners. Meta and retained have an odd number of voters, at most five; the other members are learners.
pub(super) fn placement(group: GroupId, members: &BTreeMap<Ordinal, NodeId>) -> (Members, Members) {
    let all: Vec<(NodeId, Member)> =
        members.iter().map(|(ordinal, node)| (*node, Member { ordinal: *ordinal })).collect();
    if let Some(shard) = group.as_shard() {
        let voters = all.iter().cycle().skip(shard.index() % all.len().max(1)).take(SHARD_VOTERS.min(all.len()));
        return (voters.copied().collect(), Members::new());
    }
    let odd = if all.len().is_multiple_of(2) { all.len().saturating_sub(1) } else { all.len() };
    let voters = odd.clamp(1, 5).min(all.len());
    (all.iter().take(voters).copied().collect(), all.iter().skip(voters).copied().collect())
}

#[cfg(test)]
mod tests {
    use covey_types::ShardId;

    use super::*;

    fn members(count: u32) -> BTreeMap<Ordinal, NodeId> {
        (0..count).map(|ordinal| (Ordinal::new(ordinal), NodeId::new(u64::from(ordinal) + 100))).collect()
    }

    #[test]
    fn shards_have_three_voters_and_meta_an_odd_number() {
        for (count, shard_voters, meta_voters) in [(1, 1, 1), (3, 3, 3), (4, 3, 3), (5, 3, 5), (7, 3, 5)] {
            let (voters, learners) = placement(GroupId::shard(ShardId::new(6)), &members(count));
            assert_eq!((voters.len(), learners.len()), (shard_voters, 0), "{count}");
            let (voters, learners) = placement(GroupId::META, &members(count));
            assert_eq!((voters.len(), voters.len() + learners.len()), (meta_voters, count as usize), "{count}");
        }
    }
}
