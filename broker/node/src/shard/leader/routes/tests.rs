//! Interleavings of a leader's changes with meta, step by step.

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
        let answered = self.meta.state.write().apply(*index, command, &mut Rows::new());
        reply(answer, (answered == Answer::Done).then_some(*index));
    }

    /// Confirms the oldest wait: every leased node has applied its index.
    fn confirm(&self) {
        reply(self.awaited.lock().pop_front().expect("nothing waits for a confirmation"), ());
    }

    fn has_route(&self, filter: &str) -> bool {
        self.meta.state.read().route(ShardId::new(0), filter).is_some()
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
    state: ShardState,
    owner: OwnerEpoch,
    routes: Routes,
    world: Arc<World>,
}

impl Shard {
    fn led(world: &Arc<World>, last: u64) -> Self {
        let mut state = ShardState::default();
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
        let outcome = apply(&mut state, Operation::Claim(claim));
        let Outcome::Claimed(claimed) = outcome else { panic!("{outcome:?}") };
        let routes = Routes::new(ShardId::new(0), 1, last, Arc::new(Fake(world.clone())));
        Self { state, owner: claimed.owner, routes, world: world.clone() }
    }

    /// Handles all completed steps.
    fn advance(&mut self) {
        while let Some(Some(step)) = self.routes.steps.next().now_or_never() {
            self.routes.on_step(step, &self.state, &self.world.meta);
        }
        self.routes.publish(&self.state);
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
        let options = Options { qos: QoS::AtLeastOnce, no_local: false, retain_as_published: false, identifier: None };
        let wanted = Subscription { filter: filter.into(), options, retained: WantRetained::Never };
        let operation = Operation::Subscribe { client: "c".into(), owner: self.owner, subscriptions: vec![wanted] };
        apply(&mut self.state, operation);
        self.touched(filter);
        self.routes.wait(Waiting { filters: vec![filter.into()], answer: None, retained: vec![] });
    }

    fn unsubscribe(&mut self, filter: &str) {
        let filters = vec![filter.into()];
        apply(&mut self.state, Operation::Unsubscribe { client: "c".into(), owner: self.owner, filters });
        self.touched(filter);
    }

    fn touched(&mut self, filter: &str) {
        self.routes.touch(filter.into());
        self.advance();
    }

    /// Returns the number of SUBACKs that may be sent now.
    fn ready(&mut self) -> usize {
        self.routes.ready(&self.state).len()
    }
}

fn apply(state: &mut ShardState, operation: Operation) -> Outcome {
    state.apply(Entry { time: 0, operations: vec![operation] }, &mut Rows::new()).remove(0)
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
    world.meta.state.write().apply(9, later, &mut Rows::new());
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
