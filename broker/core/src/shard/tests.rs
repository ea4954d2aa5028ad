use std::collections::BTreeMap;

use bytes::Bytes;
use covey_codec::QoS;
use covey_types::{ConnectionId, InboxSeq, NodeEpoch, NodeId, OwnerEpoch};
use proptest::prelude::*;

use super::*;

type Stored = BTreeMap<Vec<u8>, Vec<u8>>;

const LIMITS: Limits = Limits { messages: 3, bytes: 10_000, subscriptions: 10 };

/// A state machine with its rows, and shorthands for its operations.
#[derive(Default)]
struct Shard {
    state: ShardState,
    rows: Stored,
    time: u64,
    number: u64,
}

impl Shard {
    fn apply(&mut self, operation: Operation) -> Outcome {
        let entry = Entry { time: self.time, operations: vec![operation] };
        let entry = Entry::decode(&entry.encode()).unwrap();
        self.state.apply(entry, &mut self.rows).remove(0)
    }

    fn claim(&mut self, client: &str, expiry: u32, connection: u64) -> Claimed {
        match self.apply(claim(client, expiry, connection)) {
            Outcome::Claimed(claimed) => claimed,
            other => panic!("{other:?}"),
        }
    }

    fn subscribe(&mut self, client: &str, owner: OwnerEpoch, filter: &str, qos: QoS) -> Outcome {
        let options = Options { qos, no_local: false, retain_as_published: false, identifier: None };
        let retained = WantRetained::Always;
        let subscriptions = vec![Subscription { filter: filter.into(), options, retained }];
        self.apply(Operation::Subscribe { client: client.into(), owner, subscriptions })
    }

    fn publish(&mut self, topic: &str) -> Outcome {
        self.number += 1;
        self.apply(Operation::Enqueue(message(self.number, topic)))
    }

    fn queued(&self, client: &str) -> Vec<u64> {
        let (_, session) = self.state.session_of(client).unwrap();
        session.inbox.from(InboxSeq::FIRST).map(|(sequence, _)| sequence.get()).collect()
    }

    fn bodies(&self) -> usize {
        self.rows.keys().filter(|key| key.first() == Some(&b'b')).count()
    }
}

fn range(low: u64, high: u64) -> (InboxSeq, InboxSeq) {
    (InboxSeq::new(low), InboxSeq::new(high))
}

fn claim(client: &str, expiry: u32, connection: u64) -> Operation {
    Operation::Claim(Claim {
        client: client.into(),
        principal: "p".into(),
        node: NodeId::new(1),
        epoch: NodeEpoch::new(1),
        connection: ConnectionId::new(connection),
        clean_start: false,
        expiry,
        will: None,
        limits: LIMITS,
    })
}

fn message(number: u64, topic: &str) -> Enqueue {
    Enqueue { sender: sender(9, number), publication: publication(topic, format!("body {number}")) }
}

fn sender(node: u64, number: u64) -> SenderSeq {
    SenderSeq { node: NodeId::new(node), epoch: NodeEpoch::new(1), number, floor: 0 }
}

fn publication(topic: &str, body: String) -> Publication {
    Publication {
        topic: topic.into(),
        qos: QoS::AtLeastOnce,
        retain: false,
        publisher: None,
        expiry: None,
        retained_index: None,
        once: None,
        body: Bytes::from(body),
    }
}

/// A QoS 2 message with an exactly-once key.
fn once(node: u64, sequence: u64, number: u64, floor: u64) -> Operation {
    let once = Some(Once { key: "q:x:1".into(), number, floor });
    let publication = Publication { qos: QoS::ExactlyOnce, once, ..publication("a", format!("body {number}")) };
    Operation::Enqueue(Enqueue { sender: sender(node, sequence), publication })
}

