//! The data directory: whose it is, and that one process uses it.
//!
//! `covey.json` names the cluster, the node and its incarnation; an exclusive lock on `lock` keeps a second process
//! out. Called by the runtime before anything else touches the disk.
//!
//! ```text
//!  Directory::open ──► Fresh ──create(cluster id)──► Claimed      (no marker yet)
//!                 ├──► Existing ──claim──► Claimed, incarnation raised   (our marker)
//!                 └──► Error, nothing changed                     (a foreign or damaged marker, a second process)
//! ```
//! Invariant: the marker is read and judged before anything is created, and an incarnation is used only after it was
//! fsynced, so peers can refuse a lower one than they have seen.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek as _, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// File name of the marker in a data directory.
pub const MARKER: &str = "covey.json";
/// File name of the lock in a data directory; it holds the process id of its owner.
pub const LOCK: &str = "lock";
const FORMAT_VERSION: u32 = 1;

/// Why a data directory was not opened. Nothing in it was changed, except by [`Error::Io`] of a write.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk of another cluster.
    #[error(
        "failed to open the data directory: {} belongs to cluster {found}, this node is in cluster {expected}; \
         nothing was changed. Attach this node's own volume, or move the content of {} aside, so that the node joins \
         with an empty disk",
        dir.join(MARKER).display(), dir.display()
    )]
    ForeignCluster {
        /// The data directory.
        dir: PathBuf,
        /// The cluster of the disk.
        found: Uuid,
        /// The cluster of this node.
        expected: Uuid,
    },
    /// The disk of another node.
    #[error(
        "failed to open the data directory: {} belongs to node {found:?} of cluster {cluster_id}, this is node \
         {expected:?}; nothing was changed. Attach this node's own volume, or move the content of {} aside, so that \
         the node joins with an empty disk",
        dir.join(MARKER).display(), dir.display()
    )]
    ForeignNode {
        /// The data directory.
        dir: PathBuf,
        /// The cluster of the disk.
        cluster_id: Uuid,
        /// The node of the disk.
        found: String,
        /// This node.
        expected: String,
    },
    /// The marker cannot be read or does not match its checksum.
    #[error(
        "failed to open the data directory: {} is damaged; nothing was changed. This disk counts as lost: move the \
         content of {} aside, so that the node joins with an empty one; what it acknowledged is on the majority of \
         the cluster",
        dir.join(MARKER).display(), dir.display()
    )]
    Damaged {
        /// The data directory.
        dir: PathBuf,
    },
    /// Written by a newer version.
    #[error(
        "failed to open the data directory: {} has format {found}, this version reads format {FORMAT_VERSION}; \
         nothing was changed. Run the version that wrote it, or a newer one",
        dir.join(MARKER).display()
    )]
    Version {
        /// The data directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Another process uses the directory.
    #[error(
        "failed to lock {}: {} uses this data directory; nothing was changed. Stop that process first",
        dir.join(LOCK).display(),
        owner.map_or_else(|| "another process".to_owned(), |owner| format!("process {owner}"))
    )]
    Locked {
        /// The data directory.
        dir: PathBuf,
        /// The other process, as it sees itself (a container numbers its own).
        owner: Option<u32>,
    },
    /// The file system refused.
    #[error("failed to {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { operation, path: path.to_owned(), source }
}

/// What the marker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The cluster that the node is a member of; `None` until it formed or joined one.
    pub cluster_id: Option<Uuid>,
    /// Identity of this disk within the cluster.
    pub node_id: u64,
    /// Name of the node; it contains the ordinal.
    pub node_name: String,
    /// Counts the starts of this node on this disk.
    pub incarnation: u64,
}

/// The marker as it is written.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    format_version: u32,
    cluster_id: Option<Uuid>,
    /// As text: many JSON readers round large numbers.
    node_id: String,
    node_name: String,
    incarnation: u64,
    /// CRC-32C over the fields above.
    checksum: String,
}

/// Enough of any version's marker to tell which it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredVersion {
    format_version: u32,
}

impl Marker {
    fn checksum(&self) -> String {
        let Self { cluster_id, node_id, node_name, incarnation } = self;
        let cluster_id = cluster_id.unwrap_or_default();
        let text = format!("{FORMAT_VERSION} {cluster_id} {node_id} {incarnation} {node_name}");
        format!("{:08x}", crc32c::crc32c(text.as_bytes()))
    }

    fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(MARKER);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let damaged = || Error::Damaged { dir: dir.to_owned() };
        let StoredVersion { format_version } = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        if format_version > FORMAT_VERSION {
            return Err(Error::Version { dir: dir.to_owned(), found: format_version });
        }
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        let marker = Self {
            cluster_id: stored.cluster_id,
            node_id: stored.node_id.parse().map_err(|_| damaged())?,
            node_name: stored.node_name,
            incarnation: stored.incarnation,
        };
        let intact = format_version == FORMAT_VERSION && stored.checksum == marker.checksum();
        if intact { Ok(Some(marker)) } else { Err(damaged()) }
    }

    /// Replaces the marker: the old one or the new one is there, whatever happens, and the new one when this returns.
    fn write(&self, dir: &Path) -> Result<(), Error> {
        let stored = Stored {
            format_version: FORMAT_VERSION,
            cluster_id: self.cluster_id,
            node_id: self.node_id.to_string(),
            node_name: self.node_name.clone(),
            incarnation: self.incarnation,
            checksum: self.checksum(),
        };
        let path = dir.join(MARKER);
        let write = || {
            let mut bytes = serde_json::to_vec_pretty(&stored)?;
            bytes.push(b'\n');
            crate::fs::replace(&path, &bytes, 0o666)
        };
        write().map_err(io_error("write", &path))
    }

    fn check(&self, dir: &Path, expected: &Expected<'_>) -> Result<(), Error> {
        match (expected.cluster_id, self.cluster_id) {
            (Some(expected), Some(found)) if expected != found => {
                return Err(Error::ForeignCluster { dir: dir.to_owned(), found, expected });
            }
            _ => {}
        }
        if self.node_name == expected.node_name {
            return Ok(());
        }
        Err(Error::ForeignNode {
            dir: dir.to_owned(),
            cluster_id: self.cluster_id.unwrap_or_default(),
            found: self.node_name.clone(),
            expected: expected.node_name.to_owned(),
        })
    }
}

