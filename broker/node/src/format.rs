//! The bytes of the frames between nodes, compared with recorded ones.
//!
//! `format.txt` has one line per sample: its name and its bytes in hexadecimal. A difference means that this version
//! does not understand the nodes of the versions before. Nothing rewrites the file: a new frame gets a new line by
//! hand, from the text that the failing test prints.

use bytes::Bytes;
use covey_codec::QoS;
use covey_core::shard::{Enqueue, Once, Operation, Outcome, Publication, SenderSeq};
use covey_types::{InboxSeq, NodeEpoch, NodeId, OwnerEpoch, ShardId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::lease::{Grant, Renewal, Verdict};
use crate::shard::{FromShard, HeldSession, Item, ToShard};
use crate::transient::{FromTransient, Numbered, ToTransient};

const NODE: NodeId = NodeId::new(0x0123_4567_89ab_cdef);
const OTHER: NodeId = NodeId::new(0xfedc_ba98_7654_3210);

/// Encoded samples.
#[derive(Default)]
struct Samples(Vec<String>);

impl Samples {
    /// Adds a sample, whose fields have distinct values, after checking that its bytes can be decoded.
    fn add<T: Serialize + DeserializeOwned>(&mut self, name: &str, value: &T) {
        let bytes = covey_core::encode(value);
        let back: T = postcard::from_bytes(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(covey_core::encode(&back), bytes, "{name} changes when it is read and written");
        let hex = bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        self.0.push(format!("{name} {hex}"));
    }
}

#[test]
fn frames_between_nodes_keep_their_bytes() {
    let mut samples = Samples::default();
    to_shard(&mut samples);
    from_shard(&mut samples);
    leases(&mut samples);
    to_transient(&mut samples);
    from_transient(&mut samples);
    let recorded: Vec<&str> = include_str!("format.txt").lines().collect();
    for line in samples.0.iter().filter(|line| !recorded.contains(&line.as_str())) {
        println!("{line}");
    }
    assert_eq!(samples.0, recorded, "the format has changed; the lines that are not recorded are printed above");
}

fn held() -> HeldSession {
    HeldSession { client: "client".into(), owner: OwnerEpoch::new(1000), window: 1001 }
}

fn once() -> Once {
    Once { key: "w:3:7".into(), number: 1002, floor: 1003 }
}

fn to_shard(samples: &mut Samples) {
    samples.add(
        "ToShard.Attach",
        &ToShard::Attach { shard: ShardId::new(300), node: NODE, epoch: NodeEpoch::new(1004), sessions: vec![held()] },
    );
    samples.add("ToShard.Open", &ToShard::Open(held()));
    let operation = Operation::NodeDown { node: OTHER, epoch: NodeEpoch::new(1005) };
    samples.add("ToShard.Call", &ToShard::Call { id: 1006, operation });
    let sender = SenderSeq { node: NODE, epoch: NodeEpoch::new(1007), number: 1008, floor: 1009 };
    let publication =
        Publication { qos: QoS::AtLeastOnce, expiry: Some(1010), retained_index: Some(1011), ..publication() };
    let enqueue = Enqueue { sender, publication };
    samples.add("ToShard.Enqueue", &ToShard::Enqueue(enqueue));
    let qos0 = ToShard::Qos0 {
        topic: "a/b".into(),
        publisher: Some("publisher".into()),
        retain: true,
        below: 3,
        expiry: Some(1012),
        body: Bytes::from_static(b"body"),
    };
    samples.add("ToShard.Qos0", &qos0);
    let acknowledge = ToShard::Acknowledge {
        client: "client".into(),
        owner: OwnerEpoch::new(1013),
        sequences: [1014, 1015].map(InboxSeq::new).into(),
    };
    samples.add("ToShard.Acknowledge", &acknowledge);
}

fn from_shard(samples: &mut Samples) {
    samples.add("FromShard.Attached", &FromShard::Attached);
    samples.add("FromShard.Answer", &FromShard::Answer { id: 1016, outcome: Outcome::Known(true) });
    let outcome = Outcome::Enqueued { matched: 1017, accepted: 1018 };
    samples.add("FromShard.Enqueued", &FromShard::Enqueued { number: 1019, outcome });
    let item = Item {
        sequence: InboxSeq::new(1020),
        qos: QoS::ExactlyOnce,
        dup: true,
        retain: false,
        identifiers: vec![1021, 1022],
        expiry: Some(1023),
        body: Some(Bytes::from_static(b"body")),
    };
    let release = Item {
        sequence: InboxSeq::new(1024),
        qos: QoS::AtMostOnce,
        dup: false,
        retain: true,
        body: None,
        expiry: None,
        ..item.clone()
    };
    let items = vec![item, release];
    samples
        .add("FromShard.Deliver", &FromShard::Deliver { client: "client".into(), owner: OwnerEpoch::new(1025), items });
    let qos0 = FromShard::Qos0 {
        client: "client".into(),
        owner: OwnerEpoch::new(1026),
        retain: true,
        identifiers: vec![1027],
        expiry: Some(1028),
        body: Bytes::from_static(b"body"),
    };
    samples.add("FromShard.Qos0", &qos0);
    samples.add("FromShard.Lost", &FromShard::Lost { client: "client".into(), owner: OwnerEpoch::new(1029) });
}

fn leases(samples: &mut Samples) {
    let renewal =
        Renewal { node: NODE, epoch: NodeEpoch::new(1030), sequence: 1031, applied: 1032, reaches: vec![NODE, OTHER] };
    samples.add("Renewal", &renewal);
    let granted = Verdict::Granted { commit: 1033, leased: vec![OTHER, NODE], anew: true };
    samples.add("Grant.Granted", &Grant { sequence: 1034, verdict: granted });
    samples.add("Grant.Refused", &Grant { sequence: 1035, verdict: Verdict::Refused });
    samples.add("Grant.Ended", &Grant { sequence: 1036, verdict: Verdict::Ended });
}

fn publication() -> Publication {
    Publication {
        topic: "a/b".into(),
        qos: QoS::ExactlyOnce,
        retain: true,
        publisher: Some("publisher".into()),
        expiry: Some(1038),
        retained_index: Some(1037),
        once: Some(once()),
        body: Bytes::from_static(b"body"),
    }
}

fn to_transient(samples: &mut Samples) {
    samples.add("ToTransient.Hello", &ToTransient::Hello { node: NODE, epoch: NodeEpoch::new(1039) });
    let numbered = Numbered { number: 1040, message: publication() };
    samples.add("ToTransient.Message", &ToTransient::Message(Box::new(numbered)));
    let plain = Publication {
        qos: QoS::AtMostOnce,
        retain: false,
        retained_index: None,
        once: None,
        expiry: None,
        ..publication()
    };
    samples.add("ToTransient.Qos0", &ToTransient::Qos0(plain));
    samples.add("ToTransient.Sync", &ToTransient::Sync(1041));
    samples.add("ToTransient.Known", &ToTransient::Known(1042));
}

fn from_transient(samples: &mut Samples) {
    let filters = vec![("a/+".into(), QoS::AtMostOnce), ("b".into(), QoS::AtLeastOnce), ("c".into(), QoS::ExactlyOnce)];
    samples.add(
        "FromTransient.State",
        &FromTransient::State { epoch: Some(NodeEpoch::new(1043)), change: 1044, filters, received: 1045 },
    );
    let change = FromTransient::Change { change: 1046, filter: "a/+".into(), qos: Some(QoS::AtLeastOnce) };
    samples.add("FromTransient.Change", &change);
    let gone = FromTransient::Change { change: 1047, filter: "a/+".into(), qos: None };
    samples.add("FromTransient.Change.gone", &gone);
    samples.add("FromTransient.Receipt", &FromTransient::Receipt { number: 1048, matched: 1049 });
    samples.add("FromTransient.Synced", &FromTransient::Synced(1050));
}
