//! Routes of a shard in the meta group: published by the shard's leader, and confirmed when every node that may hold a
//! lease has applied them (docs/clustering.md#routes).
//!
//! A SUBACK is sent when each of its filters is confirmed. Changes are numbered: the term in the upper 32 bits, then a
//! count. Meta refuses lower numbers than the newest, so a late change of a former leader, or of this leader before it
//! began again in the same term, cannot undo a newer one. A filter is confirmed by its newest change only. From the
//! moment that the removal of its route is proposed it is not confirmed, so a new subscription waits until the route
//! is back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use covey_codec::QoS;
use covey_core::meta::Command;
use covey_core::shard::{Outcome, ShardState};
use covey_types::{OwnerEpoch, ShardId};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};

use super::context::LeaderContext;
use crate::channel::reply;
use crate::shard::link::LinkId;
use crate::state::SharedMeta;

/// Filters with their highest QoS; `None` removes the route.
type Changes = Vec<(Box<str>, Option<QoS>)>;

/// A SUBSCRIBE or a resumed session that waits until its filters are confirmed.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Filters that must be confirmed.
    pub(super) filters: Vec<Box<str>>,
    /// Answer to send then: link, call id and outcome.
    pub(super) answer: Option<(LinkId, u64, Outcome)>,
    /// Subscriptions to which retained messages are sent then: client id, owner epoch, filter.
    pub(super) retained: Vec<(Box<str>, OwnerEpoch, Box<str>)>,
}

/// A completed step of publishing.
pub(super) enum Step {
    /// The fence is committed, and meta is applied here up to it.
    Fenced,
    /// The change is committed.
    Published(Changes),
    /// Every node that may hold a lease has applied the change with that number.
    Confirmed { order: u64, changes: Changes },
    /// Meta knows a later leader: this node must stop leading.
    Refused,
}

/// A route as it is in meta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Published {
    qos: QoS,
    /// Number of the change that set it.
    order: u64,
}

/// Routes of one term.
pub(super) struct Routes {
    /// Number of the shard.
    shard: ShardId,
    /// Number of the last change, or of the fence.
    order: u64,
    /// Access to meta.
    context: Arc<dyn LeaderContext>,
    /// Routes in meta, including those of former leaders.
    published: BTreeMap<Box<str>, Published>,
    /// QoS of each filter that all leased nodes are known to have at least.
    confirmed: HashMap<Box<str>, QoS>,
    /// Filters whose route may differ from `published`.
    dirty: BTreeSet<Box<str>>,
    /// SUBSCRIBEs that wait for confirmations.
    waiting: Vec<Waiting>,
    /// True while the fence or a change is proposed; only one is at a time.
    publishing: bool,
    /// True when the fence is committed.
    serving: bool,
    /// Commits and confirmations in progress.
    steps: FuturesUnordered<BoxFuture<'static, Step>>,
}

impl Routes {
    /// Starts a term by proposing the fence: changes of former leaders are refused after it. `last` is the highest
    /// number that this process has used for the shard, since its changes of before may still arrive in the same term.
    pub(super) fn new(shard: ShardId, term: u64, last: u64, context: Arc<dyn LeaderContext>) -> Self {
        let order = (term << 32).max(last + 1);
        let steps: FuturesUnordered<BoxFuture<'static, Step>> = FuturesUnordered::new();
        let fence = context.propose_meta(Command::FenceShard { shard, index: order });
        steps.push(Box::pin(async move { fence.await.map_or(Step::Refused, |_| Step::Fenced) }));
        Self {
            shard,
            order,
            context,
            published: BTreeMap::new(),
            confirmed: HashMap::new(),
            dirty: BTreeSet::new(),
            waiting: Vec::new(),
            publishing: true,
            serving: false,
            steps,
        }
    }

    /// Returns the highest number used so far.
    pub(super) fn order(&self) -> u64 {
        self.order
    }

    /// Returns whether the fence is committed, so that operations are accepted.
    pub(super) fn is_serving(&self) -> bool {
        self.serving
    }

    /// Returns the next completed step; pending while none is in progress.
    pub(super) async fn next(&mut self) -> Step {
        match self.steps.next().await {
            Some(step) => step,
            None => std::future::pending().await,
        }
    }

    /// Notes that the filter's highest QoS may have changed.
    pub(super) fn touch(&mut self, filter: Box<str>) {
        self.dirty.insert(filter);
    }

