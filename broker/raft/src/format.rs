//! The bytes of entries, votes, marks and requests, compared with recorded ones.
//!
//! `format.txt` has one line per sample: its name and its bytes in hexadecimal. A difference means that this version
//! cannot read the disks, and does not understand the nodes, of the versions before. Nothing rewrites the file: a new
//! sample gets a new line by hand, from the text that the failing test prints.

use std::collections::BTreeMap;

use bytes::Bytes;
use covey_types::{GroupId, NodeId, Ordinal, ShardId};
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesResponse, SnapshotResponse, StreamAppendResult};
use openraft::raft::{TransferLeaderRequest, VoteRequest, VoteResponse};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::raft::{
    Append, Command, Entry, LeaderId, LogId, Membership, SnapshotMeta, StoredMembership, Types, Vote, decode,
    decode_append, decode_entry, encode, encode_append, encode_entry,
};
use super::snapshot::Head;
use super::state_store::Mark;
use super::types::Member;

const NODE: NodeId = NodeId::new(0x0123_4567_89ab_cdef);
const OTHER: NodeId = NodeId::new(0xfedc_ba98_7654_3210);

/// Encoded samples.
#[derive(Default)]
struct Samples(Vec<String>);

impl Samples {
    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        let hex = bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        self.0.push(format!("{name} {hex}"));
    }

    /// Adds a sample, whose fields have distinct values, after checking that its bytes can be decoded.
    fn add<T: Serialize + DeserializeOwned>(&mut self, name: &str, value: &T) {
        let bytes = encode(value).unwrap();
        let back: T = decode(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(encode(&back).unwrap(), bytes, "{name} changes when it is read and written");
        self.bytes(name, &bytes);
    }

    fn entry(&mut self, name: &str, entry: &Entry) {
        let bytes = encode_entry(entry).unwrap();
        assert_eq!(encode_entry(&decode_entry(&bytes).unwrap()).unwrap(), bytes);
        self.bytes(name, &bytes);
    }
}

#[test]
fn the_groups_keep_their_bytes() {
    let mut samples = Samples::default();
    log(&mut samples);
    requests(&mut samples);
    replies(&mut samples);
    let recorded: Vec<&str> = include_str!("format.txt").lines().collect();
    for line in samples.0.iter().filter(|line| !recorded.contains(&line.as_str())) {
        println!("{line}");
    }
    assert_eq!(samples.0, recorded, "the format has changed; the lines that are not recorded are printed above");
}

fn id(index: u64) -> LogId {
    LogId::new(LeaderId { term: 1000, node_id: NODE }, index)
}

fn membership() -> Membership {
    let nodes = [(NODE, 1001), (OTHER, 1002)].map(|(node, ordinal)| (node, Member { ordinal: Ordinal::new(ordinal) }));
    Membership::new(vec![[NODE].into(), [NODE, OTHER].into()], BTreeMap::from(nodes)).unwrap()
}

fn stored() -> StoredMembership {
    StoredMembership::new(Some(id(1003)), membership())
}

fn entries() -> [Entry; 3] {
    [
        openraft::Entry { log_id: id(1004), payload: EntryPayload::Blank },
        openraft::Entry { log_id: id(1005), payload: EntryPayload::Normal(Command(Bytes::from_static(b"command"))) },
        openraft::Entry { log_id: id(1006), payload: EntryPayload::Membership(membership()) },
    ]
}

/// Adds samples of the values in the log, in the state store and in snapshots.
fn log(samples: &mut Samples) {
    let [blank, command, changed] = entries();
    samples.entry("entry.Blank", &blank);
    samples.entry("entry.Command", &command);
    samples.entry("entry.Membership", &changed);
    samples.add("vote", &Vote::new(1007, NODE));
    samples.add("vote.committed", &Vote::new_committed(1008, OTHER));
    samples.add("log_id", &id(1009));
    samples.add("mark", &Mark { applied: Some(id(1010)), membership: stored() });
    samples.add("mark.new", &Mark::default());
    let meta = SnapshotMeta { last_log_id: Some(id(1011)), last_membership: stored() };
    samples.add("snapshot.head", &Head { format: 1, group: GroupId::shard(ShardId::new(300)), meta });
}

fn requests(samples: &mut Samples) {
    let append = Append {
        vote: Vote::new_committed(1012, NODE),
        prev_log_id: Some(id(1013)),
        leader_commit: Some(id(1014)),
        entries: entries().into(),
    };
    let bytes = encode_append(&append).unwrap();
    assert_eq!(encode_append(&decode_append(&bytes).unwrap()).unwrap(), bytes);
    samples.bytes("append", &bytes);
    samples.add("vote_request", &VoteRequest::<Types>::new(Vote::new(1015, OTHER), Some(id(1016))));
    let transfer = TransferLeaderRequest::<Types>::new(Vote::new_committed(1017, NODE), OTHER, Some(id(1018)));
    samples.add("transfer", &transfer);
    let meta = SnapshotMeta { last_log_id: Some(id(1019)), last_membership: stored() };
    samples.add("snapshot.request", &(Vote::new_committed(1020, NODE), meta));
}

fn replies(samples: &mut Samples) {
    samples.add("append_reply.Success", &AppendEntriesResponse::<Types>::Success);
    samples.add("append_reply.HigherVote", &AppendEntriesResponse::<Types>::HigherVote(Vote::new(1021, OTHER)));
    let appended: StreamAppendResult<Types> = Ok(Some(id(1022)));
    samples.add("stream_reply", &appended);
    samples.add("vote_reply", &VoteResponse::<Types>::new(Vote::new(1023, NODE), Some(id(1024)), true));
    samples.add("snapshot_reply", &SnapshotResponse::<Types>::new(Vote::new(1025, NODE)));
}
