//! openraft's type configuration, and the encoding of entries.
//!
//! An entry on disk and between nodes is a format byte, a postcard head and the command as raw bytes, so that a
//! command is a slice of the received buffer and is not copied. Invariant: a newer format byte is an error.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use covey_types::NodeId;
use openraft::raft::responder::Responder;
use openraft::raft::{AppendEntriesRequest, ClientWriteResult};
use openraft::{EntryPayload, OptionalSend, RaftTypeConfig, type_config::alias};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::types::Member;

/// Types of all groups. Leader ids are (term, node), so that two candidates of one term do not tie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Types;

impl RaftTypeConfig for Types {
    type D = Command;
    type R = Bytes;
    type NodeId = NodeId;
    type Node = Member;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, NodeId>;
    type Vote = openraft::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Command, NodeId, Member>;
    type Entry = openraft::Entry<Self::LeaderId, Self::Payload>;
    type AsyncRuntime = openraft::TokioRuntime;
    type Responder<T>
        = Answer<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(super) type Raft = openraft::Raft<Types, super::driver::Driver>;
pub(super) type LogId = alias::LogIdOf<Types>;
pub(super) type LeaderId = alias::LeaderIdOf<Types>;
pub(super) type Vote = alias::VoteOf<Types>;
pub(super) type Entry = alias::EntryOf<Types>;
pub(super) type Membership = openraft::Membership<NodeId, Member>;
pub(super) type StoredMembership = alias::StoredMembershipOf<Types>;
pub(super) type SnapshotMeta = alias::SnapshotMetaOf<Types>;
pub(super) type Append = AppendEntriesRequest<Types>;
pub(super) type Written = ClientWriteResult<Types>;

/// A command of a state machine; opaque here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Command(pub(super) Bytes);

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Sends the result of a command to its proposer. It is dropped if the proposer no longer waits.
pub(super) struct Answer<T>(pub(super) oneshot::Sender<T>);

impl<T: Send + 'static> Responder<Types, T> for Answer<T> {
    fn on_complete(self, result: T) {
        drop(self.0.send(result));
    }
}

/// Reason why bytes could not be decoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    /// postcard refused them.
    #[error("failed to decode")]
    Postcard(#[from] postcard::Error),
    /// Written by a newer version.
    #[error("format {0} is not known to this version")]
    Format(u8),
    /// The end is missing.
    #[error("the message is truncated")]
    Short,
}

