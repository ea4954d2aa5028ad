//! A shard's routes in the meta group: published by the shard's leader, confirmed on every node that may hold a lease.
//!
//! A SUBACK leaves when each of its filters is confirmed. Changes carry an order number, (term, count) of this leader, and
//! meta refuses anything below the newest: a late change of this or a former leader cannot undo a newer one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use covey_core::meta::Command;
use covey_core::shard::{Machine, Outcome};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};

use super::leader::{LinkId, Services};
use crate::node::machines::Meta;

/// Filters of one change, each with its QoS; `None` removes.
type Changes = Vec<(Box<str>, Option<u8>)>;

/// Something that waits until its filters are confirmed.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) filters: Vec<Box<str>>,
    /// A SUBACK's answer.
    pub(super) answer: Option<(LinkId, u64, Outcome)>,
    /// Subscriptions that want their retained messages then.
    pub(super) retained: Vec<(Box<str>, u64, Box<str>)>,
}

/// What a step of the publishing did.
pub(super) enum Step {
    /// The fence is committed and meta is known up to it.
    Fenced,
    Published(Changes),
    Confirmed(Changes),
}

/// See the module.
pub(super) struct Routes {
    shard: u16,
    order: u64,
    services: Arc<dyn Services>,
    published: BTreeMap<Box<str>, u8>,
    confirmed: HashMap<Box<str>, u8>,
    dirty: BTreeSet<Box<str>>,
    waiting: Vec<Waiting>,
    publishing: bool,
    serving: bool,
    steps: FuturesUnordered<BoxFuture<'static, Step>>,
}

impl Routes {
    /// Begins with the fence: nothing of a former leader is accepted after it.
    pub(super) fn new(shard: u16, term: u64, services: Arc<dyn Services>) -> Self {
        let order = term << 32;
        let steps: FuturesUnordered<BoxFuture<'static, Step>> = FuturesUnordered::new();
        let fence = services.propose_meta(Command::Fence { shard, index: order });
        steps.push(Box::pin(async move {
            fence.await;
            Step::Fenced
        }));
        Self {
            shard,
            order,
            services,
            published: BTreeMap::new(),
            confirmed: HashMap::new(),
            dirty: BTreeSet::new(),
            waiting: Vec::new(),
            publishing: true,
            serving: false,
            steps,
        }
    }

    /// The fence is committed: operations are taken.
    pub(super) fn is_serving(&self) -> bool {
        self.serving
    }

    /// The next thing that happened; waits for ever while nothing is under way.
    pub(super) async fn next(&mut self) -> Step {
        match self.steps.next().await {
            Some(step) => step,
            None => std::future::pending().await,
        }
    }

    /// The filter's highest QoS may have changed.
    pub(super) fn touch(&mut self, filter: Box<str>) {
        self.dirty.insert(filter);
    }

    /// Waits for its filters; `ready` gives back what need not wait longer.
    pub(super) fn wait(&mut self, waiting: Waiting) {
        self.waiting.push(waiting);
    }

    /// Takes a step in; afterwards call [`publish`](Self::publish) and [`ready`](Self::ready).
    pub(super) fn on_step(&mut self, step: Step, machine: &Machine, meta: &Meta) {
        match step {
            Step::Fenced => {
                self.serving = true;
                self.publishing = false;
                let known = meta.machine.read();
                self.published = known.routes_of(self.shard).map(|(filter, qos)| (filter.into(), qos)).collect();
                self.dirty.extend(self.published.keys().cloned());
                self.dirty.extend(machine.routes().map(|(filter, _)| Box::from(filter)));
                let unchanged: Changes =
                    self.published.iter().map(|(filter, qos)| (filter.clone(), Some(*qos))).collect();
                drop(known);
                self.confirm(unchanged);
            }
            Step::Published(changes) => {
                self.publishing = false;
                for (filter, qos) in changes {
                    if let Some(qos) = qos {
                        self.published.insert(filter, qos);
                    } else {
                        self.confirmed.remove(&filter);
                        self.published.remove(&filter);
                    }
                }
            }
            Step::Confirmed(changes) => {
                for (filter, qos) in changes {
                    // Removed or lowered since: what is confirmed is only what is still published.
                    if let Some(qos) = qos.filter(|qos| self.published.get(&filter) == Some(qos)) {
                        self.confirmed.insert(filter, qos);
                    }
                }
            }
        }
    }

    /// Publishes what differs, one change at a time.
    pub(super) fn publish(&mut self, machine: &Machine) {
        if self.publishing || self.dirty.is_empty() {
            return;
        }
        let changes: Changes = std::mem::take(&mut self.dirty)
            .into_iter()
            .filter_map(|filter| {
                let wanted = machine.route(&filter);
                (wanted != self.published.get(&filter).copied()).then_some((filter, wanted))
            })
            .collect();
        if changes.is_empty() {
            return;
        }
        self.publishing = true;
        self.order += 1;
        let command = Command::Routes { shard: self.shard, index: self.order, changes: changes.clone() };
        let proposed = self.services.propose_meta(command);
        let services = self.services.clone();
        let added: Changes = changes.iter().filter(|(_, qos)| qos.is_some()).cloned().collect();
        let (published, index) = tokio::sync::oneshot::channel();
        self.steps.push(Box::pin(async move {
            let index = proposed.await;
            published.send(index).unwrap_or_default();
            Step::Published(changes)
        }));
        if !added.is_empty() {
            self.steps.push(Box::pin(async move {
                if let Ok(index) = index.await {
                    services.await_route(index).await;
                }
                Step::Confirmed(added)
            }));
        }
    }

    /// Routes that stand in meta already: confirmed once every leased node has applied meta up to now.
    fn confirm(&mut self, changes: Changes) {
        let services = self.services.clone();
        self.steps.push(Box::pin(async move {
            services.await_route(services.meta_applied()).await;
            Step::Confirmed(changes)
        }));
    }

    /// What waits no longer.
    pub(super) fn ready(&mut self, machine: &Machine) -> Vec<Waiting> {
        let confirmed = &self.confirmed;
        // A filter that nobody has subscribed to any more keeps nobody waiting.
        let settled = |filter: &str| match machine.route(filter) {
            Some(wanted) => confirmed.get(filter).is_some_and(|qos| *qos >= wanted),
            None => true,
        };
        let (ready, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| waiting.filters.iter().all(|filter| settled(filter)));
        self.waiting = waiting;
        ready
    }
}
