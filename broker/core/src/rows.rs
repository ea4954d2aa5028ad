//! How a state machine stores what it must find again after a restart: key-value rows, written in one batch with the
//! applied index by whoever drives the machine.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Takes the rows of one apply.
pub trait Rows {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>);
    fn delete(&mut self, key: Vec<u8>);
}

/// Rows in memory, for tests and simulations.
impl Rows for std::collections::BTreeMap<Vec<u8>, Vec<u8>> {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.insert(key, value);
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.remove(&key);
    }
}

/// A stored row that this code cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to read a stored row of kind {kind:?}")]
pub struct Unreadable {
    pub kind: char,
}

/// A log entry that this code cannot read: no replica may skip what others have applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("failed to read a log entry of the {group} group: it was written by a newer version; start that one")]
pub struct UnreadableEntry {
    /// Kind of the group.
    pub group: &'static str,
}

/// Encodes what is stored or sent.
#[expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "postcard fails on a full buffer or on a sequence without length; there is neither"
)]
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("a vector takes every value")
}

pub(crate) fn decode_entry<T: DeserializeOwned>(group: &'static str, bytes: &[u8]) -> Result<T, UnreadableEntry> {
    postcard::from_bytes(bytes).map_err(|_| UnreadableEntry { group })
}

pub(crate) fn decode<T: DeserializeOwned>(kind: u8, bytes: &[u8]) -> Result<T, Unreadable> {
    postcard::from_bytes(bytes).map_err(|_| Unreadable { kind: char::from(kind) })
}

/// `kind` followed by big-endian numbers, so that rows of one owner are neighbours in their order.
pub(crate) fn key(kind: u8, numbers: &[u64]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 8 * numbers.len());
    key.push(kind);
    for number in numbers {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key
}

/// The numbers of such a key.
pub(crate) fn numbers<const N: usize>(key: &[u8]) -> Option<[u64; N]> {
    let rest = key.get(1..)?;
    if rest.len() != N * 8 {
        return None;
    }
    let mut numbers = [0; N];
    for (number, bytes) in numbers.iter_mut().zip(rest.chunks_exact(8)) {
        *number = u64::from_be_bytes(bytes.try_into().ok()?);
    }
    Some(numbers)
}
