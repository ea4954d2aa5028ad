//! The bytes of everything that is stored or sent with postcard, compared with recorded ones.
//!
//! `format.txt` has one line per sample: its name and its bytes in hexadecimal. A difference means that this version
//! cannot read the disks, and does not understand the nodes, of the versions before. Nothing rewrites the file: a new
//! type or variant gets a new line by hand, from the text that the failing test prints.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use covey_codec::QoS;
use covey_types::{NodeEpoch, NodeId, Ordinal, ShardId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{meta, retained};

/// Samples of one file, encoded.
#[derive(Default)]
pub(crate) struct Samples(Vec<String>);

impl Samples {
    /// Adds a sample, whose fields have distinct values, after checking that its bytes can be decoded.
    pub(crate) fn add<T: Serialize + DeserializeOwned>(&mut self, name: &str, value: &T) {
        let bytes = crate::encode(value);
        let back: T = postcard::from_bytes(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(crate::encode(&back), bytes, "{name} changes when it is read and written");
        self.row(name, &bytes);
    }

    /// Adds bytes as they are.
    pub(crate) fn row(&mut self, name: &str, bytes: &[u8]) {
        let hex = bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        self.0.push(format!("{name} {hex}"));
    }

    /// Compares all samples with the recorded lines.
    pub(crate) fn compare(&self, recorded: &str) {
        let recorded: Vec<&str> = recorded.lines().collect();
        for line in self.0.iter().filter(|line| !recorded.contains(&line.as_str())) {
            println!("{line}");
        }
        assert_eq!(self.0, recorded, "the format has changed; the lines that are not recorded are printed above");
    }
}

#[test]
fn meta_and_retained_groups_keep_their_bytes() {
    let mut samples = Samples::default();
    meta_entries(&mut samples);
    meta_rows(&mut samples);
    retained_entries(&mut samples);
    retained_rows(&mut samples);
    samples.compare(include_str!("format.txt"));
}

const NODE: NodeId = NodeId::new(0x0123_4567_89ab_cdef);
const OTHER: NodeId = NodeId::new(0xfedc_ba98_7654_3210);

fn form() -> meta::Command {
    let members = BTreeMap::from([(NODE, Ordinal::new(1000)), (OTHER, Ordinal::new(1001))]);
    meta::Command::Form { cluster: "c1".into(), shards: 300, members }
}

fn routes() -> meta::Command {
    let changes = vec![
        ("a/+".into(), Some(QoS::AtMostOnce)),
        ("b".into(), Some(QoS::AtLeastOnce)),
        ("c/#".into(), Some(QoS::ExactlyOnce)),
        ("d".into(), None),
    ];
    meta::Command::Routes { shard: ShardId::new(301), index: 1002, changes }
}

fn meta_entries(samples: &mut Samples) {
    use meta::{Answer, Command};
    samples.add("meta.Command.Form", &form());
    samples.add("meta.Command.Join", &Command::Join { node: NODE, ordinal: Ordinal::new(1003) });
    samples.add(
        "meta.Command.NodeUp",
        &Command::NodeUp { node: NODE, incarnation: 1004, former: Some(NodeEpoch::new(1005)) },
    );
    samples.add("meta.Command.NodeUp.first", &Command::NodeUp { node: NODE, incarnation: 1006, former: None });
    samples.add("meta.Command.NodeDown", &Command::NodeDown { node: OTHER, epoch: NodeEpoch::new(1007) });
    samples.add("meta.Command.Fence", &Command::FenceShard { shard: ShardId::new(302), index: 1008 });
    samples.add("meta.Command.Routes", &routes());
    samples.add("meta.Command.Resize", &Command::Resize { nodes: 1017 });
    samples.add("meta.Command.Leave", &Command::Leave { node: OTHER });
    samples.add("meta.Answer.Done", &Answer::Done);
    samples.add("meta.Answer.Epoch", &Answer::Epoch(NodeEpoch::new(1009)));
    samples.add("meta.Answer.Refused", &Answer::Refused);
}

fn meta_rows(samples: &mut Samples) {
    let member = meta::Member {
        ordinal: Ordinal::new(1010),
        incarnation: Some(1011),
        epoch: Some(NodeEpoch::new(1012)),
        ended: Some(NodeEpoch::new(1013)),
        removed: true,
    };
    samples.add("meta.row.n", &member);
    samples.add("meta.row.n.new", &meta::Member { ordinal: Ordinal::new(1014), ..meta::Member::default() });
    let header = meta::Header {
        cluster: Some("c2".into()),
        shards: 303,
        last_epoch: Some(NodeEpoch::new(1015)),
        routes_index: Some(1016),
    };
    samples.add("meta.row.m", &header);
    let (mut state, mut rows) = (meta::MetaState::default(), BTreeMap::new());
    state.apply(400, form(), &mut rows);
    state.apply(401, meta::Command::NodeUp { node: NODE, incarnation: 500, former: None }, &mut rows);
    state.apply(402, meta::Command::NodeUp { node: OTHER, incarnation: 501, former: None }, &mut rows);
    state.apply(403, meta::Command::NodeDown { node: OTHER, epoch: NodeEpoch::new(2) }, &mut rows);
    state.apply(404, routes(), &mut rows);
    state.apply(405, meta::Command::Resize { nodes: 1018 }, &mut rows);
    stored(samples, "meta", &rows);
    meta::MetaState::restore(rows).unwrap();
}

fn write(number: u64, topic: &str) -> retained::Write {
    retained::Write {
        node: NODE,
        epoch: NodeEpoch::new(1100),
        number,
        topic: topic.into(),
        qos: QoS::ExactlyOnce,
        expiry: Some(1101),
        empty: false,
        body: Bytes::from_static(b"body"),
    }
}

fn retained_entries(samples: &mut Samples) {
    use retained::Outcome;
    let empty = retained::Write { node: OTHER, qos: QoS::AtLeastOnce, expiry: None, empty: true, ..write(1102, "a/b") };
    samples.add("retained.Entry", &retained::Entry { time: 1103, writes: vec![write(1104, "t"), empty] });
    samples.add("retained.Outcome.Stored", &Outcome::Stored);
    samples.add("retained.Outcome.Full", &Outcome::Full);
    samples.add("retained.Outcome.Stale", &Outcome::Stale);
    samples.add("retained.Outcome.Gap", &Outcome::Gap { expected: 1105 });
}

fn retained_rows(samples: &mut Samples) {
    let body = Bytes::from_static(b"body");
    let message = retained::Message { index: 1106, qos: QoS::AtLeastOnce, arrived: 1107, expiry: Some(1108), body };
    samples.add("retained.row.t", &message);
    let (mut state, mut rows) = (retained::RetainedState::new(1 << 20), BTreeMap::new());
    state.apply(405, retained::Entry { time: 1109, writes: vec![write(1, "t"), write(2, "a/b")] }, &mut rows);
    stored(samples, "retained", &rows);
    retained::RetainedState::restore(1 << 20, rows).unwrap();
}

/// Adds the rows of a state machine, with their keys.
pub(crate) fn stored(samples: &mut Samples, group: &str, rows: &BTreeMap<Vec<u8>, Vec<u8>>) {
    let kinds: BTreeSet<u8> = rows.keys().filter_map(|key| key.first().copied()).collect();
    for kind in kinds {
        for (number, (key, value)) in rows.iter().filter(|(key, _)| key.first() == Some(&kind)).enumerate() {
            samples.row(&format!("{group}.stored.{}.{number}.key", char::from(kind)), key);
            samples.row(&format!("{group}.stored.{}.{number}.value", char::from(kind)), value);
        }
    }
}