impl From<DecodeError> for std::io::Error {
    fn from(error: DecodeError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// Format of entries in the log and between nodes.
const FORMAT: u8 = 1;

/// Kind of an entry.
#[derive(Serialize, Deserialize)]
enum Kind {
    /// The entry of a new leader; it has no content.
    Blank,
    /// A command.
    Command,
    /// A membership.
    Membership(Membership),
}

/// First part of an encoded entry; a command follows as raw bytes.
#[derive(Serialize, Deserialize)]
struct Head {
    id: LogId,
    kind: Kind,
}

/// Encodes a value with postcard.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Bytes, DecodeError> {
    Ok(postcard::to_stdvec(value)?.into())
}

/// Decodes a value that [`encode`] encoded.
pub(super) fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, DecodeError> {
    Ok(postcard::from_bytes(bytes)?)
}

/// Appends an encoded entry.
fn put_entry(entry: &Entry, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let (kind, command) = match &entry.payload {
        EntryPayload::Blank => (Kind::Blank, None),
        EntryPayload::Normal(command) => (Kind::Command, Some(&command.0)),
        EntryPayload::Membership(membership) => (Kind::Membership(membership.clone()), None),
    };
    out.push(FORMAT);
    let mut buffer = postcard::to_extend(&Head { id: entry.log_id, kind }, std::mem::take(out))?;
    if let Some(command) = command {
        buffer.extend_from_slice(command);
    }
    *out = buffer;
    Ok(())
}

/// Encodes an entry for the log.
pub(super) fn encode_entry(entry: &Entry) -> Result<Bytes, DecodeError> {
    let mut out = Vec::with_capacity(32 + command_len(entry));
    put_entry(entry, &mut out)?;
    Ok(out.into())
}

/// Decodes an entry; its command is a slice of `bytes`.
pub(super) fn decode_entry(bytes: &Bytes) -> Result<Entry, DecodeError> {
    let (format, rest) = bytes.split_first().ok_or(DecodeError::Short)?;
    if *format != FORMAT {
        return Err(DecodeError::Format(*format));
    }
    let (head, command) = postcard::take_from_bytes::<Head>(rest)?;
    let payload = match head.kind {
        Kind::Blank => EntryPayload::Blank,
        Kind::Command => EntryPayload::Normal(Command(bytes.slice_ref(command))),
        Kind::Membership(membership) => EntryPayload::Membership(membership),
    };
    Ok(openraft::Entry { log_id: head.id, payload })
}

/// Returns the bytes of the command in an entry; 0 for other entries.
pub(super) fn command_len(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(command) => command.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

/// First part of an encoded append request; the entries follow, `lengths` bytes each.
#[derive(Serialize, Deserialize)]
struct AppendHead {
    /// Vote of the leader.
    vote: Vote,
    /// Log id before the first entry; `None` at the beginning of the log.
    prev: Option<LogId>,
    /// Log id up to which the leader knows the log to be committed.
    commit: Option<LogId>,
    /// Bytes of each encoded entry.
    lengths: Vec<u32>,
}

/// Encodes an append request.
pub(super) fn encode_append(request: &Append) -> Result<Bytes, DecodeError> {
    let mut body = Vec::with_capacity(request.entries.iter().map(|entry| 32 + command_len(entry)).sum());
    let mut lengths = Vec::with_capacity(request.entries.len());
    for entry in &request.entries {
        let before = body.len();
        put_entry(entry, &mut body)?;
        lengths.push(u32::try_from(body.len() - before).map_err(|_| DecodeError::Short)?);
    }
    let head = AppendHead { vote: request.vote, prev: request.prev_log_id, commit: request.leader_commit, lengths };
    let head = postcard::to_stdvec(&head)?;
    let mut out = BytesMut::with_capacity(head.len() + body.len());
    out.put_slice(&head);
    out.put_slice(&body);
    Ok(out.freeze())
}

/// Decodes an append request; its commands are slices of `bytes`.
pub(super) fn decode_append(bytes: &Bytes) -> Result<Append, DecodeError> {
    let (head, rest) = postcard::take_from_bytes::<AppendHead>(bytes)?;
    let mut rest = bytes.slice_ref(rest);
    let mut entries = Vec::with_capacity(head.lengths.len().min(4096));
    for length in head.lengths {
        let length = usize::try_from(length).map_err(|_| DecodeError::Short)?;
        if length > rest.len() {
            return Err(DecodeError::Short);
        }
        entries.push(decode_entry(&rest.split_to(length))?);
    }
    Ok(Append { vote: head.vote, prev_log_id: head.prev, leader_commit: head.commit, entries })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId { term: 7, node_id: NodeId::new(3) }, index)
    }

    #[test]
    fn an_append_survives_the_wire_and_shares_its_buffer() {
        let [one, two, three] = [1, 2, 3].map(NodeId::new);
        let membership = Membership::new_with_defaults(vec![[one, two].into()], [three]);
        let request = Append {
            vote: Vote::new_committed(7, three),
            prev_log_id: Some(id(9)),
            leader_commit: None,
            entries: vec![
                openraft::Entry { log_id: id(10), payload: EntryPayload::Blank },
                openraft::Entry { log_id: id(11), payload: EntryPayload::Normal(Command("abc".into())) },
                openraft::Entry { log_id: id(12), payload: EntryPayload::Membership(membership) },
                openraft::Entry { log_id: id(13), payload: EntryPayload::Normal(Command(Bytes::new())) },
            ],
        };
        let bytes = encode_append(&request).unwrap();
        let back = decode_append(&bytes).unwrap();
        assert_eq!(format!("{back:?}"), format!("{request:?}"));
        assert!(decode_append(&bytes.slice(..bytes.len() - 1)).is_err());
    }

    #[test]
    fn an_entry_of_a_newer_format_is_refused() {
        let entry = openraft::Entry { log_id: id(1), payload: EntryPayload::Blank };
        let mut bytes = encode_entry(&entry).unwrap().to_vec();
        bytes[0] = 2;
        assert!(matches!(decode_entry(&bytes.into()), Err(DecodeError::Format(2))));
    }
}
