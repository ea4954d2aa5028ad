//! Documents from every source, and clients that are admitted or refused for every reason.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use argon2::password_hash::PasswordHasher as _;
use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, Params};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use covey_codec::QoS;
use covey_contract::access::{Action, Effect, FORMAT, Rule, User, Verifier};
use covey_core::access::{Action as Asked, Decision};
use hmac::{Hmac, KeyInit as _, Mac as _};
use tempfile::TempDir;

use super::*;

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// What was reported, as far as a test asks.
#[derive(Debug, Default)]
pub(super) struct Counts {
    cached: AtomicU64,
    allowed: AtomicU64,
    unmatched: AtomicU64,
    enforced: AtomicU64,
    load_failures: AtomicU64,
    rejected: AtomicU64,
}

impl Observer for Counts {
    fn authenticated(&self, _result: AuthResult) {}

    fn checked(&self, method: AuthMethod, _duration: Duration) {
        if method == AuthMethod::Cache {
            self.cached.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn decided(&self, action: Asked, decision: Decision) {
        let counted = match (action, decision) {
            (Asked::Subscribe, Decision::Allowed(_)) => &self.allowed,
            (Asked::Subscribe, Decision::NoMatch) => &self.unmatched,
            _ => return,
        };
        counted.fetch_add(1, Ordering::Relaxed);
    }

    fn enforced(&self, revision: u64) {
        self.enforced.store(revision, Ordering::Relaxed);
    }

    fn load_failed(&self) {
        self.load_failures.fetch_add(1, Ordering::Relaxed);
    }

    fn rejected(&self, revision: u64) {
        self.rejected.store(revision, Ordering::Relaxed);
    }
}

struct Disk {
    data: TempDir,
    mount: TempDir,
    counts: Arc<Counts>,
}

impl Disk {
    fn new() -> Self {
        Self { data: tempfile::tempdir().unwrap(), mount: tempfile::tempdir().unwrap(), counts: Arc::default() }
    }

    fn open(&self) -> Access {
        self.open_with(false)
    }

    fn open_with(&self, anonymous: bool) -> Access {
        Access::open(Options {
            data: self.data.path().into(),
            mount: self.mount.path().into(),
            anonymous,
            observer: self.counts.clone(),
        })
    }

    /// Mounts the document as a kubelet does: a new directory and a link that is replaced.
    fn mount(&self, document: &Document) {
        self.mount_files(document.to_files(), &format!("..{}", document.revision));
    }

    fn mount_files(&self, files: impl IntoIterator<Item = (String, Vec<u8>)>, folder: &str) {
        let root = self.mount.path();
        std::fs::create_dir(root.join(folder)).unwrap();
        for (key, bytes) in files {
            std::fs::write(root.join(folder).join(key), bytes).unwrap();
        }
        let new = root.join("..data_tmp");
        symlink(folder, &new).unwrap();
        std::fs::rename(new, root.join("..data")).unwrap();
    }
}

fn hmac(password: &str) -> Verifier {
    let salt = b"0123456789abcdef";
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(salt).unwrap();
    mac.update(password.as_bytes());
    Verifier::HmacSha256 { salt: STANDARD.encode(salt), mac: STANDARD.encode(mac.finalize().into_bytes()) }
}

fn argon2id(password: &str) -> Verifier {
    let argon2 = Argon2::from(Params::new(8, 1, 1, None).unwrap());
    let hash: PasswordHash = argon2.hash_password_with_salt(password.as_bytes(), b"salt-salt-salt").unwrap();
    Verifier::Argon2id(hash.to_string())
}

fn allow(topic: &str) -> Rule {
    Rule {
        effect: Effect::Allow,
        actions: vec![Action::Publish, Action::Subscribe],
        topics: vec![topic.into()],
        max_qos: None,
        retain: None,
    }
}

fn user(name: &str, verifier: Verifier, topic: &str) -> User {
    User {
        name: name.into(),
        source: String::new(),
        verifiers: vec![verifier],
        client_id_pattern: None,
        rules: vec![allow(topic)],
    }
}

fn document(revision: u64, users: Vec<User>) -> Document {
    Document { format: FORMAT, revision, users }
}

fn ann(revision: u64) -> Document {
    document(revision, vec![user("ann", hmac("secret"), &format!("t/{revision}"))])
}

async fn login(access: &Access, name: &str, password: &str) -> Result<Arc<Principal>, Failure> {
    access.authenticate(Some(name), Some(password.as_bytes()), "c1", PEER).await
}

async fn apply(access: &Access, document: &Document) -> AccessStatus {
    access.apply(document.to_json().into()).await
}

fn may_publish(principal: &Principal, topic: &str) -> bool {
    principal.may_publish("c1", topic, QoS::AtMostOnce, false)
}

#[tokio::test]
async fn without_a_document_nobody_enters() {
    let disk = Disk::new();
    let access = disk.open_with(true);
    assert!(!access.is_loaded());
    assert_eq!(login(&access, "ann", "secret").await.unwrap_err(), Failure::Unavailable);
    assert_eq!(access.authenticate(None, None, "c", PEER).await.unwrap_err(), Failure::Unavailable);
    assert_eq!(access.status(), AccessStatus::default());
}

#[tokio::test]
async fn users_enter_by_their_password_and_others_learn_nothing() {
    for verifier in [hmac, argon2id] {
        let disk = Disk::new();
        let access = disk.open();
        let users = vec![user("ann", verifier("secret"), "a"), user("bob", argon2id("other"), "b")];
        apply(&access, &document(1, users)).await;
        for _ in 0..2 {
            assert_eq!(login(&access, "ann", "secret").await.unwrap().name(), "ann");
            assert_eq!(login(&access, "ann", "wrong").await.unwrap_err(), Failure::BadCredentials);
            assert_eq!(login(&access, "ann", "").await.unwrap_err(), Failure::BadCredentials);
            assert_eq!(login(&access, "eve", "secret").await.unwrap_err(), Failure::BadCredentials);
            assert_eq!(login(&access, "bob", "secret").await.unwrap_err(), Failure::BadCredentials);
            assert_eq!(access.authenticate(None, None, "c", PEER).await.unwrap_err(), Failure::BadCredentials);
        }
    }
}

#[tokio::test]
async fn the_verifiers_that_pad_a_failure_open_nothing() {
    let disk = Disk::new();
    let access = disk.open();
    let mut bob = user("bob", argon2id("one"), "b");
    bob.verifiers.push(argon2id("two"));
    apply(&access, &document(1, vec![user("ann", hmac("secret"), "a"), bob])).await;
    assert_eq!(login(&access, "ann", "one").await.unwrap_err(), Failure::BadCredentials);
    assert_eq!(login(&access, "eve", "one").await.unwrap_err(), Failure::BadCredentials);
    assert!(login(&access, "bob", "two").await.is_ok());
}

#[tokio::test]
async fn a_success_is_cached_until_the_verifier_changes() {
    let disk = Disk::new();
    let access = disk.open();
    let cached = || disk.counts.cached.load(Ordering::Relaxed);
    apply(&access, &document(1, vec![user("ann", argon2id("secret"), "a")])).await;
    login(&access, "ann", "secret").await.unwrap();
    assert_eq!(cached(), 0);
    login(&access, "ann", "secret").await.unwrap();
    assert_eq!(cached(), 1);
    apply(&access, &document(2, vec![user("ann", argon2id("changed"), "a")])).await;
    assert_eq!(login(&access, "ann", "secret").await.unwrap_err(), Failure::BadCredentials);
    apply(&access, &document(3, vec![])).await;
    assert_eq!(login(&access, "ann", "secret").await.unwrap_err(), Failure::BadCredentials);
    assert_eq!(cached(), 1);
}

#[tokio::test]
async fn an_address_that_fails_too_often_gets_no_slow_hash_and_locks_nobody_else_out() {
    let disk = Disk::new();
    let access = disk.open();
    let (ann, bob) = (user("ann", argon2id("secret"), "a"), user("bob", hmac("x"), "b"));
    apply(&access, &document(1, vec![ann, bob, user("carl", argon2id("slow"), "c")])).await;
    login(&access, "ann", "secret").await.unwrap();
    let mut failures = 0;
    while login(&access, "bob", "guess").await.unwrap_err() == Failure::BadCredentials {
        failures += 1;
        assert!(failures < 100);
    }
    assert!(login(&access, "bob", "x").await.is_ok(), "a generated password is checked from a limited address too");
    assert!(login(&access, "ann", "secret").await.is_ok(), "a password that matched before is cached");
    for (name, password) in [("carl", "slow"), ("ann", "guess"), ("bob", "guess"), ("eve", "x")] {
        assert_eq!(login(&access, name, password).await.unwrap_err(), Failure::Busy, "{name}");
    }
    let elsewhere = "192.0.2.1".parse().unwrap();
    assert!(access.authenticate(Some("carl"), Some(b"slow"), "c", elsewhere).await.is_ok());
}

#[tokio::test]
async fn a_client_id_of_somebody_else_is_refused() {
    let disk = Disk::new();
    let access = disk.open();
    let mut ann = user("ann", hmac("secret"), "dev/{clientId}/#");
    ann.client_id_pattern = Some("ann-*".into());
    apply(&access, &document(1, vec![ann.clone()])).await;
    let enter = |id: &'static str| access.authenticate(Some("ann"), Some(b"secret"), id, PEER);
    let principal = enter("ann-1").await.unwrap();
    assert_eq!(enter("bob-1").await.unwrap_err(), Failure::NotAuthorized);
    assert_eq!(enter("ann-1/x").await.unwrap_err(), Failure::NotAuthorized);
    assert!(principal.may_publish("ann-1", "dev/ann-1/x", QoS::AtLeastOnce, false));
    assert!(!principal.may_publish("ann-1", "dev/ann-2/x", QoS::AtLeastOnce, false));

    ann.client_id_pattern = Some("ann-2*".into());
    apply(&access, &document(2, vec![ann])).await;
    assert!(access.refresh(&principal, "ann-1").is_none());
    assert!(access.refresh(&principal, "ann-2").is_some());
}

#[tokio::test]
async fn anonymous_clients_have_the_rights_of_the_user_without_name() {
    let disk = Disk::new();
    let document = document(1, vec![user("", hmac("secret"), "public/#")]);
    disk.mount(&document);
    let access = disk.open_with(true);
    let principal = access.authenticate(None, None, "c", PEER).await.unwrap();
    assert!(may_publish(&principal, "public/x"));
    assert!(!may_publish(&principal, "private"));
    assert!(access.refresh(&principal, "c").is_some());
    assert_eq!(login(&access, "", "secret").await.unwrap_err(), Failure::BadCredentials);

    let strict = disk.open();
    assert_eq!(strict.authenticate(None, None, "c", PEER).await.unwrap_err(), Failure::BadCredentials);
    assert!(strict.refresh(&principal, "c").is_none());
}

#[tokio::test]
async fn rights_follow_the_revision() {
    let disk = Disk::new();
    let access = disk.open();
    let mut revision = access.revision();
    apply(&access, &ann(1)).await;
    assert_eq!(*revision.borrow_and_update(), 1);
    let old = login(&access, "ann", "secret").await.unwrap();
    assert!(may_publish(&old, "t/1") && !may_publish(&old, "t/2"));
    apply(&access, &ann(2)).await;
    assert!(revision.has_changed().unwrap());
    let new = access.refresh(&old, "c1").unwrap();
    assert!(!may_publish(&new, "t/1") && may_publish(&new, "t/2"));
    apply(&access, &document(3, vec![])).await;
    assert!(access.refresh(&new, "c1").is_none());
}

#[tokio::test]
async fn shared_filters_are_checked_by_their_filter_and_decisions_counted() {
    let disk = Disk::new();
    let access = disk.open();
    apply(&access, &document(1, vec![user("ann", hmac("secret"), "a/#")])).await;
    let ann = login(&access, "ann", "secret").await.unwrap();
    let may = |filter: &str| ann.may_subscribe("c1", filter, QoS::AtLeastOnce);
    assert!(may("a/+") && may("$share/g/a/+"));
    assert!(!may("#") && !may("$share/g/#") && !may("$share/g/b") && !may("$share/a/") && !may("a/#/b"));
    let (allowed, unmatched) = (&disk.counts.allowed, &disk.counts.unmatched);
    assert_eq!((allowed.load(Ordering::Relaxed), unmatched.load(Ordering::Relaxed)), (2, 5));
}

#[tokio::test]
async fn the_higher_revision_wins_whichever_way_it_comes() {
    let disk = Disk::new();
    let access = disk.open();
    assert_eq!(apply(&access, &ann(5)).await.revision, 5);
    assert_eq!(apply(&access, &ann(4)).await.revision, 5);
    // The copy on the disk survives the process, and an older Secret does not replace it.
    disk.mount(&ann(3));
    let access = disk.open();
    assert_eq!(access.status().revision, 5);
    disk.mount(&ann(6));
    access.inner.look_at_mount(&mut access.inner.loading.lock());
    assert_eq!(access.status().revision, 6);
    assert_eq!(disk.open().status().revision, 6);
    assert_eq!(disk.counts.enforced.load(Ordering::Relaxed), 6);
}

#[tokio::test(start_paused = true)]
async fn a_replaced_secret_is_noticed() {
    let disk = Disk::new();
    disk.mount(&ann(1));
    let access = disk.open();
    let shutdown = CancellationToken::new();
    let follow = tokio::spawn(access.clone().follow(shutdown.clone()));
    let mut revision = access.revision();
    assert_eq!(*revision.borrow_and_update(), 1);
    disk.mount(&ann(2));
    tokio::time::timeout(Duration::from_mins(1), revision.changed()).await.unwrap().unwrap();
    assert_eq!(access.status().revision, 2);
    shutdown.cancel();
    follow.await.unwrap();
}

#[tokio::test]
async fn a_document_that_does_not_compile_changes_nothing_but_the_status() {
    let disk = Disk::new();
    let access = disk.open();
    apply(&access, &ann(1)).await;
    let mut broken = ann(3);
    broken.users[0].rules[0].topics = vec!["a/#/b".into()];
    for _ in 0..2 {
        let status = apply(&access, &broken).await;
        assert_eq!((status.revision, status.rejected_revision), (1, 3));
        assert!(status.rejected_reason.contains("a/#/b"), "{}", status.rejected_reason);
    }
    assert_eq!(disk.counts.load_failures.load(Ordering::Relaxed), 1, "one problem, one line");
    assert_eq!(disk.counts.rejected.load(Ordering::Relaxed), 3);
    assert!(login(&access, "ann", "secret").await.is_ok());

    assert_eq!(apply(&access, &ann(2)).await.rejected_revision, 3, "the refused revision is still newer");
    let newer = access.apply(br#"{"format":2,"revision":9,"wings":true}"#.as_slice().into()).await;
    assert_eq!((newer.revision, newer.rejected_revision), (2, 9));
    let status = apply(&access, &ann(10)).await;
    assert_eq!((status.revision, status.rejected_revision, status.rejected_reason.as_str()), (10, 0, ""));
    assert_eq!(disk.counts.rejected.load(Ordering::Relaxed), 0);
    let garbage = access.apply(b"{".as_slice().into()).await;
    assert_eq!((garbage.revision, garbage.rejected_revision), (10, 0));
}

#[tokio::test]
async fn a_verifier_that_no_broker_can_afford_is_refused() {
    let disk = Disk::new();
    let access = disk.open();
    let phc = "$argon2id$v=19$m=99999999,t=1,p=1$c2FsdHNhbHQ$MTIzNDU2Nzg5MDEyMzQ1Ng";
    let status = apply(&access, &document(1, vec![user("ann", Verifier::Argon2id(phc.into()), "a")])).await;
    assert_eq!((status.revision, status.rejected_revision), (0, 1));
}

#[tokio::test]
async fn half_a_secret_waits_for_the_rest() {
    let disk = Disk::new();
    let mut files = ann(2).to_files();
    let part = files.remove("users-0.json").unwrap();
    disk.mount_files(files, "..2");
    let access = disk.open();
    assert_eq!((access.status().revision, access.status().rejected_revision), (0, 0));
    std::fs::write(disk.mount.path().join("..2/users-0.json"), part).unwrap();
    access.inner.look_at_mount(&mut access.inner.loading.lock());
    assert_eq!(access.status().revision, 2);
}

#[tokio::test]
async fn a_torn_copy_does_not_keep_the_broker_from_starting() {
    let disk = Disk::new();
    std::fs::write(disk.data.path().join("access.json"), br#"{"format":1,"revision":7,"us"#).unwrap();
    disk.mount(&ann(3));
    let access = disk.open();
    assert_eq!(access.status().revision, 3);
    let files: Vec<_> = std::fs::read_dir(disk.data.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["access.json"], "the copy is replaced and no temporary file is left");
    assert!(is_private(&disk.data.path().join("access.json")));
}

fn is_private(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().unwrap().permissions().mode() & 0o777 == 0o600
}
