//! Key-value rows: the persistent form of a state machine. The caller of `apply` stores the rows of an entry in one
//! batch with the applied index.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Collects the writes of one `apply`.
pub trait Rows {
    /// Sets the row `key`, replacing an earlier value.
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>);
    /// Deletes the row `key`; does nothing if there is none.
    fn delete(&mut self, key: Vec<u8>);
}

/// Rows in memory, for tests.
impl Rows for std::collections::BTreeMap<Vec<u8>, Vec<u8>> {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.insert(key, value);
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.remove(&key);
    }
}

/// A stored row that this version cannot decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to read a stored row of kind {kind:?}")]
pub struct Unreadable {
    /// First byte of the row's key.
    pub kind: char,
}

/// A log entry that this version cannot decode. A replica must not skip an entry that the others have applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("failed to read a log entry of the {group} group: it was written by a newer version; start that one")]
pub struct UnreadableEntry {
    /// Name of the group: `shard`, `meta` or `retained`.
    pub group: &'static str,
}

/// Encodes a value with postcard, the format of log entries, rows and frames between nodes.
#[expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "postcard fails on a full buffer or on a sequence without length; there is neither"
)]
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("a vector takes every value")
}

/// Decodes a log entry; `group` is used for the error only.
pub(crate) fn decode_entry<T: DeserializeOwned>(group: &'static str, bytes: &[u8]) -> Result<T, UnreadableEntry> {
    postcard::from_bytes(bytes).map_err(|_| UnreadableEntry { group })
}

/// Decodes the value of a row; `kind` is used for the error only.
pub(crate) fn decode<T: DeserializeOwned>(kind: u8, bytes: &[u8]) -> Result<T, Unreadable> {
    postcard::from_bytes(bytes).map_err(|_| Unreadable { kind: char::from(kind) })
}

/// Returns a key: `kind`, then each number as 8 bytes in big-endian order, so that the rows of one owner are adjacent
/// and sorted.
pub(crate) fn key(kind: u8, numbers: &[u64]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 8 * numbers.len());
    key.push(kind);
    for number in numbers {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key
}

/// Returns the `N` numbers of a key made by [`key`]; `None` if its length is not 1 + 8 `N` bytes.
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
