//! The data directory: which cluster and node it belongs to, and exclusive use by one process.
//!
//! `covey.json` names the cluster, the node and its incarnation. An exclusive lock on the file `lock` keeps other
//! processes out. The runtime opens it before anything else on the disk.
//!
//! ```text
//! Directory::open ──► Fresh ──create──► Claimed                        (no marker yet)
//!                ├──► Existing ──claim──► Claimed, incarnation raised   (a marker of this node)
//!                ├──► Left ──empty──► Fresh               (the node has left its cluster; its files are deleted)
//!                └──► Error, nothing changed         (a foreign or damaged marker, a second process)
//! ```
//! Invariant: the marker is read and checked before anything is created. An incarnation is used only after it was
//! fsynced, so that peers can refuse a lower one than they have seen.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek as _, Write};
use std::path::{Path, PathBuf};

use covey_types::NodeId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Name of the marker file in a data directory.
pub const MARKER: &str = "covey.json";
/// Name of the lock file in a data directory. It contains the process id of its owner.
pub const LOCK: &str = "lock";
/// Directory that a file system keeps in the root of a volume, and that belongs to root.
const LOST_AND_FOUND: &str = "lost+found";
const FORMAT_VERSION: u32 = 1;

/// Error of opening or writing a data directory. Nothing in it was changed, except by a failed write ([`Error::Io`]).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory belongs to another cluster.
    #[error(
        "failed to open the data directory: {} belongs to cluster {found}, this node is in cluster {expected}; \
         nothing was changed. Attach this node's own volume, or move the content of {} aside, so that the node joins \
         with an empty disk",
        dir.join(MARKER).display(), dir.display()
    )]
    ForeignCluster {
        /// The data directory.
        dir: PathBuf,
        /// Cluster of the directory.
        found: Uuid,
        /// Cluster of this node.
        expected: Uuid,
    },
    /// The directory belongs to another node.
    #[error(
        "failed to open the data directory: {} belongs to node {found:?} of cluster {cluster_id}, this is node \
         {expected:?}; nothing was changed. Attach this node's own volume, or move the content of {} aside, so that \
         the node joins with an empty disk",
        dir.join(MARKER).display(), dir.display()
    )]
    ForeignNode {
        /// The data directory.
        dir: PathBuf,
        /// Cluster of the directory.
        cluster_id: Uuid,
        /// Node of the directory.
        found: String,
        /// Name of this node.
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
    /// The marker was written by a newer version.
    #[error(
        "failed to open the data directory: {} has format {found}, this version reads format {FORMAT_VERSION}; \
         nothing was changed. Run the version that wrote it, or a newer one",
        dir.join(MARKER).display()
    )]
    Version {
        /// The data directory.
        dir: PathBuf,
        /// Format of the marker.
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
        /// Process id of the other process, as in its own namespace (a container has its own numbers); `None` if it is
        /// not known.
        owner: Option<u32>,
    },
    /// A file operation failed.
    #[error("failed to {operation} {}", path.display())]
    Io {
        /// The operation, as in "failed to {operation}".
        operation: &'static str,
        /// File or directory of the operation.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { operation, path: path.to_owned(), source }
}

/// Content of the marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Cluster of the node; `None` until it has formed or joined one.
    pub cluster_id: Option<Uuid>,
    /// Node id: a random number, made with the marker.
    pub node_id: NodeId,
    /// Name of the node, which contains its ordinal.
    pub node_name: String,
    /// Number of starts of the node on this directory.
    pub incarnation: u64,
    /// Whether the node has left its cluster. The directory is emptied at the next start.
    pub left: bool,
}

/// The marker as it is stored, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    format_version: u32,
    cluster_id: Option<Uuid>,
    /// As text, since many JSON readers round large numbers.
    node_id: String,
    node_name: String,
    incarnation: u64,
    /// Absent in the marker of a member. An earlier version takes a marker that has it for a damaged one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    left: bool,
    /// CRC-32C over the fields above.
    checksum: String,
}

