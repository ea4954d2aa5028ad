//! Subscriptions of the transient sessions on this node, and their publication to other nodes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use covey_contract::proto::Frame;
use covey_core::shard::highest;
use covey_core::topic::{Filter, Name, Tree};
use covey_types::{ConnectionId, NodeEpoch};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::Status;

use crate::wire::{self, FromTransient};

/// Options of a transient session's subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    /// Highest QoS of deliveries, 0 to 2.
    pub qos: u8,
    /// No Local: messages that this client published are not delivered to it.
    pub no_local: bool,
    /// Retain As Published: deliveries keep the retain flag of the PUBLISH.
    pub retain_as_published: bool,
    /// Subscription Identifier, sent with each delivery.
    pub identifier: Option<u32>,
}

/// Stream to a node that follows the filters.
type Follower = mpsc::UnboundedSender<Result<Frame, Status>>;

/// Subscriptions of the transient sessions here. Changes are sent to all followers in the order in which they are
/// made.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    state: Mutex<State>,
}

/// State of one epoch.
#[derive(Debug, Default)]
struct State {
    /// This node's epoch; `None` before its first.
    epoch: Option<NodeEpoch>,
    /// Number of the last change of a filter's highest QoS, counted from 1 per epoch.
    change: u64,
    /// All subscriptions.
    tree: Tree<ConnectionId, Options>,
    /// Subscriptions per filter, counted by QoS.
    counts: HashMap<Box<str>, [u32; 3]>,
    /// Streams that receive the changes; closed ones are removed at the next change.
    followers: Vec<Follower>,
}

/// One delivery to a session: all of its subscriptions that a message matched ([MQTT-3.3.4-2]).
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Match {
    /// Highest QoS of the subscriptions.
    pub qos: u8,
    /// Whether any of them has Retain As Published.
    pub retain_as_published: bool,
    /// Their subscription identifiers.
    pub identifiers: Vec<u32>,
}

impl Filters {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Starts an epoch of this node: subscriptions, changes and followers of the former one are dropped.
    pub(crate) fn reset(&self, epoch: NodeEpoch) {
        *self.state.lock() = State { epoch: Some(epoch), ..State::default() };
    }

    /// Sends all filters to a follower and, from then on, each change. `received` is the number of the last message
    /// received from it.
    pub(crate) fn follow(&self, received: u64, follower: Follower) {
        let mut state = self.state.lock();
        let filters =
            state.counts.iter().filter_map(|(filter, counts)| Some((filter.clone(), highest(counts)?))).collect();
        let frame = FromTransient::State { epoch: state.epoch, change: state.change, filters, received };
        if follower.send(Ok(wire::frame(&frame))).is_ok() {
            state.followers.push(follower);
        }
    }

    /// Adds or replaces a subscription. Returns the change that other nodes must know before the SUBACK, and whether
    /// the subscription is new.
    pub(crate) fn insert(&self, filter: &Filter, connection: ConnectionId, options: Options) -> (u64, bool) {
        let mut state = self.state.lock();
        let former = state.tree.insert(filter, connection, options);
        let text: Box<str> = filter.as_str().into();
        state.recount(text, former.map(|former| former.qos), Some(options.qos));
        (state.change, former.is_none())
    }

    /// Removes a subscription and returns whether it existed.
    pub(crate) fn remove(&self, filter: &Filter, connection: ConnectionId) -> bool {
        let mut state = self.state.lock();
        let Some(former) = state.tree.remove(filter, &connection) else { return false };
        state.recount(filter.as_str().into(), Some(former.qos), None);
        true
    }

    /// Returns the sessions that match the topic, each once. `is_own` tells the publisher's session, for No Local.
    pub(crate) fn matches(&self, name: &Name, is_own: impl Fn(ConnectionId) -> bool) -> BTreeMap<ConnectionId, Match> {
        let state = self.state.lock();
        let mut matches: BTreeMap<ConnectionId, Match> = BTreeMap::new();
        state.tree.matches(name, |connection, options| {
            if !(options.no_local && is_own(*connection)) {
                let matched = matches.entry(*connection).or_default();
                matched.qos = matched.qos.max(options.qos);
                matched.retain_as_published |= options.retain_as_published;
                matched.identifiers.extend(options.identifier);
            }
        });
        matches
    }
}

impl State {
    /// Updates the counts and, if the highest QoS of the filter changed, tells the followers.
    fn recount(&mut self, filter: Box<str>, minus: Option<u8>, plus: Option<u8>) {
        let counts = self.counts.entry(filter.clone()).or_default();
        let before = highest(counts);
        if let Some(count) = plus.and_then(|qos| counts.get_mut(usize::from(qos.min(2)))) {
            *count += 1;
        }
        if let Some(count) = minus.and_then(|qos| counts.get_mut(usize::from(qos.min(2)))) {
            *count = count.saturating_sub(1);
        }
        let after = highest(counts);
        if after.is_none() {
            self.counts.remove(&filter);
        }
        if before != after {
            self.change += 1;
            let frame = wire::frame(&FromTransient::Change { change: self.change, filter, qos: after });
            self.followers.retain(|follower| follower.send(Ok(frame.clone())).is_ok());
        }
    }
}
