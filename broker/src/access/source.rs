//! Sources of access documents: the mounted Secret, the operator's requests and the copy on the data disk.

use std::fs;
use std::io;
use std::path::Path;

use covey_contract::access::{Document, Error, INDEX_KEY, Index};
use serde::Deserialize;

/// File name of the copy of the last enforced document.
const COPY: &str = "access.json";
/// The symlink by which a kubelet replaces all keys of a mounted Secret at once.
const KUBELET_LINK: &str = "..data";

/// A document that has not been compiled yet.
pub(super) struct Candidate {
    /// `None` if the revision could not be read.
    pub(super) revision: Option<u64>,
    /// The parsed document, or why parsing failed.
    pub(super) document: Result<Document, Error>,
}

impl Candidate {
    /// Parses JSON. The revision is read even if the rest is invalid.
    pub(super) fn parse(json: &[u8]) -> Self {
        Self { revision: peek_revision(json), document: Document::parse(json) }
    }
}

#[derive(Deserialize)]
struct Peek {
    revision: u64,
}

fn peek_revision(json: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Peek>(json).ok().map(|peek| peek.revision)
}

/// The mounted Secret as it was last read.
#[derive(Debug, Default)]
pub(super) struct Mount {
    /// Bytes of the index of the last complete document.
    seen: Option<Vec<u8>>,
}

impl Mount {
    /// Returns the mounted document if it changed since the last call or was incomplete then.
    pub(super) fn look(&mut self, mount: &Path) -> Option<Candidate> {
        // Resolve the link once, so that all keys come from one directory even if the kubelet replaces the link.
        let folder = fs::canonicalize(mount.join(KUBELET_LINK)).unwrap_or_else(|_| mount.to_path_buf());
        let index = fs::read(folder.join(INDEX_KEY)).ok()?;
        if self.seen.as_ref() == Some(&index) {
            return None;
        }
        let document = Index::parse(&index).and_then(|index| Document::from_files(&index, |key| read(&folder, key)));
        let revision = peek_revision(&index);
        self.seen = if matches!(document, Err(Error::Incomplete(_))) { None } else { Some(index) };
        Some(Candidate { revision, document })
    }
}

/// Reads a key of the mounted Secret. A key with a slash is refused, so that an index cannot name other files.
fn read(folder: &Path, key: &str) -> Option<Vec<u8>> {
    if key.contains('/') {
        return None;
    }
    fs::read(folder.join(key)).ok()
}

/// Reads the copy on the data disk; `None` if there is none.
pub(super) fn read_copy(data: &Path) -> Option<Candidate> {
    fs::read(data.join(COPY)).ok().map(|json| Candidate::parse(&json))
}

/// Replaces the copy on the data disk atomically: after a crash either the old or the new one is there.
pub(super) fn write_copy(data: &Path, document: &Document) -> io::Result<()> {
    covey_log::fs::replace(&data.join(COPY), &document.to_json(), 0o600)
}