/// The field that every version of the marker has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredVersion {
    format_version: u32,
}

impl Marker {
    /// Returns the checksum of the fields: CRC-32C as 8 hexadecimal digits.
    fn checksum(&self) -> String {
        let Self { cluster_id, node_id, node_name, incarnation, left } = self;
        let (cluster_id, node_id) = (cluster_id.unwrap_or_default(), node_id.get());
        let left = if *left { " left" } else { "" };
        let text = format!("{FORMAT_VERSION} {cluster_id} {node_id} {incarnation} {node_name}{left}");
        format!("{:08x}", crc32c::crc32c(text.as_bytes()))
    }

    /// Reads and checks the marker; `None` if there is none.
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
            node_id: NodeId::new(stored.node_id.parse().map_err(|_| damaged())?),
            node_name: stored.node_name,
            incarnation: stored.incarnation,
            left: stored.left,
        };
        let intact = format_version == FORMAT_VERSION && stored.checksum == marker.checksum();
        if intact { Ok(Some(marker)) } else { Err(damaged()) }
    }

    /// Replaces the marker. After a crash either the old or the new one is there; after a return the new one is
    /// durable.
    fn write(&self, dir: &Path) -> Result<(), Error> {
        let stored = Stored {
            format_version: FORMAT_VERSION,
            cluster_id: self.cluster_id,
            node_id: self.node_id.get().to_string(),
            node_name: self.node_name.clone(),
            incarnation: self.incarnation,
            left: self.left,
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

    /// Compares cluster and node name with the expected ones.
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

/// Owner that a data directory must have.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Cluster, if it is known; `None` accepts any.
    pub cluster_id: Option<Uuid>,
    /// Name of this node.
    pub node_name: &'a str,
}

/// A data directory that this process has locked.
#[derive(Debug)]
pub enum Directory {
    /// It has no marker: the node must form or join a cluster.
    Fresh(Fresh),
    /// It belongs to this node.
    Existing(Existing),
    /// It belonged to this node, which has left its cluster.
    Left(Left),
}

/// A locked directory without a marker.
#[derive(Debug)]
pub struct Fresh {
    dir: PathBuf,
    node_name: String,
    lock: File,
}

/// A locked directory with this node's marker, not changed yet.
#[derive(Debug)]
pub struct Existing {
    dir: PathBuf,
    marker: Marker,
    lock: File,
}

/// A locked directory of a node that has left its cluster, not changed yet.
#[derive(Debug)]
pub struct Left {
    dir: PathBuf,
    marker: Marker,
    lock: File,
}

/// A locked directory with this node's marker. The lock is released by [`release`](Self::release), on drop, or when
/// the process ends.
#[derive(Debug)]
pub struct Claimed {
    dir: PathBuf,
    marker: Marker,
    lock: Option<File>,
}

impl Directory {
    /// Opens and locks a data directory; creates it if it does not exist.
    ///
    /// # Errors
    /// Returns [`Error`] for a foreign, damaged, newer or locked directory, which is left unchanged, and for a failed
    /// file operation.
    pub fn open(dir: &Path, expected: &Expected<'_>) -> Result<Self, Error> {
        let judge = || {
            let marker = Marker::read(dir)?;
            marker.iter().try_for_each(|marker| marker.check(dir, expected))?;
            Ok(marker)
        };
        judge()?;
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let lock = lock(dir)?;
        // Another process may have written the marker before the lock was taken.
        let Some(marker) = judge()? else {
            return Ok(Self::Fresh(Fresh { dir: dir.to_owned(), node_name: expected.node_name.to_owned(), lock }));
        };
        let dir = dir.to_owned();
        Ok(if marker.left {
            Self::Left(Left { dir, marker, lock })
        } else {
            Self::Existing(Existing { dir, marker, lock })
        })
    }
}

impl Existing {
    /// Raises the incarnation. It is durable when this returns.
    ///
    /// Called after the log was opened, so that a directory with a refused log is not changed.
    ///
    /// # Errors
    /// Returns [`Error`] if the marker cannot be written.
    pub fn claim(self) -> Result<Claimed, Error> {
        let Self { dir, mut marker, mut lock } = self;
        let raised = marker.incarnation.checked_add(1);
        marker.incarnation = raised.ok_or_else(|| Error::Damaged { dir: dir.clone() })?;
        sign(&dir, &mut lock)?;
        marker.write(&dir)?;
        Ok(Claimed { dir, marker, lock: Some(lock) })
    }
}

impl Left {
    /// Returns the marker of the node that has left.
    pub fn marker(&self) -> &Marker {
        &self.marker
    }

    /// Deletes the files of the node that has left, the marker last, so that an interrupted deletion is continued at the
    /// next start.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if a file cannot be deleted.
    pub fn empty(self) -> Result<Fresh, Error> {
        let Self { dir, marker, lock } = self;
        for entry in fs::read_dir(&dir).map_err(io_error("read", &dir))? {
            let entry = entry.map_err(io_error("read", &dir))?;
            if [MARKER, LOCK, LOST_AND_FOUND].iter().any(|kept| entry.file_name() == *kept) {
                continue;
            }
            let path = entry.path();
            let deleted = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            deleted.map_err(io_error("delete", &path))?;
        }
        let sync = || File::open(&dir)?.sync_all();
        sync().map_err(io_error("sync", &dir))?;
        let path = dir.join(MARKER);
        fs::remove_file(&path).and_then(|()| sync()).map_err(io_error("delete", &path))?;
        Ok(Fresh { dir, node_name: marker.node_name, lock })
    }
}

/// Takes the lock; creates the lock file if it does not exist.
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

/// Writes the process id into the lock file.
fn sign(dir: &Path, lock: &mut File) -> Result<(), Error> {
    let write = |lock: &mut File| {
        lock.set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "{}", std::process::id())
    };
    write(lock).map_err(io_error("write", &dir.join(LOCK)))
}

