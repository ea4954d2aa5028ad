//! Copies and compares data directories.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Result;

/// Reads every file under a directory.
///
/// # Errors
/// Fails if a file cannot be read.
pub fn contents(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next)? {
            let path = entry?.path();
            if path.is_dir() {
                // Directories are included, so that a new one is a difference.
                found.insert(path.strip_prefix(folder)?.join(""), vec![]);
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder)?.to_path_buf(), std::fs::read(&path)?);
            }
        }
    }
    Ok(found)
}

/// Copies a directory.
///
/// # Errors
/// Fails if a file cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for (path, bytes) in contents(from)? {
        if from.join(&path).is_dir() {
            std::fs::create_dir_all(to.join(&path))?;
        } else {
            if let Some(folder) = to.join(&path).parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(to.join(&path), bytes)?;
        }
    }
    Ok(())
}

/// Returns the names of the files that differ.
pub fn differences(before: &BTreeMap<PathBuf, Vec<u8>>, after: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<PathBuf> {
    let names = before.keys().chain(after.keys());
    let mut differing: Vec<PathBuf> = names.filter(|name| before.get(*name) != after.get(*name)).cloned().collect();
    differing.sort();
    differing.dedup();
    differing
}
