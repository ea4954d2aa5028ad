//! Where access documents come from: the mounted Secret, the operator's bytes and the copy on the data disk.

use std::fs;
use std::io;
use std::path::Path;

use covey_contract::access::{Document, Error, INDEX_KEY, Index};
use serde::Deserialize;

/// The copy of the last good document.
const COPY: &str = "access.json";
/// The symlink by which a kubelet replaces all keys of a mounted Secret at once.
const KUBELET_LINK: &str = "..data";

/// A document that may be enforced.
pub(super) struct Candidate {
    /// `None` where not even that could be read.
    pub(super) revision: Option<u64>,
    pub(super) document: Result<Document, Error>,
}

impl Candidate {
    /// Parses JSON. The revision is found also where the rest makes no sense.
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

/// The mounted Secret, as it was last seen.
#[derive(Debug, Default)]
pub(super) struct Mount {
    seen: Option<Vec<u8>>,
}

impl Mount {
    /// What is mounted, if it changed since the last look or was not complete then.
    pub(super) fn look(&mut self, mount: &Path) -> Option<Candidate> {
        // All keys from the folder that the link means now, however often the kubelet replaces it meanwhile.
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

fn read(folder: &Path, key: &str) -> Option<Vec<u8>> {
    if key.contains('/') {
        return None;
    }
    fs::read(folder.join(key)).ok()
}

/// The copy on the data disk, if there is one.
pub(super) fn read_copy(data: &Path) -> Option<Candidate> {
    fs::read(data.join(COPY)).ok().map(|json| Candidate::parse(&json))
}

/// Replaces the copy on the data disk: after a crash there is the old one or the new one.
pub(super) fn write_copy(data: &Path, document: &Document) -> io::Result<()> {
    covey_log::fs::replace(&data.join(COPY), &document.to_json(), 0o600)
}
