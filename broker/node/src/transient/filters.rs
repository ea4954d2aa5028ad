//! Subscriptions of the transient sessions on this node, and their publication to other nodes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use covey_codec::QoS;
use covey_contract::proto::Frame;
use covey_core::subscriptions::{Match, Options, QosCounts, matching};
use covey_core::topic::{Filter, Name, Tree};
use covey_types::{ConnectionId, NodeEpoch};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::Status;

use super::wire::FromTransient;
use crate::frame;

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
    counts: HashMap<Box<str>, QosCounts>,
    /// Streams that receive the changes; closed ones are removed at the next change.
    followers: Vec<Follower>,
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
            state.counts.iter().filter_map(|(filter, counts)| Some((filter.clone(), counts.highest()?))).collect();
        let frame = FromTransient::State { epoch: state.epoch, change: state.change, filters, received };
        if follower.send(Ok(frame::encode(&frame))).is_ok() {
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
        matching(&self.state.lock().tree, name, is_own)
    }
}

impl State {
    /// Updates the counts and, if the highest QoS of the filter changed, tells the followers.
    fn recount(&mut self, filter: Box<str>, minus: Option<QoS>, plus: Option<QoS>) {
        let counts = self.counts.entry(filter.clone()).or_default();
        let before = counts.highest();
        if let Some(qos) = plus {
            counts.add(qos);
        }
        if let Some(qos) = minus {
            counts.remove(qos);
        }
        let after = counts.highest();
        if after.is_none() {
            self.counts.remove(&filter);
        }
        if before != after {
            self.change += 1;
            let frame = frame::encode(&FromTransient::Change { change: self.change, filter, qos: after });
            self.followers.retain(|follower| follower.send(Ok(frame.clone())).is_ok());
        }
    }
}