#[test]
fn a_session_keeps_its_queue_over_connections_and_marks_what_may_have_been_sent() {
    let mut shard = Shard::default();
    let first = shard.claim("c", 60, 1);
    assert!(!first.present);
    shard.subscribe("c", first.owner, "a/#", QoS::AtLeastOnce);
    shard.publish("a/b");
    let second = shard.claim("c", 60, 2);
    assert!(second.present && second.owner > first.owner);
    shard.publish("a/c");
    assert_eq!(shard.queued("c"), [0, 1]);
    let (_, session) = shard.state.session_of("c").unwrap();
    assert_eq!(session.profile.dup_below, InboxSeq::new(1));
    let acknowledge = |owner| Operation::Acknowledge { client: "c".into(), owner, ranges: vec![range(0, 0)] };
    assert_eq!(shard.apply(acknowledge(first.owner)), Outcome::Stale, "an older owner epoch is refused");
    assert_eq!(shard.apply(acknowledge(second.owner)), Outcome::Done);
    assert_eq!(shard.queued("c"), [1]);
    assert_eq!(shard.bodies(), 1);
}

#[test]
fn a_repeated_claim_is_answered_as_the_first_was() {
    let mut shard = Shard::default();
    assert_eq!(shard.claim("c", 60, 1), shard.claim("c", 60, 1));
}

#[test]
fn a_session_belongs_to_its_principal() {
    let mut shard = Shard::default();
    shard.claim("c", 60, 1);
    let Operation::Claim(mut other) = claim("c", 60, 2) else { unreachable!() };
    other.principal = "thief".into();
    assert_eq!(shard.apply(Operation::Claim(other)), Outcome::WrongPrincipal);
}

#[test]
fn repeats_are_dropped_gaps_and_ended_epochs_refused() {
    let mut shard = Shard::default();
    let owner = shard.claim("c", 60, 1).owner;
    shard.subscribe("c", owner, "a", QoS::AtLeastOnce);
    assert_eq!(shard.publish("a"), Outcome::Enqueued { matched: 1, accepted: 1 });
    shard.apply(Operation::Enqueue(message(1, "a")));
    assert_eq!(shard.queued("c").len(), 1);
    assert_eq!(shard.apply(Operation::Enqueue(message(3, "a"))), Outcome::Gap { expected: 2 });
    shard.apply(Operation::NodeDown { node: NodeId::new(9), epoch: NodeEpoch::new(1) });
    assert_eq!(shard.publish("a"), Outcome::Stale);
}

#[test]
fn a_full_inbox_keeps_what_it_has_and_the_sender_learns_it_even_twice() {
    let mut shard = Shard::default();
    let owner = shard.claim("c", 60, 1).owner;
    shard.subscribe("c", owner, "a", QoS::AtLeastOnce);
    for _ in 0..3 {
        assert_eq!(shard.publish("a"), Outcome::Enqueued { matched: 1, accepted: 1 });
    }
    assert_eq!(shard.publish("a"), Outcome::Enqueued { matched: 1, accepted: 0 });
    assert_eq!(shard.apply(Operation::Enqueue(message(4, "a"))), Outcome::Enqueued { matched: 1, accepted: 0 });
    assert_eq!(shard.queued("c"), [0, 1, 2]);
    assert_eq!(shard.claim("c", 60, 2).missed, 1);
}

#[test]
fn exactly_once_holds_over_senders() {
    let mut shard = Shard::default();
    let owner = shard.claim("c", 60, 1).owner;
    shard.subscribe("c", owner, "a", QoS::ExactlyOnce);
    for (node, number, floor) in [(1, 5, 5), (2, 5, 5), (3, 6, 6), (4, 5, 5)] {
        shard.apply(once(20 + node, 1, number, floor));
    }
    assert_eq!(shard.queued("c").len(), 2, "5 once and 6 once");
}

