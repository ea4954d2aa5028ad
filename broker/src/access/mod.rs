//! Who may connect and what they may do, by the access document with the highest revision that could be loaded.
//!
//! Listeners authenticate here, connections ask the [`Principal`] that they got and ask again after every revision.
//! Invariant: without a document nobody enters; what is enforced is always one complete document that compiled.
//!
//! ```text
//!  disk copy (at start) --+
//!  mounted Secret (1 s) --+--> higher revision? --> compiles? --> enforced, kept on disk, revision announced
//!  operator (gRPC) -------+        no: ignored        no: the old rules stay, rejected_revision
//! ```

mod hashing;
mod limit;
mod observer;
mod source;
#[cfg(test)]
mod tests;
mod users;
mod verify;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use covey_codec::ReasonCode;
use covey_contract::access::{Document, Error as DocumentError, display_revision};
use covey_contract::proto::AccessStatus;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::observer::{AuthMethod, AuthResult, Observer};
pub use self::users::Principal;

use self::source::{Candidate, Mount};
use self::users::Users;
use self::verify::{Outcome, Passwords};

/// How often the mounted Secret is looked at.
const POLL: Duration = Duration::from_secs(1);

/// What access is opened with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder on the data disk for the copy of the last good document.
    pub data: PathBuf,
    /// Folder where the access Secret is mounted; may be missing.
    pub mount: PathBuf,
    /// Clients without user name and password get the rights of the user "".
    pub anonymous: bool,
    pub observer: Arc<dyn Observer>,
}

/// Why a client may not connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The user is unknown or the password wrong; nobody learns which.
    #[error("bad user name or password")]
    BadCredentials,
    /// The client id is not one that the user may take.
    #[error("client id is not the user's")]
    NotAuthorized,
    /// Too many passwords wait to be checked, or the address failed too often.
    #[error("busy")]
    Busy,
    /// No access document was ever loaded.
    #[error("no access rules are loaded")]
    Unavailable,
}

impl Failure {
    /// The reason in CONNACK.
    pub fn reason_code(self) -> ReasonCode {
        match self {
            Self::BadCredentials => ReasonCode::BadUserNameOrPassword,
            Self::NotAuthorized => ReasonCode::NotAuthorized,
            Self::Busy => ReasonCode::ServerBusy,
            Self::Unavailable => ReasonCode::ServerUnavailable,
        }
    }
}

/// A cheap handle.
#[derive(Clone)]
pub struct Access {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    users: ArcSwapOption<Users>,
    revision: watch::Sender<u64>,
    passwords: Passwords,
    /// A higher revision than is enforced, and why it is not.
    rejected: ArcSwapOption<(u64, String)>,
    /// Held while documents are read and compiled: never in an async task.
    loading: Mutex<Loading>,
}

/// What loading remembers.
#[derive(Default)]
struct Loading {
    mount: Mount,
    /// Problems since the last document that was enforced: each is logged once.
    problems: BTreeSet<String>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("revision", &self.current_revision()).finish_non_exhaustive()
    }
}

impl Access {
    /// Loads the higher one of the disk copy and the mounted Secret; neither has to be there. Blocks on files.
    pub fn open(options: Options) -> Self {
        let inner = Inner {
            passwords: Passwords::new(options.observer.clone()),
            options,
            users: ArcSwapOption::empty(),
            revision: watch::Sender::new(0),
            rejected: ArcSwapOption::empty(),
            loading: Mutex::default(),
        };
        let access = Self { inner: Arc::new(inner) };
        let mut loading = access.inner.loading.lock();
        if let Some(candidate) = source::read_copy(&access.inner.options.data) {
            access.inner.consider(&mut loading, candidate, Keep::No);
        }
        access.inner.look_at_mount(&mut loading);
        drop(loading);
        access
    }

