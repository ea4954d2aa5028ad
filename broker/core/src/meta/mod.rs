//! State machine of the meta group: members, epochs of nodes, and the routes of the shards
//! (docs/clustering.md#groups).
//!
//! Every node applies it and matches publishes against its routes. A route names a shard, never a client. A shard's
//! leader numbers its changes with its term in the upper 32 bits; a change with a lower number than the newest is
//! refused, so a late change of a former leader has no effect.

use std::collections::BTreeMap;

use bytes::Bytes;
use covey_codec::QoS;
use covey_types::{NodeEpoch, NodeId, Ordinal, ShardId};
use serde::{Deserialize, Serialize};

use crate::rows::{self, Rows, Unreadable, UnreadableEntry};
use crate::topic::{Filter, Name, Tree};

/// One entry of the meta log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Sets cluster id, number of shards and first members.
    ///
    /// Proposed by every member that the operator told to form the cluster. A repetition with the same id changes
    /// nothing and returns [`Answer::Done`]; another id is [`Answer::Refused`].
    Form { cluster: Box<str>, shards: u16, members: BTreeMap<NodeId, Ordinal> },
    /// Admits a node with an empty disk under an ordinal; the node that had the ordinal is removed for good and its
    /// epoch ends.
    ///
    /// Proposed by the meta leader when a node asks to join. A repetition returns [`Answer::Done`]; a removed node, or
    /// a member under another ordinal, is [`Answer::Refused`], and so is an ordinal that is to retire.
    Join { node: NodeId, ordinal: Ordinal },
    /// Starts a new epoch of a node and ends its former one.
    ///
    /// Proposed by the node at start and after it lost an epoch. `former` is the last epoch of this process.
    /// Answer: [`Answer::Epoch`], the same one for a repetition; [`Answer::Refused`] for a node that is not a
    /// member or has started with a higher incarnation.
    NodeUp {
        node: NodeId,
        incarnation: u64,
        #[serde(with = "covey_types::zero_is_none")]
        former: Option<NodeEpoch>,
    },
    /// Ends an epoch of a node.
    ///
    /// Proposed by the meta leader when the node's lease has expired for long enough. Answer: [`Answer::Done`], also
    /// for an epoch that has already ended; [`Answer::Refused`] for an unknown node.
    NodeDown { node: NodeId, epoch: NodeEpoch },
    /// Marks the beginning of a leader's term in a shard: changes with a lower `index` are refused from now on.
    ///
    /// Proposed by the shard's new leader before it serves. Answer: [`Answer::Done`], also for a repetition;
    /// [`Answer::Refused`] if a later leader was here before.
    FenceShard { shard: ShardId, index: u64 },
    /// Changes routes of a shard: filters whose highest QoS changed; `None` removes the route.
    ///
    /// Proposed by the shard's leader, one change at a time, with increasing `index`. Answer: [`Answer::Done`], also
    /// for a repetition of the newest change; [`Answer::Refused`] if a later leader was here before.
    Routes { shard: ShardId, index: u64, changes: Vec<(Box<str>, Option<QoS>)> },
    /// Sets the number of nodes that the cluster is to have. Members whose ordinal is not below it retire: each
    /// leader removes them from the voters of its group, and they serve their clients until they stop. A higher number
    /// later takes them back.
    ///
    /// Proposed for the operator. Answer: [`Answer::Done`]; [`Answer::Refused`] for 0.
    Resize { nodes: u32 },
    /// Removes a retiring member for good.
    ///
    /// Proposed for the operator, after the node's pod has stopped. Answer: [`Answer::Done`], also for a member that is
    /// removed already; [`Answer::Refused`] for a node that does not retire, or whose epoch has not ended.
    Leave { node: NodeId },
}

/// Result of a [`Command`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The command was applied, or had been applied before.
    Done,
    /// The node's new epoch.
    Epoch(NodeEpoch),
    /// The command changed nothing; each command says when.
    Refused,
}

