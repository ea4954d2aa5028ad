//! State machine of the retained group: the newest retained message of each topic, on every node.

use std::collections::BTreeMap;

use bytes::Bytes;
use covey_codec::QoS;
use covey_types::{NodeEpoch, NodeId};
use serde::{Deserialize, Serialize};

use crate::rows::{self, Rows, Unreadable, UnreadableEntry};
use crate::topic::{Filter, Name, Names};

/// One log entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Group time in milliseconds. The proposing node adds the time since it applied the last entry to that entry's
    /// time; the machine never lets it go back.
    pub time: u64,
    /// Writes, in the order of their numbers.
    pub writes: Vec<Write>,
}

/// A PUBLISH with the retain flag.
///
/// Sent by the node that received it, before the message is routed. Deduplicated by `number` within the node's epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Write {
    /// Node that sends the write.
    pub node: NodeId,
    /// Epoch of that node.
    pub epoch: NodeEpoch,
    /// Sequence number, counted from 1 per node epoch.
    pub number: u64,
    /// Topic name.
    pub topic: Box<str>,
    /// QoS of the PUBLISH.
    pub qos: QoS,
    /// Message expiry in seconds; `None` for none.
    pub expiry: Option<u32>,
    /// The payload is empty: the retained message of the topic is deleted ([MQTT-3.3.1-6]).
    pub empty: bool,
    /// The message as an encoded MQTT 5 PUBLISH; opaque here.
    pub body: Bytes,
}

/// Result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The message was stored or deleted. Also the answer to a repetition, even if the first write was
    /// [`Full`](Self::Full).
    Stored,
    /// The message does not fit into the bytes that are allowed for retained messages. Nothing changed.
    Full,
    /// A newer epoch of the node is known. Nothing changed.
    Stale,
    /// The number is not the next one. Nothing changed.
    Gap {
        /// The next number.
        expected: u64,
    },
}

/// Value of a row `t`: a retained message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Log index at which it was stored. Live copies of the same PUBLISH carry it too.
    pub index: u64,
    /// QoS of the PUBLISH.
    pub qos: QoS,
    /// Group time at which it was stored, in milliseconds.
    pub arrived: u64,
    /// Message expiry in seconds, counted from `arrived`; `None` for none.
    pub expiry: Option<u32>,
    /// The message as an encoded MQTT 5 PUBLISH; opaque here.
    pub body: Bytes,
}

/// Value of a row `p`: the newest epoch of a node and the number of its last write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sender {
    /// Newest epoch of which the node has sent a write.
    #[serde(with = "covey_types::zero_is_none")]
    epoch: Option<NodeEpoch>,
    /// Number of the last write of that epoch.
    last: u64,
}

/// State of the retained group.
#[derive(Debug, Default)]
pub struct RetainedState {
    /// Group time of the last entry, in milliseconds.
    time: u64,
    /// Retained messages by topic.
    messages: Names<Message>,
    /// Bytes that the messages are charged: body and 64 bytes each.
    bytes: u64,
    /// Last write of each node.
    senders: BTreeMap<NodeId, Sender>,
    /// Most bytes.
    limit: u64,
}

impl Entry {
    /// Encodes the entry for the log.
    pub fn encode(&self) -> Bytes {
        rows::encode(self).into()
    }

    /// Decodes a log entry.
    ///
    /// # Errors
    /// Returns [`UnreadableEntry`] if the bytes were not written by this version or an earlier one.
    pub fn decode(bytes: &[u8]) -> Result<Self, UnreadableEntry> {
        rows::decode_entry("retained", bytes)
    }
}

