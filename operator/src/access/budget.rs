//! Keeps the access document within the size of a Secret. Pure.
//!
//! A document that is too large could not be recorded, and no change of access would reach the brokers any more: a team
//! that may create users could stop every revocation. So users that are in force keep their place, a change that does not
//! fit is left out, and the last 64 KiB are kept for changes of users that are in force: rules that deny more can be
//! longer.

use covey_contract::access::{DOCUMENT_BYTES, USER_BYTES, User};

use super::{PENDING, VERIFIER_BYTES};

/// A user of the next document.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    /// Name of the object.
    pub(super) object: &'a str,
    /// The user as desired.
    pub(super) user: User,
    /// The user in the previous document, if that entry was made for the same object.
    pub(super) known: Option<&'a User>,
}

/// Result for one user.
#[derive(Debug)]
pub(super) struct Fitted<'a> {
    pub(super) object: &'a str,
    /// The user as it is in the document; absent if it is left out.
    pub(super) user: Option<User>,
    /// True if there was no room for the desired rules. The user then has its previous rules, or is left out.
    pub(super) is_cut: bool,
    pub(super) known: Option<&'a User>,
}

/// A desired change, with the bytes by which it makes the document larger.
struct Change<'a> {
    growth: i64,
    position: usize,
    entry: Entry<'a>,
}

/// Returns what fits in a document that already has `taken` bytes, in the order of `entries`. Changes that need less room
/// come first; ties keep their order.
pub(super) fn fit(taken: usize, entries: Vec<Entry<'_>>) -> Vec<Fitted<'_>> {
    let mut fitted: Vec<Fitted<'_>> = entries.iter().map(with_previous_rules).collect();
    let mut used = size(taken) + fitted.iter().map(|fitted| bytes(fitted.user.as_ref())).sum::<i64>();
    let changes = entries.into_iter().zip(&fitted).enumerate().map(|(position, (entry, fitted))| {
        let growth = bytes(Some(&entry.user)) - bytes(fitted.user.as_ref());
        Change { growth, position, entry }
    });
    let mut changes: Vec<Change<'_>> = changes.collect();
    changes.sort_by_key(|change| (change.growth, change.position));
    for Change { growth, position, entry } in changes {
        let is_new = entry.known.is_none();
        let limit = size(DOCUMENT_BYTES) - if is_new { size(USER_BYTES) } else { 0 };
        let fits = growth <= 0 || used + growth <= limit;
        if let Some(fitted) = fitted.get_mut(position).filter(|_| fits) {
            (fitted.user, fitted.is_cut) = (Some(entry.user), false);
            used += growth;
        }
    }
    leave_out_largest(used, &mut fitted);
    fitted
}

/// Returns the user with its previous rules and its present password; they need no more room than it has.
fn with_previous_rules<'a>(entry: &Entry<'a>) -> Fitted<'a> {
    let user = entry.known.map(|known| User {
        rules: known.rules.clone(),
        client_id_pattern: known.client_id_pattern.clone(),
        ..entry.user.clone()
    });
    Fitted { object: entry.object, user, is_cut: true, known: entry.known }
}

/// Leaves out the largest users until the document fits. Entries in force can exceed the limit: the rules of anonymous
/// clients may have grown, or an earlier version had another limit.
fn leave_out_largest(mut used: i64, fitted: &mut [Fitted<'_>]) {
    while used > size(DOCUMENT_BYTES) {
        let present = fitted.iter_mut().filter(|fitted| fitted.user.is_some());
        let Some(largest) = present.max_by_key(|fitted| bytes(fitted.user.as_ref())) else { return };
        used -= bytes(largest.user.as_ref());
        (largest.user, largest.is_cut) = (None, true);
    }
}

/// Returns the bytes of a user in the document, with room for a verifier that is not made yet.
fn bytes(user: Option<&User>) -> i64 {
    let unmade = user.is_some_and(|user| user.verifiers == [PENDING]);
    size(user.map_or(0, User::bytes) + if unmade { VERIFIER_BYTES } else { 0 })
}

fn size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use covey_contract::access::{Action, Effect, Rule, Verifier};

    use super::*;

    fn user(name: &str, bytes: usize) -> User {
        let verifiers = vec![Verifier::Argon2id("x".into())];
        let topics = vec!["t".repeat(bytes)];
        let rule = Rule { effect: Effect::Allow, actions: vec![Action::Publish], topics, max_qos: None, retain: None };
        User { name: name.into(), source: "s".into(), verifiers, client_id_pattern: None, rules: vec![rule] }
    }

    fn entry<'a>(object: &'a str, bytes: usize, known: Option<&'a User>) -> Entry<'a> {
        Entry { object, user: user(object, bytes), known }
    }

    fn cut<'a>(fitted: &[Fitted<'a>]) -> Vec<&'a str> {
        let total: usize = fitted.iter().filter_map(|fitted| fitted.user.as_ref()).map(User::bytes).sum();
        assert!(total <= DOCUMENT_BYTES, "{total}");
        fitted.iter().filter(|fitted| fitted.is_cut).map(|fitted| fitted.object).collect()
    }

    #[test]
    fn what_fits_is_not_changed() {
        assert_eq!(cut(&fit(0, vec![entry("a", 1000, None), entry("b", 900_000, None)])), [""; 0]);
    }

    #[test]
    fn newcomers_leave_room_for_rules_that_deny_more() {
        let known = user("a", 40_000);
        let fitted = fit(0, vec![entry("new", 930_000, None), entry("a", 40_000, Some(&known))]);
        assert_eq!(cut(&fitted), ["new"]);
        let full = user("b", 930_000);
        let entries = vec![entry("b", 930_000, Some(&full)), entry("a", 80_000, Some(&known))];
        assert_eq!(cut(&fit(0, entries)), [""; 0], "a user in force may grow into the rest");
    }

    #[test]
    fn users_in_force_stay_and_the_largest_newcomer_is_left_out() {
        let known = user("a", 500_000);
        let fitted =
            fit(0, vec![entry("large", 600_000, None), entry("a", 500_000, Some(&known)), entry("small", 1000, None)]);
        assert_eq!(cut(&fitted), ["large"]);
        assert!(fitted[0].user.is_none());
        assert_eq!(fitted[1].user.as_ref(), Some(&known));
    }

    #[test]
    fn a_user_that_grows_too_much_keeps_its_rules_and_gets_its_new_password() {
        let (a, b) = (user("a", 500_000), user("b", 400_000));
        let mut grown = entry("b", 900_000, Some(&b));
        grown.user.source = "s:another".into();
        let fitted = fit(0, vec![entry("a", 500_000, Some(&a)), grown]);
        assert_eq!(cut(&fitted), ["b"]);
        let kept = fitted[1].user.as_ref().unwrap();
        assert_eq!((&kept.rules, kept.source.as_str()), (&b.rules, "s:another"));
    }

    #[test]
    fn a_user_that_shrinks_makes_room_for_another() {
        let a = user("a", 900_000);
        assert_eq!(cut(&fit(0, vec![entry("b", 800_000, None), entry("a", 1000, Some(&a))])), [""; 0]);
    }

    #[test]
    fn if_what_is_in_force_does_not_fit_the_largest_is_left_out() {
        let (a, b) = (user("a", 500_000), user("b", 400_000));
        let entries = || vec![entry("a", 500_000, Some(&a)), entry("b", 400_000, Some(&b))];
        assert_eq!(cut(&fit(200_000, entries())), ["a"]);
        assert_eq!(cut(&fit(DOCUMENT_BYTES, entries())), ["a", "b"]);
    }
}
