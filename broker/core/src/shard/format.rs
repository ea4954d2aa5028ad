//! The bytes of a shard's entries, outcomes and rows, compared with `format.txt` beside this file.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use covey_codec::QoS;
use covey_types::{ConnectionId, InboxSeq, NodeEpoch, NodeId, OwnerEpoch};

use super::session::{Awaiting, Receiving};
use super::state::{Header, Seen, Sender};
use super::*;
use crate::dedup::Window;
use crate::format::{Samples, stored};
use crate::live_copies::LiveCopies;

const NODE: NodeId = NodeId::new(0x0123_4567_89ab_cdef);
const LIMITS: Limits = Limits { messages: 1000, bytes: 1_000_000, subscriptions: 1001 };

#[test]
fn a_shard_keeps_its_bytes() {
    let mut samples = Samples::default();
    claims(&mut samples);
    subscriptions(&mut samples);
    messages(&mut samples);
    timers(&mut samples);
    outcomes(&mut samples);
    rows(&mut samples);
    state(&mut samples);
    samples.compare(include_str!("format.txt"));
}

fn will() -> Will {
    Will { topic: "w/t".into(), qos: QoS::ExactlyOnce, retain: true, delay: 1002, body: Bytes::from_static(b"will") }
}

fn claim() -> Claim {
    Claim {
        client: "client".into(),
        principal: "user".into(),
        node: NODE,
        epoch: NodeEpoch::new(1003),
        connection: ConnectionId::new(1004),
        clean_start: true,
        expiry: 1005,
        will: Some(will()),
        limits: LIMITS,
    }
}

fn enqueue() -> Enqueue {
    let sender = SenderSeq { node: NODE, epoch: NodeEpoch::new(1006), number: 1007, floor: 1008 };
    Enqueue { sender, publication: publication() }
}

fn publication() -> Publication {
    Publication {
        topic: "a/b".into(),
        qos: QoS::AtLeastOnce,
        retain: true,
        publisher: Some("publisher".into()),
        expiry: Some(1009),
        retained_index: Some(1010),
        once: Some(Once { key: "q:publisher:1".into(), number: 1011, floor: 1012 }),
        body: Bytes::from_static(b"body"),
    }
}

/// A retained message as it is in `Operation::DeliverRetained`.
fn retained() -> Publication {
    Publication {
        topic: "a/c".into(),
        qos: QoS::AtMostOnce,
        retain: true,
        publisher: None,
        expiry: None,
        retained_index: Some(1013),
        once: None,
        body: Bytes::from_static(b"old"),
    }
}

fn options(qos: QoS) -> Options {
    let (one, two) = (qos == QoS::AtLeastOnce, qos == QoS::ExactlyOnce);
    Options { qos, no_local: one, retain_as_published: two, identifier: two.then_some(1014) }
}

fn subscription(filter: &str, qos: QoS, retained: WantRetained) -> Subscription {
    Subscription { filter: filter.into(), options: options(qos), retained }
}

fn claims(samples: &mut Samples) {
    samples.add("Operation.Claim", &Operation::Claim(claim()));
    samples.add("Operation.Claim.no_will", &Operation::Claim(Claim { clean_start: false, will: None, ..claim() }));
    let end = End { client: "client".into(), owner: OwnerEpoch::new(1015), expiry: Some(1016), drop_will: true };
    samples.add("Operation.End", &Operation::End(end.clone()));
    samples.add("Operation.End.as_it_is", &Operation::End(End { expiry: None, drop_will: false, ..end }));
}

fn subscriptions(samples: &mut Samples) {
    let subscriptions = vec![
        subscription("a/+", QoS::AtMostOnce, WantRetained::Always),
        subscription("b/#", QoS::AtLeastOnce, WantRetained::IfNew),
        subscription("c", QoS::ExactlyOnce, WantRetained::Never),
    ];
    let client = || Box::from("client");
    samples.add(
        "Operation.Subscribe",
        &Operation::Subscribe { client: client(), owner: OwnerEpoch::new(1017), subscriptions },
    );
    let filters = vec!["a/+".into(), "b/#".into()];
    samples.add(
        "Operation.Unsubscribe",
        &Operation::Unsubscribe { client: client(), owner: OwnerEpoch::new(1018), filters },
    );
    samples.add(
        "Operation.Receive",
        &Operation::BeginQos2 { client: client(), owner: OwnerEpoch::new(1019), packet: 1020 },
    );
    samples
        .add("Operation.Release", &Operation::Release { client: client(), owner: OwnerEpoch::new(1021), packet: 1022 });
}

