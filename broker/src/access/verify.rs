//! Checks a user name and a password.
//!
//! Invariant: neither the result nor its timing reveals whether a user exists. A failure costs one HMAC and as many
//! argon2id hashes as the user with the most of them has. A success costs what the user's own verifiers cost; successes
//! of argon2id are cached.

use std::collections::HashSet;
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use hmac::{Hmac, KeyInit as _, Mac as _};
use parking_lot::Mutex;
use sha2::Sha256;
use tokio::time::Instant;

use super::hashing::{Argon2id, Busy, Hashing};
use super::limit::Failures;
use super::observer::{AuthMethod, Observer};
use super::users::{Principal, Proof, Users};

/// Entries in one generation of the cache. There are two generations.
const CACHED: usize = 32_768;

/// Result of a password check.
pub(super) enum Outcome {
    /// The password is right.
    Proved(Arc<Principal>),
    /// The user is unknown or the password is wrong.
    Wrong,
    /// Too many argon2id hashes are queued.
    Busy,
    /// The address failed too often.
    Limited,
}

/// Checks passwords and caches the successes of argon2id.
pub(super) struct Passwords {
    /// Random key of this process, never stored: tickets in the cache are worthless elsewhere.
    key: [u8; 32],
    /// Tickets of passwords that matched an argon2id verifier.
    cache: Mutex<Generations>,
    /// Failed attempts by address.
    failures: Failures,
    /// Queue of argon2id hashes.
    hashing: Hashing,
    observer: Arc<dyn Observer>,
}

