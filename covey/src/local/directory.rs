//! The data directory of `covey local`: state that outlives the program, and the lock against a second program.
//!
//! ```text
//! <data>/lock                                       held while the program runs
//! <data>/connect.json                               how to connect, with passwords (0600)
//! <data>/<namespace>/<cluster>/state.json           identity, ports, formation, passwords (0600)
//!                              peer-ca/, peer-tls/  the authority, and the certificate that brokers share (0600)
//!                              access/              the access document, as brokers read it
//!                              <cluster>-<n>/       one broker: broker.yaml, log, data/
//! ```
//! Invariant: every file is replaced atomically and fsynced before anything relies on it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use covey_crds::Formation;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

const STATE: &str = "state.json";

/// Reason why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{} is used by another `covey local`; stop that one first, or name another directory with --data", .0.display())]
    Locked(PathBuf),
    #[error("failed to {operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("failed to parse {}: {source}; it is not changed. Restore a copy, or move the directory aside to start over", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
}

pub(super) fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { operation, path: path.to_owned(), source }
}

/// Stored state of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    /// UID, in place of the UID of the MqttCluster in Kubernetes.
    pub(super) uid: String,
    /// First client port, as an offset from `--port`.
    pub(super) offset: u16,
    /// End of the client ports (exclusive), as an offset from `--port`.
    pub(super) end: u16,
    /// Number of shards. It cannot change.
    pub(super) shards: u16,
    /// Number of brokers so far. It only grows.
    #[serde(default)]
    pub(super) replicas: u32,
    /// First of the ports for peers, admin and HTTP; 0 means not chosen.
    #[serde(default)]
    pub(super) inner_port: u16,
    /// Cluster id and members of the formation. Written before any broker is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) formation: Option<Formation>,
    /// Cluster id, set once a broker reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cluster_id: Option<String>,
    /// Users by the name of their MqttUser.
    #[serde(default)]
    pub(super) users: BTreeMap<String, UserState>,
}

/// Stored state of a user.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UserState {
    /// UID, in place of the UID of the MqttUser in Kubernetes.
    pub(super) uid: String,
    /// Creation time.
    pub(super) created: Timestamp,
    /// Generated password.
    pub(super) password: String,
}

impl std::fmt::Debug for UserState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserState").field("uid", &self.uid).finish_non_exhaustive()
    }
}

/// The locked directory.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    _lock: File,
}

impl Directory {
    /// Creates the directory if it does not exist, and locks it until the value is dropped or the process ends.
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        make(root)?;
        let root = fs::canonicalize(root).map_err(io_error("open", root))?;
        let path = root.join("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(io_error("open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root, _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(Error::Locked(root)),
            Err(fs::TryLockError::Error(source)) => Err(io_error("lock", &path)(source)),
        }
    }

    /// Returns the path of `connect.json`.
    pub(super) fn connect_file(&self) -> PathBuf {
        self.root.join("connect.json")
    }

    /// Returns the directory of a cluster.
    pub(super) fn cluster(&self, namespace: &str, name: &str) -> PathBuf {
        self.root.join(namespace).join(name)
    }

    /// Reads the states of all clusters that have run in this directory.
    pub(super) fn states(&self) -> Result<Vec<State>, Error> {
        let mut states = Vec::new();
        for namespace in folders(&self.root)? {
            for cluster in folders(&namespace)? {
                states.extend(State::read(&cluster)?);
            }
        }
        Ok(states)
    }
}

fn folders(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(path).map_err(io_error("list", path))?;
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

impl State {
    /// Returns the state of a new cluster.
    pub(super) fn new(offset: u16, end: u16, shards: u16) -> Self {
        Self {
            uid: uuid::Uuid::new_v4().to_string(),
            offset,
            end,
            shards,
            replicas: 0,
            inner_port: 0,
            formation: None,
            cluster_id: None,
            users: BTreeMap::new(),
        }
    }

    /// Reads a cluster's state; `None` if the cluster has never run in this directory.
    pub(super) fn read(cluster: &Path) -> Result<Option<Self>, Error> {
        let path = cluster.join(STATE);
        match fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json).map(Some).map_err(|source| Error::Parse { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    /// Replaces a cluster's state on disk atomically.
    pub(super) fn write(&self, cluster: &Path) -> Result<(), Error> {
        let path = cluster.join(STATE);
        let json = serde_json::to_vec_pretty(self).map_err(|source| Error::Parse { path: path.clone(), source })?;
        write(&path, &json)
    }
}

/// Creates a directory and its parents, accessible to this user only.
pub(super) fn make(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("create", path))
}

/// Replaces a file atomically, readable by this user only: after a crash either the old or the new one is there.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write().map_err(io_error("write", path))
}

/// Reads a file; `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}