#[test]
fn what_a_full_inbox_refused_is_no_repetition_when_it_is_sent_again() {
    let mut shard = Shard::default();
    let owner = shard.claim("c", 60, 1).owner;
    shard.subscribe("c", owner, "a", QoS::ExactlyOnce);
    for _ in 0..LIMITS.messages {
        shard.publish("a");
    }
    let again = |sequence| once(20, sequence, 1, 1);
    assert_eq!(shard.apply(again(1)), Outcome::Enqueued { matched: 1, accepted: 0 });
    shard.apply(Operation::Acknowledge { client: "c".into(), owner, ranges: vec![range(0, 100)] });
    assert_eq!(shard.apply(again(2)), Outcome::Enqueued { matched: 1, accepted: 1 });
    assert_eq!(shard.queued("c").len(), 1, "it is stored now");
    assert_eq!(shard.apply(again(3)), Outcome::Enqueued { matched: 1, accepted: 1 });
    assert_eq!(shard.queued("c").len(), 1, "and once");
}

#[test]
fn the_filters_of_a_session_fit_into_a_row() {
    let mut shard = Shard::default();
    let owner = shard.claim("c", 60, 1).owner;
    let filter = |last: char| format!("{}{last}", "x".repeat(600_000));
    let granted = |outcome| matches!(outcome, Outcome::Subscribed(all) if matches!(all[0], Subscribed::Granted { .. }));
    assert!(granted(shard.subscribe("c", owner, "a", QoS::AtLeastOnce)));
    shard.subscribe("c", owner, &filter('a'), QoS::AtLeastOnce);
    assert!(!granted(shard.subscribe("c", owner, &filter('b'), QoS::AtLeastOnce)));
    assert!(granted(shard.subscribe("c", owner, "a", QoS::ExactlyOnce)), "an existing subscription can change");
}

#[test]
fn a_node_that_is_down_leaves_sessions_offline_and_wills_due() {
    let mut shard = Shard::default();
    let Operation::Claim(mut with_will) = claim("t", 0, 1) else { unreachable!() };
    with_will.will = Some(Will {
        topic: "w".into(),
        qos: QoS::AtLeastOnce,
        retain: false,
        delay: 0,
        body: Bytes::from_static(b"gone"),
    });
    shard.apply(Operation::Claim(with_will));
    let owner = shard.claim("d", 60, 2).owner;
    shard.time = 5000;
    shard.apply(Operation::NodeDown { node: NodeId::new(1), epoch: NodeEpoch::new(1) });
    assert!(shard.state.session_of("t").is_none(), "a transient session ends with its connection");
    assert_eq!(shard.state.wills().count(), 1);
    assert_eq!(shard.apply(claim("d", 60, 3)), Outcome::Stale, "a claim under an ended epoch is stale");
    assert_eq!(shard.apply(Operation::Expire { client: "d".into(), owner }), Outcome::Known(false));
    shard.time = 65_000;
    assert_eq!(shard.apply(Operation::Expire { client: "d".into(), owner }), Outcome::Known(true));
}

#[test]
fn a_delayed_will_is_not_early_and_a_return_withdraws_it() {
    let mut shard = Shard::default();
    let Operation::Claim(mut with_will) = claim("c", 600, 1) else { unreachable!() };
    with_will.will =
        Some(Will { topic: "w".into(), qos: QoS::AtLeastOnce, retain: false, delay: 10, body: Bytes::new() });
    let Outcome::Claimed(claimed) = shard.apply(Operation::Claim(with_will)) else { unreachable!() };
    let end = |owner| Operation::End(End { client: "c".into(), owner, expiry: None, drop_will: false });
    shard.apply(end(claimed.owner));
    let due = |owner| Operation::WillDue { client: "c".into(), owner };
    shard.time = 9_999;
    assert_eq!(shard.apply(due(claimed.owner)), Outcome::Known(false));
    let again = shard.claim("c", 600, 2);
    assert!(again.present);
    shard.time = 20_000;
    assert_eq!(shard.apply(due(claimed.owner)), Outcome::Known(false));
    assert_eq!(shard.state.wills().count(), 0);
}