/// Value of a row `n`: a member, by node id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Ordinal of the node's pod.
    pub ordinal: Ordinal,
    /// Incarnation (number of the process start, from 1) to which the last epoch was given; `None` before the first.
    #[serde(with = "covey_types::zero_is_none")]
    pub incarnation: Option<u64>,
    /// Last epoch that was given to the node.
    #[serde(with = "covey_types::zero_is_none")]
    pub epoch: Option<NodeEpoch>,
    /// All epochs up to this one are over.
    #[serde(with = "covey_types::zero_is_none")]
    pub ended: Option<NodeEpoch>,
    /// The node was replaced, or has left: it is never a member again.
    pub removed: bool,
}

/// Value of row `m`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Cluster id (UUID); `None` before formation.
    #[serde(with = "covey_types::zero_is_none")]
    pub cluster: Option<Box<str>>,
    /// Number of shards.
    pub shards: u16,
    /// Last epoch that was given to any node.
    #[serde(with = "covey_types::zero_is_none")]
    pub last_epoch: Option<NodeEpoch>,
    /// Log index of the last change of routes; `None` before the first.
    #[serde(with = "covey_types::zero_is_none")]
    pub routes_index: Option<u64>,
}

/// State of the meta group.
#[derive(Debug, Default)]
pub struct MetaState {
    /// Cluster id and counters.
    header: Header,
    /// All nodes that ever were members.
    members: BTreeMap<NodeId, Member>,
    /// Routes for matching: per filter the shards, each with its highest QoS.
    tree: Tree<ShardId, QoS>,
    /// The same routes, by shard.
    routes: BTreeMap<(ShardId, Box<str>), QoS>,
    /// Highest `index` of a fence or change, by shard.
    fences: BTreeMap<ShardId, u64>,
    /// Number of nodes that the cluster is to have; `None` if it was never told.
    size: Option<u32>,
}

impl Command {
    /// Encodes the command for the log.
    pub fn encode(&self) -> Bytes {
        rows::encode(self).into()
    }

    /// Decodes a log entry.
    ///
    /// # Errors
    /// Returns [`UnreadableEntry`] if the bytes were not written by this version or an earlier one.
    pub fn decode(bytes: &[u8]) -> Result<Self, UnreadableEntry> {
        rows::decode_entry("meta", bytes)
    }
}

impl Answer {
    /// Encodes the answer for its proposer.
    pub fn encode(&self) -> Bytes {
        rows::encode(self).into()
    }

    /// Decodes an answer; `None` if the bytes were not written by this version or an earlier one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}

impl Member {
    /// Returns the epoch of the node if it has not ended.
    pub fn open_epoch(&self) -> Option<NodeEpoch> {
        self.epoch.filter(|epoch| Some(*epoch) > self.ended)
    }
}

impl MetaState {
    /// Applies the command of the log entry at `index`.
    pub fn apply(&mut self, index: u64, command: Command, rows: &mut dyn Rows) -> Answer {
        match command {
            Command::Form { cluster, shards, members } => self.form(cluster, shards, members, rows),
            Command::Join { node, ordinal } => self.join(node, ordinal, rows),
            Command::NodeUp { node, incarnation, former } => self.node_up(node, incarnation, former, rows),
            Command::NodeDown { node, epoch } => self.node_down(node, epoch, rows),
            Command::FenceShard { shard, index: fence } => self.fence(shard, fence, rows),
            Command::Routes { shard, index: at, changes } => self.change_routes(index, shard, at, changes, rows),
            Command::Resize { nodes } => self.resize(nodes, rows),
            Command::Leave { node } => self.leave(node, rows),
        }
    }

    fn form(
        &mut self,
        cluster: Box<str>,
        shards: u16,
        members: BTreeMap<NodeId, Ordinal>,
        rows: &mut dyn Rows,
    ) -> Answer {
        if let Some(known) = &self.header.cluster {
            return if *known == cluster { Answer::Done } else { Answer::Refused };
        }
        self.header.cluster = Some(cluster);
        self.header.shards = shards;
        for (node, ordinal) in members {
            self.members.insert(node, Member { ordinal, ..Member::default() });
            self.write_member(node, rows);
        }
        self.write_header(rows);
        Answer::Done
    }

