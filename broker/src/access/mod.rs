//! Access control: authentication and authorization by the loaded access document with the highest revision.
//!
//! Each CONNECT is authenticated here. The connection then checks every publish and subscription against its
//! [`Principal`], which it refreshes after each change of the revision.
//! Invariant: without a document every client is refused. The enforced rules always come from one complete document.
//! `docs/design/access.md` describes the way of a rule from the custom resource to the decision.
//!
//! ```text
//!  disk copy (at start) --+
//!  mounted Secret (1 s) --+--> higher revision? --> compiles? --> enforced, kept on disk, revision announced
//!  operator (gRPC) -------+        no: ignored        no: the old rules stay in force, rejected_revision is set
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

/// Interval between reads of the mounted Secret.
const POLL: Duration = Duration::from_secs(1);

/// Parameters of [`Access::open`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory on the data disk for the copy of the last document that was enforced.
    pub data: PathBuf,
    /// Directory where the access Secret is mounted. It may be missing.
    pub mount: PathBuf,
    /// Whether clients without user name and password get the rights of the user "".
    pub anonymous: bool,
    pub observer: Arc<dyn Observer>,
}

/// Reason why a client is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The user is unknown or the password is wrong. The two cases are not told apart.
    #[error("bad user name or password")]
    BadCredentials,
    /// The user may not use the client id.
    #[error("client id is not the user's")]
    NotAuthorized,
    /// Too many password checks are queued, or the address failed too often.
    #[error("busy")]
    Busy,
    /// No access document has been loaded.
    #[error("no access rules are loaded")]
    Unavailable,
}

impl Failure {
    /// Returns the reason code for CONNACK.
    pub fn reason_code(self) -> ReasonCode {
        match self {
            Self::BadCredentials => ReasonCode::BadUserNameOrPassword,
            Self::NotAuthorized => ReasonCode::NotAuthorized,
            Self::Busy => ReasonCode::ServerBusy,
            Self::Unavailable => ReasonCode::ServerUnavailable,
        }
    }
}

/// Handle on the enforced access document; cheap to clone.
#[derive(Clone)]
pub struct Access {
    inner: Arc<Inner>,
}

struct Inner {
    /// Parameters given to [`Access::open`].
    options: Options,
    /// Users and rules in force; `None` until a document has been loaded.
    users: ArcSwapOption<Users>,
    /// Revision in force; 0 means none.
    revision: watch::Sender<u64>,
    /// Password checks, their cache and their rate limits.
    passwords: Passwords,
    /// Revision of the last refused document that is newer than the enforced one, and why it was refused.
    rejected: ArcSwapOption<(u64, String)>,
    /// Held while a document is read and compiled. Only blocking threads take it.
    loading: Mutex<Loading>,
}

/// State of document loading.
#[derive(Default)]
struct Loading {
    /// The mounted Secret as it was last read.
    mount: Mount,
    /// Problems already logged since the last document was enforced; each is logged once.
    problems: BTreeSet<String>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("revision", &self.current_revision()).finish_non_exhaustive()
    }
}

impl Access {
    /// Loads the disk copy and the mounted Secret and enforces the one with the higher revision. Both may be missing.
    /// Blocks on file I/O.
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

    /// Polls the mounted Secret until shutdown and enforces newer documents.
    pub async fn follow(self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(POLL)).await.is_some() {
            let inner = self.inner.clone();
            let look = tokio::task::spawn_blocking(move || inner.look_at_mount(&mut inner.loading.lock()));
            if let Err(error) = look.await {
                warn!(%error, "failed to read the access secret, the rules in force stay");
            }
        }
    }

    /// Enforces the JSON document if it compiles and its revision is higher than the one in force. Returns the
    /// resulting status.
    pub async fn apply(&self, json: Bytes) -> AccessStatus {
        let inner = self.inner.clone();
        let apply = tokio::task::spawn_blocking(move || {
            inner.consider(&mut inner.loading.lock(), Candidate::parse(&json), Keep::Yes);
        });
        if let Err(error) = apply.await {
            warn!(%error, "failed to apply an access document, the rules in force stay");
        }
        self.status()
    }

    /// Returns the enforced revision with its size, and the last refused revision if it is newer.
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

    /// Returns whether a document is enforced.
    pub fn is_loaded(&self) -> bool {
        self.inner.users.load().is_some()
    }

    /// Returns a receiver of the enforced revision; 0 means none. Connections check their rights again when it changes.
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.inner.revision.subscribe()
    }

    fn current_revision(&self) -> u64 {
        *self.inner.revision.borrow()
    }

    /// Authenticates a client and checks that the user may use the client id.
    ///
    /// # Errors
    /// Returns [`Failure`] if the client must be refused; [`Failure::reason_code`] is the code for CONNACK.
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

    /// Returns the principal with the rights of the enforced document, or `None` if the user no longer exists or may no
    /// longer use the client id.
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

/// Whether the document is written to the data disk once it is enforced.
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

    /// Enforces the document if its revision is higher than the enforced one and it compiles.
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
            // The revision could not be read before the document was parsed.
            Ok((document, _)) if document.revision <= current => {}
            Ok((document, users)) => self.enforce(loading, &document, users, keep),
            Err(error) => self.reject(loading, candidate.revision, &error),
        }
    }

    /// Puts compiled rules in force, announces their revision and saves the document.
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
            warn!(%error, "failed to save the access document to the data disk, it is enforced from memory");
        }
    }

    /// Records why a document was refused. Each problem is logged and counted once.
    fn reject(&self, loading: &mut Loading, revision: Option<u64>, error: &DocumentError) {
        let problem = error.to_string();
        if loading.problems.insert(problem.clone()) {
            warn!(revision = revision.unwrap_or(0), %error, "access document refused, the rules in force stay");
            self.options.observer.load_failed();
        }
        // The kubelet or the operator is still writing the other parts.
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