    /// Adds a waiting SUBSCRIBE; [`ready`](Self::ready) returns it when its filters are confirmed.
    pub(super) fn wait(&mut self, waiting: Waiting) {
        self.waiting.push(waiting);
    }

    /// Handles a step. Call [`publish`](Self::publish) and [`ready`](Self::ready) afterwards.
    pub(super) fn on_step(&mut self, step: Step, state: &ShardState, meta: &SharedMeta) {
        match step {
            Step::Fenced => {
                self.serving = true;
                self.publishing = false;
                let order = self.order;
                let stands: Changes = {
                    let known = meta.state.read();
                    known.routes_of(self.shard).map(|(filter, qos)| (filter.into(), Some(qos))).collect()
                };
                self.note_published(order, &stands);
                self.dirty.extend(self.published.keys().cloned());
                self.dirty.extend(state.routes().map(|(filter, _)| Box::from(filter)));
                // Former leaders' routes are confirmed once every leased node has applied meta as of now.
                let index = self.context.meta_applied();
                self.confirm(order, stands, std::future::ready(Some(index)));
            }
            Step::Published(changes) => {
                self.publishing = false;
                self.note_published(self.order, &changes);
            }
            Step::Confirmed { order, changes } => {
                for (filter, qos) in changes {
                    // Skip a filter that was changed again: only its newest change confirms it.
                    if let Some(qos) = qos
                        && self.published.get(&filter) == Some(&Published { qos, order })
                    {
                        self.confirmed.insert(filter, qos);
                    }
                }
            }
            Step::Refused => {}
        }
    }

    /// Records routes as they are in meta after the change `order`.
    fn note_published(&mut self, order: u64, changes: &Changes) {
        for (filter, qos) in changes {
            match qos {
                Some(qos) => self.published.insert(filter.clone(), Published { qos: *qos, order }),
                None => self.published.remove(filter),
            };
        }
    }

    /// Proposes the routes that differ from meta, unless a change is in progress.
    pub(super) fn publish(&mut self, state: &ShardState) {
        if self.publishing || self.dirty.is_empty() {
            return;
        }
        let changes: Changes = std::mem::take(&mut self.dirty)
            .into_iter()
            .filter_map(|filter| {
                let wanted = state.route_qos(&filter);
                (wanted != self.published.get(&filter).map(|published| published.qos)).then_some((filter, wanted))
            })
            .collect();
        if changes.is_empty() {
            return;
        }
        // As soon as the change is proposed, a node may have less than was confirmed.
        for (filter, qos) in &changes {
            let kept = self.confirmed.remove(filter).zip(*qos).map(|(confirmed, qos)| confirmed.min(qos));
            if let Some(kept) = kept {
                self.confirmed.insert(filter.clone(), kept);
            }
        }
        self.publishing = true;
        self.order += 1;
        let command = Command::Routes { shard: self.shard, index: self.order, changes: changes.clone() };
        let proposed = self.context.propose_meta(command);
        let added: Changes = changes.iter().filter(|(_, qos)| qos.is_some()).cloned().collect();
        let (published, index) = tokio::sync::oneshot::channel();
        self.steps.push(Box::pin(async move {
            let Some(index) = proposed.await else { return Step::Refused };
            reply(published, index);
            Step::Published(changes)
        }));
        if !added.is_empty() {
            self.confirm(self.order, added, async move { index.await.ok() });
        }
    }

    /// Waits until every leased node has applied the change; never completes for a change that meta refused.
    fn confirm(&self, order: u64, changes: Changes, index: impl Future<Output = Option<u64>> + Send + 'static) {
        let context = self.context.clone();
        self.steps.push(Box::pin(async move {
            match index.await {
                Some(index) => context.await_route(index).await,
                None => std::future::pending().await,
            }
            Step::Confirmed { order, changes }
        }));
    }

    /// Removes and returns what no longer waits.
    pub(super) fn ready(&mut self, state: &ShardState) -> Vec<Waiting> {
        let confirmed = &self.confirmed;
        // A filter without subscription needs no route.
        let is_confirmed = |filter: &str| match state.route_qos(filter) {
            Some(wanted) => confirmed.get(filter).is_some_and(|qos| *qos >= wanted),
            None => true,
        };
        let (ready, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| waiting.filters.iter().all(|filter| is_confirmed(filter)));
        self.waiting = waiting;
        ready
    }
}

#[cfg(test)]
mod tests;