impl Fresh {
    /// Returns the data directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Creates a marker with a new node id and incarnation 1. It belongs to no cluster yet.
    ///
    /// Called after the log was created, since a marker without a log counts as a lost disk.
    ///
    /// # Errors
    /// Returns [`Error`] if the marker cannot be written.
    pub fn create(mut self) -> Result<Claimed, Error> {
        sign(&self.dir, &mut self.lock)?;
        let (_, number) = Uuid::new_v4().as_u64_pair();
        let node_id = NodeId::new(number);
        let marker = Marker { cluster_id: None, node_id, node_name: self.node_name, incarnation: 1, left: false };
        marker.write(&self.dir)?;
        Ok(Claimed { dir: self.dir, marker, lock: Some(self.lock) })
    }
}

impl Claimed {
    /// Returns the data directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Assigns the directory to a cluster for good. Does nothing if it belongs to that cluster already.
    ///
    /// # Errors
    /// Returns [`Error::ForeignCluster`] if it belongs to another one, and [`Error::Io`] if the marker cannot be
    /// written.
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

    /// Marks the directory of a node that has left its cluster: the next start empties it.
    ///
    /// # Errors
    /// Returns [`Error`] if the marker cannot be written.
    pub fn leave(&mut self) -> Result<(), Error> {
        let marker = Marker { left: true, ..self.marker.clone() };
        marker.write(&self.dir)?;
        self.marker = marker;
        Ok(())
    }

    /// Releases the lock for another process. The directory must not be written after this.
    pub fn release(&mut self) {
        self.lock = None;
    }

    /// Returns the marker, with the incarnation of this start.
    pub fn marker(&self) -> &Marker {
        &self.marker
    }
}

#[cfg(test)]
mod tests;