fn messages(samples: &mut Samples) {
    let client = || Box::from("client");
    samples.add("Operation.Enqueue", &Operation::Enqueue(enqueue()));
    let plain = Publication {
        qos: QoS::ExactlyOnce,
        retain: false,
        expiry: None,
        retained_index: None,
        once: None,
        ..publication()
    };
    let plain = Enqueue { publication: plain, ..enqueue() };
    samples.add("Operation.Enqueue.plain", &Operation::Enqueue(plain));
    let ranges = [(1024, 1025), (1027, 1027)].map(|(low, high)| (InboxSeq::new(low), InboxSeq::new(high))).into();
    let acknowledge = Operation::Acknowledge { client: client(), owner: OwnerEpoch::new(1023), ranges };
    samples.add("Operation.Acknowledge", &acknowledge);
    let received = Operation::Pubrec { client: client(), owner: OwnerEpoch::new(1028), sequence: InboxSeq::new(1029) };
    samples.add("Operation.Received", &received);
    let messages = vec![retained()];
    let snapshot = Operation::DeliverRetained {
        client: client(),
        owner: OwnerEpoch::new(1030),
        filter: "a/+".into(),
        messages,
        last: true,
    };
    samples.add("Operation.Snapshot", &snapshot);
}

fn timers(samples: &mut Samples) {
    let client = || Box::from("client");
    samples.add("Operation.NodeDown", &Operation::NodeDown { node: NODE, epoch: NodeEpoch::new(1031) });
    samples.add("Operation.Expire", &Operation::Expire { client: client(), owner: OwnerEpoch::new(1032) });
    samples.add("Operation.WillDue", &Operation::WillDue { client: client(), owner: OwnerEpoch::new(1033) });
    samples.add("Operation.WillDone", &Operation::WillDone { will: 1034 });
    let operations =
        vec![Operation::WillDone { will: 1035 }, Operation::NodeDown { node: NODE, epoch: NodeEpoch::new(1036) }];
    samples.add("Entry", &Entry { time: 1037, operations });
}

fn outcomes(samples: &mut Samples) {
    samples.add("Outcome.Done", &Outcome::Done);
    let filters = vec!["a/+".into()];
    let claimed = Claimed { owner: OwnerEpoch::new(1038), present: true, durable: false, filters, missed: 1039 };
    samples.add("Outcome.Claimed", &Outcome::Claimed(claimed));
    samples.add("Outcome.WrongPrincipal", &Outcome::WrongPrincipal);
    samples.add("Outcome.Stale", &Outcome::Stale);
    let granted = vec![
        Subscribed::Granted { qos: QoS::AtMostOnce, awaits_retained: true },
        Subscribed::Granted { qos: QoS::AtLeastOnce, awaits_retained: false },
        Subscribed::Granted { qos: QoS::ExactlyOnce, awaits_retained: true },
        Subscribed::LimitReached,
    ];
    samples.add("Outcome.Subscribed", &Outcome::Subscribed(granted));
    samples.add("Outcome.Unsubscribed", &Outcome::Unsubscribed(vec![true, false]));
    samples.add("Outcome.Enqueued", &Outcome::Enqueued { matched: 1040, accepted: 1041 });
    samples.add("Outcome.Gap", &Outcome::Gap { expected: 1042 });
    samples
        .add("Outcome.Receiving", &Outcome::Qos2Begun { number: 1043, floor: 1044, created_by: OwnerEpoch::new(1045) });
    samples.add("Outcome.Known", &Outcome::Known(true));
}