    fn join(&mut self, node: NodeId, ordinal: Ordinal, rows: &mut dyn Rows) -> Answer {
        if let Some(member) = self.members.get(&node) {
            return if member.removed || member.ordinal != ordinal { Answer::Refused } else { Answer::Done };
        }
        if self.retires(ordinal) {
            return Answer::Refused;
        }
        let former: Vec<NodeId> = self
            .members
            .iter()
            .filter(|(_, member)| member.ordinal == ordinal && !member.removed)
            .map(|(former, _)| *former)
            .collect();
        for former in former {
            if let Some(member) = self.members.get_mut(&former) {
                member.removed = true;
                member.ended = member.epoch;
                self.write_member(former, rows);
            }
        }
        self.members.insert(node, Member { ordinal, ..Member::default() });
        self.write_member(node, rows);
        Answer::Done
    }

    fn node_up(&mut self, node: NodeId, incarnation: u64, former: Option<NodeEpoch>, rows: &mut dyn Rows) -> Answer {
        let Some(member) = self.members.get_mut(&node) else { return Answer::Refused };
        let incarnation = Some(incarnation);
        if member.removed || incarnation < member.incarnation {
            return Answer::Refused;
        }
        // A repetition, because the answer was lost.
        if let Some(epoch) = member.open_epoch()
            && incarnation == member.incarnation
            && Some(epoch) > former
        {
            return Answer::Epoch(epoch);
        }
        let epoch = self.header.last_epoch.map_or(NodeEpoch::FIRST, NodeEpoch::next);
        self.header.last_epoch = Some(epoch);
        member.incarnation = incarnation;
        member.ended = member.epoch;
        member.epoch = Some(epoch);
        self.write_member(node, rows);
        self.write_header(rows);
        Answer::Epoch(epoch)
    }

    fn node_down(&mut self, node: NodeId, epoch: NodeEpoch, rows: &mut dyn Rows) -> Answer {
        let Some(member) = self.members.get_mut(&node) else { return Answer::Refused };
        if Some(epoch) > member.ended && Some(epoch) <= member.epoch {
            member.ended = Some(epoch);
            self.write_member(node, rows);
        }
        Answer::Done
    }

    fn fence(&mut self, shard: ShardId, index: u64, rows: &mut dyn Rows) -> Answer {
        let fence = self.fences.entry(shard).or_default();
        if index < *fence {
            return Answer::Refused;
        }
        *fence = index;
        rows.put(rows::key(b'f', &[u64::from(shard.get())]), rows::encode(&index));
        Answer::Done
    }

    fn change_routes(
        &mut self,
        index: u64,
        shard: ShardId,
        at: u64,
        changes: Vec<(Box<str>, Option<QoS>)>,
        rows: &mut dyn Rows,
    ) -> Answer {
        if self.fence(shard, at, rows) == Answer::Refused {
            return Answer::Refused;
        }
        for (filter, qos) in changes {
            let Ok(parsed) = filter.parse::<Filter>() else { continue };
            let key = route_key(shard, &filter);
            if let Some(qos) = qos {
                self.tree.insert(&parsed, shard, qos);
                rows.put(key, vec![qos.into()]);
                self.routes.insert((shard, filter), qos);
            } else {
                self.tree.remove(&parsed, &shard);
                rows.delete(key);
                self.routes.remove(&(shard, filter));
            }
        }
        self.header.routes_index = Some(index);
        self.write_header(rows);
        Answer::Done
    }

    fn resize(&mut self, nodes: u32, rows: &mut dyn Rows) -> Answer {
        if nodes == 0 {
            return Answer::Refused;
        }
        self.size = Some(nodes);
        rows.put(rows::key(b'z', &[]), rows::encode(&nodes));
        Answer::Done
    }

    fn leave(&mut self, node: NodeId, rows: &mut dyn Rows) -> Answer {
        let Some(member) = self.members.get(&node) else { return Answer::Refused };
        if member.removed {
            return Answer::Done;
        }
        // An epoch that is open may have a lease, and with it clients.
        if !self.retires(member.ordinal) || member.open_epoch().is_some() {
            return Answer::Refused;
        }
        if let Some(member) = self.members.get_mut(&node) {
            member.removed = true;
        }
        self.write_member(node, rows);
        Answer::Done
    }

    fn write_header(&self, rows: &mut dyn Rows) {
        rows.put(rows::key(b'm', &[]), rows::encode(&self.header));
    }

    fn write_member(&self, node: NodeId, rows: &mut dyn Rows) {
        if let Some(member) = self.members.get(&node) {
            rows.put(rows::key(b'n', &[node.get()]), rows::encode(member));
        }
    }

