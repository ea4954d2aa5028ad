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
    pub(super) fn on_step(&mut self, step: Step, machine: &ShardState, meta: &SharedMeta) {
        match step {
            Step::Fenced => {
                self.serving = true;
                self.publishing = false;
                let order = self.order;
                let stands: Changes = {
                    let known = meta.machine.read();
                    known.routes_of(self.shard).map(|(filter, qos)| (filter.into(), Some(qos))).collect()
                };
                self.note_published(order, &stands);
                self.dirty.extend(self.published.keys().cloned());
                self.dirty.extend(machine.routes().map(|(filter, _)| Box::from(filter)));
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
    pub(super) fn publish(&mut self, machine: &ShardState) {
        if self.publishing || self.dirty.is_empty() {
            return;
        }
        let changes: Changes = std::mem::take(&mut self.dirty)
            .into_iter()
            .filter_map(|filter| {
                let wanted = machine.route_qos(&filter);
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
    pub(super) fn ready(&mut self, machine: &ShardState) -> Vec<Waiting> {
        let confirmed = &self.confirmed;
        // A filter without subscription needs no route.
        let is_confirmed = |filter: &str| match machine.route_qos(filter) {
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
mod tests {
    use std::collections::VecDeque;

    use covey_core::meta::Answer;
    use covey_core::shard::{Claim, Entry, Limits, Operation, Options, Publication, Subscription, WantRetained, Will};
    use covey_types::{ConnectionId, NodeEpoch, NodeId};
    use futures::FutureExt as _;
    use parking_lot::Mutex;
    use tokio::sync::oneshot;

    use super::*;

    type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

    /// Meta, with entries and confirmations under the control of the test.
    struct World {
        meta: Arc<SharedMeta>,
        index: Mutex<u64>,
        proposed: Mutex<VecDeque<(Command, oneshot::Sender<Option<u64>>)>>,
        awaited: Mutex<VecDeque<oneshot::Sender<()>>>,
    }

    impl World {
        fn new() -> Arc<Self> {
            let (proposed, awaited) = (Mutex::default(), Mutex::default());
            Arc::new(Self { meta: SharedMeta::new(), index: Mutex::new(0), proposed, awaited })
        }

        /// Commits and applies the oldest command, even if its proposer has gone.
        fn commit(&self) {
            let (command, answer) = self.proposed.lock().pop_front().expect("nothing is proposed");
            let mut index = self.index.lock();
            *index += 1;
            let answered = self.meta.machine.write().apply(*index, command, &mut Rows::new());
            reply(answer, (answered == Answer::Done).then_some(*index));
        }

        /// Confirms the oldest wait: every leased node has applied its index.
        fn confirm(&self) {
            reply(self.awaited.lock().pop_front().expect("nothing waits for a confirmation"), ());
        }

        fn has_route(&self, filter: &str) -> bool {
            self.meta.machine.read().route(ShardId::new(0), filter).is_some()
        }
    }

    struct Fake(Arc<World>);

    impl LeaderContext for Fake {
        fn propose_meta(&self, command: Command) -> BoxFuture<'static, Option<u64>> {
            let (answer, receiver) = oneshot::channel();
            self.0.proposed.lock().push_back((command, answer));
            Box::pin(async move { receiver.await.unwrap() })
        }

        fn await_route(&self, _index: u64) -> BoxFuture<'static, ()> {
            let (answer, receiver) = oneshot::channel();
            self.0.awaited.lock().push_back(answer);
            Box::pin(async move { receiver.await.unwrap() })
        }

        fn meta_applied(&self) -> u64 {
            *self.0.index.lock()
        }

        fn retained(&self, _filter: Box<str>) -> BoxFuture<'static, Vec<Publication>> {
            Box::pin(std::future::pending())
        }

        fn publish_will(&self, _key: Box<str>, _will: Will) -> BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }

        fn on_missed(&self, _count: u64) {}
    }

    /// A shard with one session, and the routes of its leader.
    struct Shard {
        machine: ShardState,
        owner: OwnerEpoch,
        routes: Routes,
        world: Arc<World>,
    }

    impl Shard {
        fn led(world: &Arc<World>, last: u64) -> Self {
            let mut machine = ShardState::default();
            let claim = Claim {
                client: "c".into(),
                principal: "p".into(),
                node: NodeId::new(1),
                epoch: NodeEpoch::FIRST,
                connection: ConnectionId::new(1),
                clean_start: false,
                expiry: 600,
                will: None,
                limits: Limits { messages: 10, bytes: 1000, subscriptions: 10 },
            };
            let outcome = apply(&mut machine, Operation::Claim(claim));
            let Outcome::Claimed(claimed) = outcome else { panic!("{outcome:?}") };
            let routes = Routes::new(ShardId::new(0), 1, last, Arc::new(Fake(world.clone())));
            Self { machine, owner: claimed.owner, routes, world: world.clone() }
        }

        /// Handles all completed steps.
        fn advance(&mut self) {
            while let Some(Some(step)) = self.routes.steps.next().now_or_never() {
                self.routes.on_step(step, &self.machine, &self.world.meta);
            }
            self.routes.publish(&self.machine);
        }

        fn commit(&mut self) {
            self.world.commit();
            self.advance();
        }

        fn confirm(&mut self) {
            self.world.confirm();
            self.advance();
        }

        fn subscribe(&mut self, filter: &str) {
            let options =
                Options { qos: QoS::AtLeastOnce, no_local: false, retain_as_published: false, identifier: None };
            let wanted = Subscription { filter: filter.into(), options, retained: WantRetained::Never };
            let operation = Operation::Subscribe { client: "c".into(), owner: self.owner, subscriptions: vec![wanted] };
            apply(&mut self.machine, operation);
            self.touched(filter);
            self.routes.wait(Waiting { filters: vec![filter.into()], answer: None, retained: vec![] });
        }

        fn unsubscribe(&mut self, filter: &str) {
            let filters = vec![filter.into()];
            apply(&mut self.machine, Operation::Unsubscribe { client: "c".into(), owner: self.owner, filters });
            self.touched(filter);
        }

        fn touched(&mut self, filter: &str) {
            self.routes.touch(filter.into());
            self.advance();
        }

        /// Returns the number of SUBACKs that may be sent now.
        fn ready(&mut self) -> usize {
            self.routes.ready(&self.machine).len()
        }
    }

    fn apply(machine: &mut ShardState, operation: Operation) -> Outcome {
        machine.apply(Entry { time: 0, operations: vec![operation] }, &mut Rows::new()).remove(0)
    }

    #[test]
    fn a_suback_waits_until_its_route_is_confirmed() {
        let world = World::new();
        let mut shard = Shard::led(&world, 0);
        shard.commit();
        shard.subscribe("a");
        assert_eq!(shard.ready(), 0);
        shard.commit();
        assert_eq!((shard.ready(), world.has_route("a")), (0, true), "not confirmed by any node");
        shard.confirm();
        assert_eq!(shard.ready(), 0, "only the routes as of the fence are confirmed");
        shard.confirm();
        assert_eq!(shard.ready(), 1);
    }

    #[test]
    fn a_term_that_is_begun_again_publishes_above_all_it_published_before() {
        let world = World::new();
        let mut first = Shard::led(&world, 0);
        first.commit();
        first.subscribe("a");
        first.commit();
        first.unsubscribe("a");
        // The removal is in progress when the leader begins again in the same term, and "a" is subscribed again.
        let mut second = Shard::led(&world, first.routes.order());
        drop(first);
        second.subscribe("a");
        second.subscribe("b");
        for _ in 0..3 {
            second.commit();
        }
        assert!(world.has_route("a") && world.has_route("b"), "meta refused the second fence of the term");
    }

    #[test]
    fn a_leader_whom_meta_refuses_confirms_nothing() {
        let world = World::new();
        let mut former = Shard::led(&world, 0);
        former.commit();
        former.subscribe("a");
        let later = Command::FenceShard { shard: ShardId::new(0), index: 2 << 32 };
        world.meta.machine.write().apply(9, later, &mut Rows::new());
        world.commit();
        let step = former.routes.steps.next().now_or_never().flatten();
        assert!(matches!(step, Some(Step::Refused)));
        former.confirm();
        assert_eq!((former.ready(), world.awaited.lock().len()), (0, 0));
    }

    #[test]
    fn a_subscription_waits_where_the_route_is_about_to_go() {
        let world = World::new();
        let mut shard = Shard::led(&world, 0);
        shard.commit();
        shard.subscribe("a");
        shard.commit();
        shard.confirm();
        shard.confirm();
        assert_eq!(shard.ready(), 1);
        shard.unsubscribe("a");
        shard.subscribe("a");
        assert_eq!(shard.ready(), 0, "the removal is in progress");
        shard.commit();
        assert_eq!((shard.ready(), world.has_route("a")), (0, false));
        shard.commit();
        shard.confirm();
        assert_eq!((shard.ready(), world.has_route("a")), (1, true));
    }

    #[test]
    fn a_route_that_came_back_is_not_confirmed_by_the_question_of_before() {
        let world = World::new();
        let mut shard = Shard::led(&world, 0);
        shard.commit();
        shard.confirm();
        shard.subscribe("a");
        shard.commit();
        shard.unsubscribe("a");
        shard.commit();
        shard.subscribe("a");
        shard.commit();
        shard.confirm();
        assert_eq!(shard.ready(), 0, "a node may still have the state without the route");
        shard.confirm();
        // The first SUBSCRIBE is answered together with the second one.
        assert_eq!(shard.ready(), 2);
    }
}
