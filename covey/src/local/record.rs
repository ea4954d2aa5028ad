//! The access document on disk, in the files that brokers read like a mounted Secret.

use std::collections::BTreeMap;
use std::path::Path;

use covey_contract::access::{Document, INDEX_KEY};

use super::directory::{self, Error};

/// Reads the document; `None` if there is no valid one.
pub(super) fn read(folder: &Path) -> Result<Option<Document>, Error> {
    directory::make(folder)?;
    let mut files = BTreeMap::new();
    let entries = std::fs::read_dir(folder).map_err(directory::io_error("list", folder))?;
    for entry in entries.flatten() {
        if let Some(bytes) = directory::read(&entry.path())? {
            files.insert(entry.file_name().to_string_lossy().into_owned(), bytes);
        }
    }
    Ok(covey_operator::access::read_record(&files).0)
}

/// Replaces the document. Parts are written before the index: a broker that reads in between finds an incomplete set
/// and waits.
pub(super) fn write(folder: &Path, document: &Document) -> Result<(), Error> {
    let mut files = document.to_files();
    let index = files.remove(INDEX_KEY).unwrap_or_default();
    for (key, bytes) in &files {
        directory::write(&folder.join(key), bytes)?;
    }
    directory::write(&folder.join(INDEX_KEY), &index)
}