#[test]
fn a_route_is_the_highest_qos_and_goes_with_the_last_subscription() {
    let mut shard = Shard::default();
    let (one, two) = (shard.claim("one", 60, 1).owner, shard.claim("two", 60, 2).owner);
    shard.subscribe("one", one, "a/+", QoS::AtMostOnce);
    assert_eq!(shard.state.route_qos("a/+"), Some(QoS::AtMostOnce));
    shard.subscribe("two", two, "a/+", QoS::ExactlyOnce);
    assert_eq!(shard.state.route_qos("a/+"), Some(QoS::ExactlyOnce));
    shard.apply(Operation::Unsubscribe { client: "two".into(), owner: two, filters: vec!["a/+".into()] });
    assert_eq!(shard.state.route_qos("a/+"), Some(QoS::AtMostOnce));
    shard.apply(Operation::Unsubscribe { client: "one".into(), owner: one, filters: vec!["a/+".into()] });
    assert_eq!(shard.state.route_qos("a/+"), None);
}

#[test]
fn an_older_retained_copy_never_follows_a_newer_live_one() {
    let mut shard = Shard::default();
    let owner = shard.claim("c", 60, 1).owner;
    shard.subscribe("c", owner, "a", QoS::AtLeastOnce);
    let retained = |index| Publication { retained_index: Some(index), ..publication("a", "retained".into()) };
    shard.apply(Operation::Enqueue(Enqueue { sender: sender(9, 1), publication: retained(9) }));
    let older = retained(8);
    let snapshot =
        Operation::DeliverRetained { client: "c".into(), owner, filter: "a".into(), messages: vec![older], last: true };
    assert_eq!(shard.apply(snapshot.clone()), Outcome::Known(true));
    assert_eq!(shard.queued("c").len(), 1);
    assert_eq!(shard.apply(snapshot), Outcome::Known(false), "the subscription no longer awaits retained messages");
}

#[test]
fn a_live_copy_that_arrives_late_does_not_hide_a_newer_one() {
    let mut shard = Shard::default();
    let owner = shard.claim("c", 60, 1).owner;
    shard.subscribe("c", owner, "a", QoS::AtLeastOnce);
    let retained = |index| Publication { retained_index: Some(index), ..publication("a", "retained".into()) };
    // Live copies of two publishers arrive in another order than the retained group stored them.
    shard.apply(Operation::Enqueue(Enqueue { sender: sender(8, 1), publication: retained(9) }));
    shard.apply(Operation::Enqueue(Enqueue { sender: sender(9, 1), publication: retained(7) }));
    let messages = vec![retained(8)];
    shard.apply(Operation::DeliverRetained { client: "c".into(), owner, filter: "a".into(), messages, last: true });
    assert_eq!(shard.queued("c").len(), 2, "the retained copy is older than the live copy with index 9");
}