    /// Follows the mounted Secret until shutdown.
    pub async fn follow(self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(POLL)).await.is_some() {
            let inner = self.inner.clone();
            let look = tokio::task::spawn_blocking(move || inner.look_at_mount(&mut inner.loading.lock()));
            if let Err(error) = look.await {
                warn!(%error, "failed to look at the access secret");
            }
        }
    }

    /// Takes a document in JSON from the operator and says what is enforced then.
    pub async fn apply(&self, json: Bytes) -> AccessStatus {
        let inner = self.inner.clone();
        let apply = tokio::task::spawn_blocking(move || {
            inner.consider(&mut inner.loading.lock(), Candidate::parse(&json), Keep::Yes);
        });
        if let Err(error) = apply.await {
            warn!(%error, "failed to take an access document");
        }
        self.status()
    }

    /// What is enforced and what was refused.
    pub fn status(&self) -> AccessStatus {
        let rejected = self.inner.rejected.load();
        let (rejected_revision, rejected_reason) = rejected.as_deref().cloned().unwrap_or_default();
        let mut status = AccessStatus { rejected_revision, rejected_reason, ..AccessStatus::default() };
        if let Some(users) = &*self.inner.users.load() {
            status.revision = users.revision;
            status.hash.clone_from(&users.hash);
            status.users = users.len();
            status.rules = users.rules;
        }
        status
    }

    /// Whether a document is enforced.
    pub fn is_loaded(&self) -> bool {
        self.inner.users.load().is_some()
    }

    /// The revision that is enforced; 0 for none. Connections check their rights again when it changes.
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.inner.revision.subscribe()
    }

    fn current_revision(&self) -> u64 {
        *self.inner.revision.borrow()
    }

    /// Proves who a client is and that it may take the client id.
    pub async fn authenticate(
        &self,
        username: Option<&str>,
        password: Option<&[u8]>,
        client_id: &str,
        peer: IpAddr,
    ) -> Result<Arc<Principal>, Failure> {
        let users = self.inner.users.load_full().ok_or(Failure::Unavailable)?;
        let outcome = if self.inner.options.anonymous && username.is_none() && password.is_none() {
            Outcome::Proved(users.anonymous())
        } else {
            let (username, password) = (username.unwrap_or_default(), password.unwrap_or_default());
            self.inner.passwords.check(&users, username, password, peer).await
        };
        let (result, counted) = match outcome {
            Outcome::Proved(principal) if principal.may_take(client_id) => (Ok(principal), AuthResult::Success),
            Outcome::Proved(_) => (Err(Failure::NotAuthorized), AuthResult::NotAuthorized),
            Outcome::Wrong => (Err(Failure::BadCredentials), AuthResult::BadCredentials),
            Outcome::Busy => (Err(Failure::Busy), AuthResult::Busy),
            Outcome::Limited => (Err(Failure::Busy), AuthResult::RateLimit),
        };
        self.inner.options.observer.authenticated(counted);
        result
    }

    /// The principal with the rights of the present document; `None` when the user is gone or may not have the client id
    /// any more.
    pub fn refresh(&self, principal: &Principal, client_id: &str) -> Option<Arc<Principal>> {
        let users = self.inner.users.load();
        let users = users.as_ref()?;
        let present = if principal.is_anonymous() {
            self.inner.options.anonymous.then(|| users.anonymous())
        } else {
            users.get(principal.name()).cloned()
        };
        present.filter(|principal| principal.may_take(client_id))
    }
}

/// Whether a document is written to the data disk when it is enforced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Yes,
    No,
}

impl Inner {
    fn look_at_mount(&self, loading: &mut Loading) {
        if let Some(candidate) = loading.mount.look(&self.options.mount) {
            self.consider(loading, candidate, Keep::Yes);
        }
    }

    /// Enforces the document if it is newer than what is enforced and compiles.
    fn consider(&self, loading: &mut Loading, candidate: Candidate, keep: Keep) {
        let current = *self.revision.borrow();
        if candidate.revision.is_some_and(|revision| revision <= current) {
            return;
        }
        let compiled = candidate.document.and_then(|document| {
            let users = Users::compile(&document, &self.options.observer)?;
            Ok((document, users))
        });
        match compiled {
            // A document that hides its revision until it is parsed.
            Ok((document, _)) if document.revision <= current => {}
            Ok((document, users)) => self.enforce(loading, &document, users, keep),
            Err(error) => self.reject(loading, candidate.revision, &error),
        }
    }

    fn enforce(&self, loading: &mut Loading, document: &Document, users: Users, keep: Keep) {
        let revision = document.revision;
        info!(
            revision = %display_revision(revision, &users.hash),
            users = users.len(), rules = users.rules, "access document enforced"
        );
        self.users.store(Some(Arc::new(users)));
        self.revision.send_replace(revision);
        loading.problems.clear();
        if self.rejected.load().as_ref().is_some_and(|rejected| rejected.0 <= revision) {
            self.note_rejected(None);
        }
        self.options.observer.enforced(revision);
        if keep == Keep::Yes
            && let Err(error) = source::write_copy(&self.options.data, document)
        {
            warn!(%error, "failed to keep the access document on the data disk");
        }
    }

    fn reject(&self, loading: &mut Loading, revision: Option<u64>, error: &DocumentError) {
        let problem = error.to_string();
        if loading.problems.insert(problem.clone()) {
            warn!(revision = revision.unwrap_or(0), %error, "access document refused, the rules in force stay");
            self.options.observer.load_failed();
        }
        // Half a set is on its way; what is missing comes.
        let incomplete = matches!(error, DocumentError::Incomplete(_));
        if let Some(revision) = revision.filter(|_| !incomplete) {
            self.note_rejected(Some((revision, problem)));
        }
    }

    fn note_rejected(&self, rejected: Option<(u64, String)>) {
        let revision = rejected.as_ref().map_or(0, |(revision, _)| *revision);
        self.options.observer.rejected(revision);
        self.rejected.store(rejected.map(Arc::new));
    }
}