impl RetainedState {
    /// Returns an empty state that holds up to `limit` bytes. All nodes must use the same limit, or their states
    /// differ.
    pub fn new(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Applies the log entry at `index` and returns one outcome per write.
    pub fn apply(&mut self, index: u64, entry: Entry, rows: &mut dyn Rows) -> Vec<Outcome> {
        self.time = self.time.max(entry.time);
        rows.put(rows::key(b'm', &[]), rows::encode(&self.time));
        entry.writes.into_iter().map(|write| self.write(index, write, rows)).collect()
    }

    fn write(&mut self, index: u64, write: Write, rows: &mut dyn Rows) -> Outcome {
        let sender = self.senders.entry(write.node).or_default();
        let epoch = Some(write.epoch);
        if epoch < sender.epoch {
            return Outcome::Stale;
        }
        if epoch > sender.epoch {
            *sender = Sender { epoch, last: 0 };
        }
        if write.number <= sender.last {
            return Outcome::Stored;
        }
        if write.number > sender.last + 1 {
            return Outcome::Gap { expected: sender.last + 1 };
        }
        sender.last = write.number;
        rows.put(rows::key(b'p', &[write.node.get()]), rows::encode(&*sender));
        let Ok(name) = write.topic.parse::<Name>() else { return Outcome::Stored };
        self.store(index, name, write, rows)
    }

    fn store(&mut self, index: u64, name: Name, write: Write, rows: &mut dyn Rows) -> Outcome {
        let former = self.messages.get(&name).map_or(0, size);
        if write.empty {
            self.messages.remove(&name);
            self.bytes -= former;
            rows.delete(topic_key(&write.topic));
            return Outcome::Stored;
        }
        let message = Message { index, qos: write.qos, arrived: self.time, expiry: write.expiry, body: write.body };
        let total = self.bytes - former + size(&message);
        if total > self.limit {
            return Outcome::Full;
        }
        rows.put(topic_key(&write.topic), rows::encode(&message));
        self.bytes = total;
        self.messages.insert(name, message);
        Outcome::Stored
    }

    /// Restores the state from all rows.
    ///
    /// # Errors
    /// Returns [`Unreadable`] for a row of an unknown kind, and for a key or value that cannot be decoded.
    pub fn restore(limit: u64, stored: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Result<Self, Unreadable> {
        let mut state = Self::new(limit);
        for (key, value) in stored {
            let kind = key.first().copied().unwrap_or_default();
            let unreadable = Unreadable { kind: char::from(kind) };
            match kind {
                b'm' => state.time = rows::decode(kind, &value)?,
                b'p' => {
                    let [node] = rows::numbers(&key).ok_or(unreadable)?;
                    state.senders.insert(NodeId::new(node), rows::decode(kind, &value)?);
                }
                b't' => {
                    let topic = key.get(1..).and_then(|topic| std::str::from_utf8(topic).ok());
                    let name = topic.and_then(|topic| topic.parse::<Name>().ok()).ok_or(unreadable)?;
                    let message: Message = rows::decode(kind, &value)?;
                    state.bytes += size(&message);
                    state.messages.insert(name, message);
                }
                _ => return Err(unreadable),
            }
        }
        Ok(state)
    }

    /// Returns the retained messages whose topic matches the filter and that have not expired at group time `now`
    /// (milliseconds). `expiry` of each is what remains of it.
    pub fn matches(&self, filter: &Filter, now: u64) -> Vec<(Name, Message)> {
        let mut found = Vec::new();
        self.messages.matches(filter, |name, message| {
            let waited = u32::try_from(now.saturating_sub(message.arrived) / 1000).unwrap_or(u32::MAX);
            let left = message.expiry.map(|expiry| expiry.saturating_sub(waited));
            if left != Some(0) {
                found.push((name.clone(), Message { expiry: left, ..message.clone() }));
            }
        });
        found
    }

    /// Returns group time of the last entry, in milliseconds.
    pub fn time(&self) -> u64 {
        self.time
    }

    /// Returns the number of retained messages.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Returns whether there are no retained messages.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Returns the bytes that the messages are charged.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Bytes that a message is charged.
fn size(message: &Message) -> u64 {
    message.body.len() as u64 + 64
}

fn topic_key(topic: &str) -> Vec<u8> {
    let mut key = vec![b't'];
    key.extend_from_slice(topic.as_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(number: u64, topic: &str, body: &'static [u8]) -> Write {
        let body = Bytes::from_static(body);
        Write {
            node: NodeId::new(1),
            epoch: NodeEpoch::new(1),
            number,
            topic: topic.into(),
            qos: QoS::AtLeastOnce,
            expiry: None,
            empty: body.is_empty(),
            body,
        }
    }

    fn found(state: &RetainedState, filter: &str) -> Vec<Bytes> {
        state.matches(&filter.parse().unwrap(), 0).into_iter().map(|(_, message)| message.body).collect()
    }

    #[test]
    fn the_newest_message_per_topic_is_kept_and_an_empty_one_deletes() {
        let (mut state, mut rows) = (RetainedState::new(1 << 20), BTreeMap::new());
        let entry = |writes| Entry { time: 5, writes };
        state.apply(1, entry(vec![write(1, "a/b", b"1"), write(2, "a/b", b"2"), write(3, "c", b"3")]), &mut rows);
        assert_eq!(found(&state, "a/+"), [&b"2"[..]]);
        assert_eq!(state.apply(2, entry(vec![write(2, "a/b", b"late")]), &mut rows), [Outcome::Stored]);
        assert_eq!(found(&state, "a/+"), [&b"2"[..]], "a repeated write must not undo a newer one");
        state.apply(3, entry(vec![write(4, "a/b", b"")]), &mut rows);
        assert!(found(&state, "a/+").is_empty());
        let back = RetainedState::restore(1 << 20, rows).unwrap();
        assert_eq!((back.len(), back.bytes()), (state.len(), state.bytes()));
    }

    #[test]
    fn a_full_group_refuses_and_keeps_what_it_has() {
        let (mut state, mut rows) = (RetainedState::new(70), BTreeMap::new());
        let entry = |write| Entry { time: 0, writes: vec![write] };
        assert_eq!(state.apply(1, entry(write(1, "a", b"1")), &mut rows), [Outcome::Stored]);
        assert_eq!(state.apply(2, entry(write(2, "b", b"2")), &mut rows), [Outcome::Full]);
        assert_eq!(found(&state, "#").len(), 1);
    }
}