impl Passwords {
    pub(super) fn new(observer: Arc<dyn Observer>) -> Self {
        let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            key: rand::random(),
            cache: Mutex::default(),
            failures: Failures::default(),
            hashing: Hashing::new(workers),
            observer,
        }
    }

    /// Checks a user's password. An unknown user takes as long as a wrong password.
    pub(super) async fn check(&self, users: &Users, username: &str, password: &[u8], peer: IpAddr) -> Outcome {
        let begin = Instant::now();
        let principal = users.get(username);
        let proofs = principal.map_or(&[][..], |principal| &principal.proofs);
        let slow: Vec<&Argon2id> = proofs.iter().filter_map(Proof::argon2id).collect();
        if let Some(principal) = principal
            && slow.iter().any(|verifier| self.cache.lock().contains(&self.ticket(username, password, verifier)))
        {
            return self.proved(principal, AuthMethod::Cache, begin);
        }
        // Before the rate limit: a generated password cannot be guessed, and many clients may share one address.
        let quick = matches_quickly(proofs, password);
        if let Some(principal) = principal.filter(|_| quick) {
            return self.proved(principal, AuthMethod::HmacSha256, begin);
        }
        // Bounds argon2id hashing and the number of guesses per address.
        if self.failures.is_limited(peer) {
            return Outcome::Limited;
        }
        match self.hash(users, &slow, password).await {
            Err(Busy) => Outcome::Busy,
            Ok(found) => {
                let found = found.and_then(|position| Some((principal?, slow.get(position)?)));
                if let Some((principal, verifier)) = found {
                    self.cache.lock().insert(self.ticket(username, password, verifier));
                    return self.proved(principal, AuthMethod::Argon2id, begin);
                }
                self.failures.note(peer);
                let method = if users.most_argon2id > 0 { AuthMethod::Argon2id } else { AuthMethod::HmacSha256 };
                self.observe(method, begin);
                Outcome::Wrong
            }
        }
    }

    /// Returns the position of the matching verifier among the user's own.
    async fn hash(&self, users: &Users, own: &[&Argon2id], password: &[u8]) -> Result<Option<usize>, Busy> {
        let verifiers = pad(users, own);
        if verifiers.is_empty() {
            return Ok(None);
        }
        let found = self.hashing.find(password, verifiers).await?;
        Ok(found.filter(|position| *position < own.len()))
    }

    fn proved(&self, principal: &Arc<Principal>, method: AuthMethod, begin: Instant) -> Outcome {
        self.observe(method, begin);
        Outcome::Proved(principal.clone())
    }

    fn observe(&self, method: AuthMethod, begin: Instant) {
        self.observer.checked(method, begin.elapsed());
    }

    /// Returns the cache key of a success: a MAC over user name, password and verifier.
    fn ticket(&self, username: &str, password: &[u8], verifier: &Argon2id) -> [u8; 32] {
        let mut mac = keyed(&self.key);
        for part in [username.as_bytes(), password, verifier.identity().as_bytes()] {
            mac.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

impl Proof {
    fn argon2id(&self) -> Option<&Argon2id> {
        match self {
            Self::Argon2id(verifier) => Some(verifier),
            Self::HmacSha256 { .. } => None,
        }
    }
}

/// Returns the user's own verifiers, padded with others so that a failure costs the same for every user.
fn pad(users: &Users, own: &[&Argon2id]) -> Vec<Argon2id> {
    let missing = users.most_argon2id.saturating_sub(own.len());
    let padding = users.sample.iter().cycle().take(missing);
    own.iter().copied().chain(padding).cloned().collect()
}

/// Tries every HMAC verifier. Without one it computes an HMAC that matches nothing, so that the timing is the same.
fn matches_quickly(proofs: &[Proof], password: &[u8]) -> bool {
    let mut matched = false;
    let mut tried = false;
    for proof in proofs {
        if let Proof::HmacSha256 { salt, mac } = proof {
            tried = true;
            matched |= is_mac(salt, password, mac);
        }
    }
    if !tried {
        // An empty MAC is never right.
        matched |= is_mac(&[0; 16], password, &[]);
    }
    matched
}

fn is_mac(salt: &[u8], password: &[u8], expected: &[u8]) -> bool {
    let mut mac = keyed(salt);
    mac.update(password);
    mac.verify_slice(expected).is_ok()
}

#[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of every length")
}

/// A set that evicts entries that were not looked up during the last `CACHED` to 2 × `CACHED` insertions.
#[derive(Default)]
struct Generations {
    /// Entries inserted or looked up since the last rotation; at most `CACHED`.
    young: HashSet<[u8; 32]>,
    /// The previous generation, less the entries that were looked up since.
    old: HashSet<[u8; 32]>,
}

impl Generations {
    fn contains(&mut self, ticket: &[u8; 32]) -> bool {
        if self.young.contains(ticket) {
            return true;
        }
        let found = self.old.remove(ticket);
        if found {
            self.insert(*ticket);
        }
        found
    }

    fn insert(&mut self, ticket: [u8; 32]) {
        if self.young.len() >= CACHED {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(ticket);
    }
}

#[cfg(test)]
mod tests {
    use covey_contract::access::{Document, FORMAT, User, Verifier};

    use super::*;
    use crate::access::tests::Counts;

    #[test]
    fn every_user_and_none_costs_the_same_hashes() {
        let phc = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$MTIzNDU2Nzg5MDEyMzQ1Ng";
        let user = |name: &str, verifiers: usize| User {
            name: name.into(),
            source: String::new(),
            verifiers: vec![Verifier::Argon2id(phc.into()); verifiers],
            client_id_pattern: None,
            rules: vec![],
        };
        let observer: Arc<dyn Observer> = Arc::new(Counts::default());
        let users =
            |users: Vec<User>| Users::compile(&Document { format: FORMAT, revision: 1, users }, &observer).unwrap();
        let some = users(vec![user("none", 0), user("one", 1), user("two", 2)]);
        for name in ["none", "one", "two", "unknown"] {
            let proofs = some.get(name).map_or(&[][..], |principal| &principal.proofs);
            let own: Vec<_> = proofs.iter().filter_map(Proof::argon2id).collect();
            assert_eq!(pad(&some, &own).len(), 2, "{name}");
        }
        assert!(pad(&users(vec![user("none", 0)]), &[]).is_empty());
    }

    fn ticket(number: usize) -> [u8; 32] {
        let mut ticket = [0; 32];
        ticket[..8].copy_from_slice(&number.to_be_bytes());
        ticket
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let mut cache = Generations::default();
        for number in 0..5 * CACHED {
            cache.insert(ticket(number));
            assert!(cache.contains(&ticket(0)), "lost after {number}");
            assert!(cache.young.len() + cache.old.len() <= 2 * CACHED + 1);
        }
        assert!(!cache.contains(&ticket(1)));
    }
}
