//! Bounded argon2id hashing: as many hashes at a time as there are cores. A caller that would wait too long is
//! rejected.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use argon2::password_hash::PasswordVerifier as _;
use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, Params};
use covey_contract::access::MAX_PASSWORD_BYTES;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// Callers that would queue for longer than this are rejected immediately (CONNACK 0x89).
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// Assumed duration of one hash until one has been measured.
const FIRST_GUESS: Duration = Duration::from_millis(25);
/// Most memory of one hash in KiB, so that a document cannot exhaust the broker's memory.
const MOST_MEMORY: u32 = 256 * 1024;
/// Most passes of one hash.
const MOST_PASSES: u32 = 16;

/// A parsed argon2id verifier.
#[derive(Debug, Clone)]
pub(super) struct Argon2id {
    hash: Arc<PasswordHash>,
}

impl Argon2id {
    /// Parses a PHC string.
    ///
    /// # Errors
    /// Returns a description if the text is no argon2id hash or its memory or passes exceed the bounds.
    pub(super) fn new(phc: &str) -> Result<Self, String> {
        let hash = PasswordHash::new(phc).map_err(|error| format!("an argon2id verifier: {error}"))?;
        let params = Params::try_from(&hash).map_err(|error| format!("an argon2id verifier: {error}"))?;
        if hash.algorithm.as_str() != "argon2id" || hash.salt.is_none() || hash.hash.is_none() {
            return Err("an argon2id verifier is of another algorithm, or has no salt or hash".into());
        }
        if params.m_cost() > MOST_MEMORY || params.t_cost() > MOST_PASSES {
            return Err(format!("an argon2id verifier needs more than {MOST_MEMORY} KiB or {MOST_PASSES} passes"));
        }
        Ok(Self { hash: Arc::new(hash) })
    }

    /// Returns whether the password matches. Takes milliseconds of processor time.
    fn matches(&self, password: &[u8]) -> bool {
        password.len() <= MAX_PASSWORD_BYTES && Argon2::default().verify_password(password, &*self.hash).is_ok()
    }

    /// Returns the PHC string, which differs between any two verifiers.
    pub(super) fn identity(&self) -> String {
        self.hash.to_string()
    }
}

/// The queue of hashes is too long.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Busy;

/// Bounded queue of argon2id hashes.
pub(super) struct Hashing {
    /// Hashing jobs that may run at a time.
    workers: usize,
    /// One permit per free worker.
    free: Semaphore,
    /// Hashes that wait or run.
    waiting: AtomicUsize,
    /// Moving average of the duration of one hash, in nanoseconds.
    each: AtomicU64,
}

impl Hashing {
    pub(super) fn new(workers: usize) -> Self {
        let each = AtomicU64::new(nanos(FIRST_GUESS));
        Self { workers, free: Semaphore::new(workers), waiting: AtomicUsize::new(0), each }
    }

    /// Returns the position of the first verifier that the password matches, or `None` after trying all of them.
    ///
    /// # Errors
    /// Returns [`Busy`] if the estimated wait exceeds [`LONGEST_WAIT`].
    pub(super) async fn find(&self, password: &[u8], verifiers: Vec<Argon2id>) -> Result<Option<usize>, Busy> {
        let job = Waiting::new(&self.waiting, verifiers.len());
        let ahead = u64::try_from(job.ahead / self.workers).unwrap_or(u64::MAX);
        if Duration::from_nanos(self.each.load(Ordering::Relaxed).saturating_mul(ahead)) > LONGEST_WAIT {
            return Err(Busy);
        }
        let Ok(_permit) = self.free.acquire().await else { return Err(Busy) };
        let password = Zeroizing::new(password.to_vec());
        let hashed = tokio::task::spawn_blocking(move || {
            let begin = Instant::now();
            let found = verifiers.iter().position(|verifier| verifier.matches(&password));
            let hashes = found.map_or(verifiers.len(), |position| position + 1);
            (found, begin.elapsed() / u32::try_from(hashes).unwrap_or(1).max(1))
        });
        let Ok((found, took)) = hashed.await else { return Err(Busy) };
        let before = self.each.load(Ordering::Relaxed);
        self.each.store(before - before / 8 + nanos(took) / 8, Ordering::Relaxed);
        Ok(found)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Counts hashes that wait or run. Dropping it uncounts them, so an abandoned call leaves no trace.
struct Waiting<'a> {
    /// Counter of all hashes.
    all: &'a AtomicUsize,
    /// Hashes of this call.
    own: usize,
    /// Hashes that were counted before.
    ahead: usize,
}

impl<'a> Waiting<'a> {
    fn new(all: &'a AtomicUsize, own: usize) -> Self {
        let ahead = all.fetch_add(own, Ordering::Relaxed);
        Self { all, own, ahead }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use argon2::password_hash::PasswordHasher as _;

    use super::*;

    fn verifier(password: &[u8]) -> Argon2id {
        let argon2 = Argon2::from(Params::new(8, 1, 1, None).unwrap());
        let phc: PasswordHash = argon2.hash_password_with_salt(password, b"salt-salt-salt").unwrap();
        Argon2id::new(&phc.to_string()).unwrap()
    }

    #[tokio::test]
    async fn the_position_of_the_matching_verifier_is_found() {
        let hashing = Hashing::new(1);
        let verifiers = vec![verifier(b"old"), verifier(b"new")];
        assert_eq!(hashing.find(b"new", verifiers.clone()).await, Ok(Some(1)));
        assert_eq!(hashing.find(b"other", verifiers).await, Ok(None));
        let long = vec![b'x'; MAX_PASSWORD_BYTES + 1];
        assert_eq!(hashing.find(&long, vec![verifier(&long)]).await, Ok(None));
    }

    #[tokio::test]
    async fn who_would_wait_too_long_is_sent_away_and_the_queue_drains() {
        let hashing = Arc::new(Hashing::new(1));
        hashing.each.store(nanos(Duration::from_secs(1)), Ordering::Relaxed);
        let permit = hashing.free.acquire().await.unwrap();
        let wait = |hashing: Arc<Hashing>| async move { hashing.find(b"x", vec![verifier(b"x")]).await };
        let waiting: Vec<_> = (0..4).map(|_| tokio::spawn(wait(hashing.clone()))).collect();
        while hashing.waiting.load(Ordering::Relaxed) < 4 {
            tokio::task::yield_now().await;
        }
        assert_eq!(wait(hashing.clone()).await, Err(Busy));
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
        for task in waiting {
            assert!(task.await.unwrap_err().is_cancelled());
        }
        drop(permit);
        assert_eq!(wait(hashing.clone()).await, Ok(Some(0)));
        assert_eq!(hashing.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn verifiers_that_cost_too_much_are_refused() {
        let phc = |m, t| format!("$argon2id$v=19$m={m},t={t},p=1$c2FsdHNhbHQ$MTIzNDU2Nzg5MDEyMzQ1Ng");
        assert!(Argon2id::new(&phc(19456, 2)).is_ok());
        assert!(Argon2id::new(&phc(10_000_000, 2)).is_err());
        assert!(Argon2id::new(&phc(19456, 1000)).is_err());
        assert!(Argon2id::new(&phc(19456, 2).replace("argon2id", "argon2i")).is_err());
        assert!(Argon2id::new("$argon2id$v=19$m=8,t=1,p=1").is_err());
        assert!(Argon2id::new("password").is_err());
    }
}