    /// Restores the state from all rows.
    ///
    /// # Errors
    /// Returns [`Unreadable`] for a row of an unknown kind, and for a key or value that cannot be decoded.
    pub fn restore(stored: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Result<Self, Unreadable> {
        let mut state = Self::default();
        for (key, value) in stored {
            let kind = key.first().copied().unwrap_or_default();
            let unreadable = Unreadable { kind: char::from(kind) };
            match kind {
                b'm' => state.header = rows::decode(kind, &value)?,
                b'n' => {
                    let [node] = rows::numbers(&key).ok_or(unreadable)?;
                    state.members.insert(NodeId::new(node), rows::decode(kind, &value)?);
                }
                b'f' => {
                    let [shard] = rows::numbers(&key).ok_or_else(|| unreadable.clone())?;
                    let shard = ShardId::new(u16::try_from(shard).map_err(|_| unreadable)?);
                    state.fences.insert(shard, rows::decode(kind, &value)?);
                }
                b'r' => {
                    let (shard, filter) = route_of(&key).ok_or_else(|| unreadable.clone())?;
                    let parsed = filter.parse::<Filter>().map_err(|_| unreadable.clone())?;
                    let qos = value.first().and_then(|bits| QoS::from_bits(*bits)).ok_or(unreadable)?;
                    state.tree.insert(&parsed, shard, qos);
                    state.routes.insert((shard, filter), qos);
                }
                b'z' => state.size = Some(rows::decode(kind, &value)?),
                _ => return Err(unreadable),
            }
        }
        Ok(state)
    }

    // Read access for nodes.

    /// Returns the cluster id and the counters.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// All nodes that ever were members, removed ones included.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.members.iter().map(|(node, member)| (*node, member))
    }

    /// The nodes that are members, without removed ones.
    pub fn present_members(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.members().filter(|(_, member)| !member.removed)
    }

    /// Returns the number of nodes that the cluster is to have; `None` if it was never told, and then no member retires.
    pub fn size(&self) -> Option<u32> {
        self.size
    }

    /// Returns whether the member with this ordinal is to leave the cluster.
    pub fn retires(&self, ordinal: Ordinal) -> bool {
        self.size.is_some_and(|size| ordinal.get() >= size)
    }

    /// Returns whether the node has left, and no other node has its ordinal: what its disk holds is not needed any more.
    pub fn has_left(&self, node: NodeId) -> bool {
        let Some(left) = self.members.get(&node).filter(|member| member.removed) else { return false };
        !self.present_members().any(|(_, member)| member.ordinal == left.ordinal)
    }

    /// Returns a node that is or was a member.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node)
    }

    /// Returns the shards with a subscription that matches the name, each with its highest QoS over all matching
    /// filters.
    pub fn matches(&self, name: &Name) -> BTreeMap<ShardId, QoS> {
        let mut shards = BTreeMap::new();
        self.tree.matches(name, |shard, qos| {
            let highest = shards.entry(*shard).or_insert(*qos);
            *highest = (*highest).max(*qos);
        });
        shards
    }

    /// Routes of one shard: filters with their highest QoS.
    pub fn routes_of(&self, shard: ShardId) -> impl Iterator<Item = (&str, QoS)> {
        let first = (shard, Box::<str>::from(""));
        self.routes
            .range(first..)
            .take_while(move |((owner, _), _)| *owner == shard)
            .map(|((_, filter), qos)| (&**filter, *qos))
    }

    /// Returns the highest QoS of a shard's subscriptions with exactly this filter; `None` if there is no route.
    pub fn route(&self, shard: ShardId, filter: &str) -> Option<QoS> {
        self.routes.get(&(shard, filter.into())).copied()
    }
}

fn route_key(shard: ShardId, filter: &str) -> Vec<u8> {
    let mut key = vec![b'r'];
    key.extend_from_slice(&shard.get().to_be_bytes());
    key.extend_from_slice(filter.as_bytes());
    key
}

fn route_of(key: &[u8]) -> Option<(ShardId, Box<str>)> {
    let shard = ShardId::new(u16::from_be_bytes(key.get(1..3)?.try_into().ok()?));
    Some((shard, std::str::from_utf8(key.get(3..)?).ok()?.into()))
}

#[cfg(test)]
mod tests;