/// Whose disk it has to be.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The cluster, where it is known already.
    pub cluster_id: Option<Uuid>,
    /// The name of this node.
    pub node_name: &'a str,
}

/// A data directory that this process holds.
#[derive(Debug)]
pub enum Directory {
    /// It has no marker: the node has to join or form a cluster first.
    Fresh(Fresh),
    /// It is this node's own.
    Existing(Existing),
}

/// A locked directory without a marker.
#[derive(Debug)]
pub struct Fresh {
    dir: PathBuf,
    node_name: String,
    lock: File,
}

/// A locked directory with this node's marker; nothing in it was changed yet.
#[derive(Debug)]
pub struct Existing {
    dir: PathBuf,
    marker: Marker,
    lock: File,
}

/// A locked directory with this node's marker. The lock is released when it is dropped, or when the process dies.
#[derive(Debug)]
pub struct Claimed {
    dir: PathBuf,
    marker: Marker,
    lock: Option<File>,
}

impl Directory {
    /// Opens a data directory and locks it; makes it if it is absent.
    ///
    /// # Errors
    /// Foreign, damaged and used directories are refused and left as they are.
    pub fn open(dir: &Path, expected: &Expected<'_>) -> Result<Self, Error> {
        let judge = || {
            let marker = Marker::read(dir)?;
            marker.iter().try_for_each(|marker| marker.check(dir, expected))?;
            Ok(marker)
        };
        judge()?;
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let lock = lock(dir)?;
        // Until the lock was taken, another process could write the marker.
        let Some(marker) = judge()? else {
            return Ok(Self::Fresh(Fresh { dir: dir.to_owned(), node_name: expected.node_name.to_owned(), lock }));
        };
        Ok(Self::Existing(Existing { dir: dir.to_owned(), marker, lock }))
    }
}

impl Existing {
    /// Raises the incarnation: this start is on disk when this returns.
    ///
    /// The log is opened before this: a disk whose log is refused stays as it was, to the byte.
    pub fn claim(self) -> Result<Claimed, Error> {
        let Self { dir, mut marker, mut lock } = self;
        let raised = marker.incarnation.checked_add(1);
        marker.incarnation = raised.ok_or_else(|| Error::Damaged { dir: dir.clone() })?;
        sign(&dir, &mut lock)?;
        marker.write(&dir)?;
        Ok(Claimed { dir, marker, lock: Some(lock) })
    }
}

fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join(LOCK);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open.map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let owner = file.read_to_string(&mut owner).ok().and_then(|_| owner.trim().parse().ok());
            Err(Error::Locked { dir: dir.to_owned(), owner })
        }
        Err(TryLockError::Error(source)) => Err(io_error("lock", &path)(source)),
    }
}

/// Says in the lock whose it is.
fn sign(dir: &Path, lock: &mut File) -> Result<(), Error> {
    let write = |lock: &mut File| {
        lock.set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "{}", std::process::id())
    };
    write(lock).map_err(io_error("write", &dir.join(LOCK)))
}

impl Fresh {
    /// The data directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Gives this disk a node id, at incarnation 1; it belongs to no cluster yet.
    ///
    /// The log is opened before this: a marker without a log counts as a lost disk.
    pub fn create(mut self) -> Result<Claimed, Error> {
        sign(&self.dir, &mut self.lock)?;
        let (_, node_id) = Uuid::new_v4().as_u64_pair();
        let marker = Marker { cluster_id: None, node_id, node_name: self.node_name, incarnation: 1 };
        marker.write(&self.dir)?;
        Ok(Claimed { dir: self.dir, marker, lock: Some(self.lock) })
    }
}

impl Claimed {
    /// The data directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Makes this disk a member of a cluster, for good. Repeating it is harmless; another cluster is refused.
    pub fn bind(&mut self, cluster_id: Uuid) -> Result<(), Error> {
        match self.marker.cluster_id {
            Some(found) if found == cluster_id => Ok(()),
            Some(found) => Err(Error::ForeignCluster { dir: self.dir.clone(), found, expected: cluster_id }),
            None => {
                let marker = Marker { cluster_id: Some(cluster_id), ..self.marker.clone() };
                marker.write(&self.dir)?;
                self.marker = marker;
                Ok(())
            }
        }
    }

    /// Lets another process have the directory; nothing may be written to it after this.
    pub fn release(&mut self) {
        self.lock = None;
    }

    /// What the marker says; the incarnation is this start's.
    pub fn marker(&self) -> &Marker {
        &self.marker
    }
}

#[cfg(test)]
mod tests;
