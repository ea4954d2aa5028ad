//! Subscriptions of the transient sessions on this node, and what other nodes know of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use covey_contract::proto::Frame;
use covey_core::shard::highest;
use covey_core::topic::{Filter, Name, Tree};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::Status;

use crate::wire::{self, FromTransient};

/// Number of a transient session on this node.
pub(crate) type Local = u64;

/// How a transient session subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub identifier: Option<u32>,
}

type Follower = mpsc::UnboundedSender<Result<Frame, Status>>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    epoch: u64,
    change: u64,
    tree: Tree<Local, Options>,
    /// Per filter, how many subscriptions have which QoS.
    counts: HashMap<Box<str>, [u32; 3]>,
    followers: Vec<Follower>,
}

/// What a message matched in one session.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Match {
    pub qos: u8,
    pub retain_as_published: bool,
    pub identifiers: Vec<u32>,
}

impl Filters {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// A new epoch of this node: its former sessions are gone, streams begin again.
    pub(crate) fn reset(&self, epoch: u64) {
        *self.state.lock() = State { epoch, ..State::default() };
    }

    /// Sends all filters and, from then on, each change; `received` is the last number that the follower may forget.
    pub(crate) fn follow(&self, received: u64, follower: Follower) {
        let mut state = self.state.lock();
        let filters =
            state.counts.iter().filter_map(|(filter, counts)| Some((filter.clone(), highest(counts)?))).collect();
        let frame = FromTransient::State { epoch: state.epoch, change: state.change, filters, received };
        if follower.send(Ok(wire::frame(&frame))).is_ok() {
            state.followers.push(follower);
        }
    }

    /// Adds or changes a subscription; the change that others must know before the SUBACK, and whether it is a new one.
    pub(crate) fn insert(&self, filter: &Filter, local: Local, options: Options) -> (u64, bool) {
        let mut state = self.state.lock();
        let former = state.tree.insert(filter, local, options);
        let text: Box<str> = filter.as_str().into();
        state.recount(text, former.map(|former| former.qos), Some(options.qos));
        (state.change, former.is_none())
    }

    /// Removes a subscription; whether it was there.
    pub(crate) fn remove(&self, filter: &Filter, local: Local) -> bool {
        let mut state = self.state.lock();
        let Some(former) = state.tree.remove(filter, &local) else { return false };
        state.recount(filter.as_str().into(), Some(former.qos), None);
        true
    }

    /// Sessions that the topic matches, each once with its highest QoS.
    pub(crate) fn matches(&self, name: &Name, is_own: impl Fn(Local) -> bool) -> BTreeMap<Local, Match> {
        let state = self.state.lock();
        let mut matches: BTreeMap<Local, Match> = BTreeMap::new();
        state.tree.matches(name, |local, options| {
            if !(options.no_local && is_own(*local)) {
                let matched = matches.entry(*local).or_default();
                matched.qos = matched.qos.max(options.qos);
                matched.retain_as_published |= options.retain_as_published;
                matched.identifiers.extend(options.identifier);
            }
        });
        matches
    }
}

impl State {
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