fn rows(samples: &mut Samples) {
    let header = Header {
        time: 1046,
        last_session: 1047,
        last_owner: Some(OwnerEpoch::new(1048)),
        last_body: 1049,
        last_will: 1050,
    };
    samples.add("row.m", &header);
    let profile = Profile {
        client: "client".into(),
        principal: "user".into(),
        owner: OwnerEpoch::new(1051),
        holder: Some(Holder { node: NODE, epoch: NodeEpoch::new(1052), connection: ConnectionId::new(1053) }),
        present: true,
        durable: false,
        expiry: 1054,
        offline_since: Some(1055),
        will: Some(will()),
        limits: LIMITS,
        subscriptions: BTreeMap::from([
            ("a/+".into(), options(QoS::AtMostOnce)),
            ("b".into(), options(QoS::AtLeastOnce)),
            ("c".into(), options(QoS::ExactlyOnce)),
        ]),
        dup_below: InboxSeq::new(1056),
        created_by: OwnerEpoch::new(1057),
    };
    samples.add("row.s", &profile);
    samples.add("row.s.offline", &Profile { holder: None, durable: true, will: None, ..profile });
    samples.add("row.n", &Counters { next: InboxSeq::new(1058), missed: 1059 });
    let slot = Slot {
        body: 1060,
        size: 1061,
        qos: QoS::ExactlyOnce,
        retain: true,
        received: false,
        identifiers: vec![1062, 1063],
    };
    samples.add("row.i", &slot);
    samples.add("row.i.received", &Slot { qos: QoS::AtLeastOnce, retain: false, received: true, ..slot });
    let body = Body { topic: "a/b".into(), arrived: 1064, expiry: Some(1065), data: Bytes::from_static(b"body") };
    samples.add("row.b", &body);
    samples.add("row.q", &Receiving { last: 1066, numbers: BTreeMap::from([(1067, 1068), (1069, 1070)]) });
    let mut live = LiveCopies::default();
    live.note("a/b", 1071);
    let awaiting = Awaiting::from([("a/+".into(), live)]);
    samples.add("row.a", &awaiting);
    samples.add(
        "row.p",
        &Sender {
            ended: Some(NodeEpoch::new(1072)),
            epoch: Some(NodeEpoch::new(1073)),
            last: 1074,
            rejected: BTreeSet::from([1075, 1076]),
        },
    );
    samples.add("row.p.new", &Sender::default());
    samples.add("row.o", &Seen { window: Window::new(1077, [1078, 1079]), used: 1080 });
    samples.add("row.w", &will());
}

/// Rows with their keys, as a state machine writes them.
fn state(samples: &mut Samples) {
    let (mut state, mut rows) = (ShardState::default(), BTreeMap::new());
    let client = || Box::from("client");
    let wanted = |filter, qos| subscription(filter, qos, WantRetained::Always);
    let once = Some(Once { key: "q:publisher:1".into(), number: 1012, floor: 1011 });
    let numbered = |number, qos, once| Enqueue {
        sender: SenderSeq { number, floor: number, ..enqueue().sender },
        publication: Publication { qos, once, ..publication() },
    };
    let operations = vec![
        Operation::Claim(claim()),
        Operation::Subscribe {
            client: client(),
            owner: OwnerEpoch::new(1),
            subscriptions: vec![wanted("a/+", QoS::ExactlyOnce), wanted("b", QoS::AtLeastOnce)],
        },
        Operation::Enqueue(numbered(1, QoS::AtLeastOnce, once)),
        Operation::Enqueue(numbered(2, QoS::ExactlyOnce, None)),
        Operation::BeginQos2 { client: client(), owner: OwnerEpoch::new(1), packet: 300 },
        Operation::Pubrec { client: client(), owner: OwnerEpoch::new(1), sequence: InboxSeq::new(1) },
        Operation::Claim(Claim { client: "other".into(), will: Some(Will { delay: 0, ..will() }), ..claim() }),
        Operation::End(End { client: "other".into(), owner: OwnerEpoch::new(2), expiry: None, drop_will: false }),
    ];
    let outcomes = state.apply(Entry { time: 5000, operations }, &mut rows);
    assert!(outcomes.contains(&Outcome::Known(true)), "PUBREC is committed: {outcomes:?}");
    assert_eq!(outcomes.last(), Some(&Outcome::Done));
    stored(samples, "shard", &rows);
    ShardState::restore(rows).unwrap();
}