fn any_qos() -> impl Strategy<Value = QoS> {
    prop::sample::select(vec![QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
}

/// A claim of the client: of a durable or a transient session, with or without a will.
fn any_claim(client: &'static str) -> impl Strategy<Value = Operation> {
    (0_u32..3, 1_u64..9, any::<bool>()).prop_map(move |(expiry, connection, clean_start)| {
        let Operation::Claim(mut claim) = claim(client, expiry * 30, connection) else { unreachable!() };
        claim.clean_start = clean_start;
        claim.will = (connection % 3 == 0).then(|| Will {
            topic: "t".into(),
            qos: QoS::AtLeastOnce,
            retain: false,
            delay: expiry,
            body: Bytes::from_static(b"will"),
        });
        Operation::Claim(claim)
    })
}

/// Any operation, with few names, so that operations affect each other.
fn any_operation() -> impl Strategy<Value = Operation> {
    let client = prop::sample::select(vec!["a", "b", "c"]);
    let topic = prop::sample::select(vec!["t", "t/u", "v"]);
    let filter = prop::sample::select(vec!["t", "t/#", "+", "v"]);
    let owner = (1_u64..8).prop_map(OwnerEpoch::new);
    prop_oneof![
        client.clone().prop_flat_map(any_claim),
        (client.clone(), owner.clone(), filter.clone(), any_qos()).prop_map(|(client, owner, filter, qos)| {
            let options =
                Options { qos, no_local: qos == QoS::AtLeastOnce, retain_as_published: false, identifier: None };
            let retained = WantRetained::IfNew;
            let subscriptions = vec![Subscription { filter: filter.into(), options, retained }];
            Operation::Subscribe { client: client.into(), owner, subscriptions }
        }),
        (client.clone(), owner.clone(), filter).prop_map(|(client, owner, filter)| {
            Operation::Unsubscribe { client: client.into(), owner, filters: vec![filter.into()] }
        }),
        (1_u64..40, topic, client.clone()).prop_map(|(number, topic, publisher)| {
            let once = (number % 4 == 0).then(|| Once { key: publisher.into(), number, floor: number / 2 });
            let body = format!("body {number}");
            let publication = Publication { publisher: Some(publisher.into()), once, ..publication(topic, body) };
            Operation::Enqueue(Enqueue { sender: SenderSeq { floor: number / 3, ..sender(9, number) }, publication })
        }),
        (client.clone(), owner.clone(), 0_u64..8, 0_u64..3).prop_map(|(client, owner, low, length)| {
            Operation::Acknowledge { client: client.into(), owner, ranges: vec![range(low, low + length)] }
        }),
        (client.clone(), owner.clone(), 0_u64..8).prop_map(|(client, owner, sequence)| Operation::Pubrec {
            client: client.into(),
            owner,
            sequence: InboxSeq::new(sequence)
        }),
        (client.clone(), owner.clone(), 1_u16..4).prop_map(|(client, owner, packet)| Operation::BeginQos2 {
            client: client.into(),
            owner,
            packet
        }),
        (client.clone(), owner.clone(), 1_u16..4).prop_map(|(client, owner, packet)| Operation::Release {
            client: client.into(),
            owner,
            packet
        }),
        (client.clone(), owner.clone(), any::<bool>(), prop::option::of(0_u32..60)).prop_map(
            |(client, owner, drop_will, expiry)| {
                Operation::End(End { client: client.into(), owner, expiry, drop_will })
            }
        ),
        (client.clone(), owner.clone()).prop_map(|(client, owner)| Operation::Expire { client: client.into(), owner }),
        (client, owner).prop_map(|(client, owner)| Operation::WillDue { client: client.into(), owner }),
        (1_u64..3, 1_u64..3)
            .prop_map(|(node, epoch)| Operation::NodeDown { node: NodeId::new(node), epoch: NodeEpoch::new(epoch) }),
    ]
}

/// Returns everything that is readable from outside, as text.
fn view(state: &ShardState) -> String {
    let sessions: Vec<_> = state.sessions().collect();
    let routes: Vec<_> = state.routes().collect();
    let wills: Vec<_> = state.wills().collect();
    format!("{} {sessions:?} {routes:?} {wills:?}", state.time())
}

proptest! {
    /// A restart between any two entries changes no outcome, no readable state and no row.
    #[test]
    fn a_restart_changes_nothing(operations in prop::collection::vec(any_operation(), 1..60), cut in 0_usize..60) {
        let (mut steady, mut restarted) = (Shard::default(), Shard::default());
        for (position, operation) in operations.into_iter().enumerate() {
            if position == cut {
                restarted.state = ShardState::restore(restarted.rows.clone()).unwrap();
            }
            steady.time += 1000;
            restarted.time += 1000;
            prop_assert_eq!(steady.apply(operation.clone()), restarted.apply(operation));
            prop_assert_eq!(view(&steady.state), view(&restarted.state));
        }
        prop_assert_eq!(&steady.rows, &restarted.rows);
        let unread: usize = steady.state.sessions().map(|(_, session)| session.inbox.len()).sum();
        prop_assert!(steady.bodies() <= unread, "a body without a slot was left behind");
        let bodies = steady.rows.keys().filter(|key| key.first() == Some(&b'b')).cloned();
        for key in bodies {
            prop_assert!(Body::decode(&steady.rows[&key]).is_ok());
        }
    }
}
