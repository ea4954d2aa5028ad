use covey_contract::access::{Action, Effect};

use super::*;

fn rule(topic: &str) -> Rule {
    Rule {
        effect: Effect::Allow,
        actions: vec![Action::Publish],
        topics: vec![topic.into()],
        max_qos: None,
        retain: None,
    }
}

fn candidate(object: &str, username: &str, second: i64) -> Candidate {
    Candidate {
        object: object.into(),
        uid: Some(format!("{object}-uid")),
        username: username.into(),
        created: Timestamp::from_second(second).ok(),
        client_id_pattern: None,
        rules: Ok(vec![rule("a/b")]),
        credential: Some(Credential {
            source: format!("{object}:1"),
            origin: Origin::Generated,
            password: b"secret".to_vec(),
        }),
    }
}

fn run(previous: Option<&Document>, seen: u64, candidates: &[Candidate]) -> Projection {
    project(previous, seen, None, candidates, &mut make_verifier).unwrap()
}

#[test]
fn the_same_users_keep_revision_and_verifiers() {
    let users = [candidate("b", "b", 2), candidate("a", "a", 1)];
    let first = run(None, 0, &users);
    assert_eq!(first.document.revision, 1);
    assert_eq!(first.document.users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(first.changed.len(), 2);
    first.document.check().unwrap();
    let second = run(Some(&first.document), 1, &users);
    assert_eq!(second.document, first.document);
    assert!(second.changed.is_empty());
}

#[test]
fn a_change_is_the_next_revision_and_touches_only_who_changed() {
    let mut users = [candidate("a", "a", 1), candidate("b", "b", 2)];
    let first = run(None, 0, &users);
    users[0].rules = Ok(vec![rule("other")]);
    let second = run(Some(&first.document), 1, &users);
    assert_eq!(second.document.revision, 2);
    assert_eq!(second.changed.into_iter().collect::<Vec<_>>(), ["a"]);
    assert_eq!(second.document.users[0].verifiers, first.document.users[0].verifiers);
}

#[test]
fn another_version_of_the_secret_makes_another_verifier() {
    let mut users = [candidate("a", "a", 1)];
    let first = run(None, 0, &users);
    users[0].credential.as_mut().unwrap().source = "a:2".into();
    let second = run(Some(&first.document), 0, &users);
    assert_ne!(second.document.users[0].verifiers, first.document.users[0].verifiers);
    assert_eq!(second.document.revision, 2);
}

#[test]
fn the_oldest_object_keeps_the_name() {
    let users = [candidate("young", "same", 9), candidate("old", "same", 1)];
    let projection = run(None, 0, &users);
    assert_eq!(projection.outcomes["old"], Outcome::Included);
    assert_eq!(projection.outcomes["young"], Outcome::Conflict { winner: "old".into() });
    assert_eq!(projection.document.users.len(), 1);
    assert_eq!(projection.document.users[0].source, "old:1@old-uid");
}

#[test]
fn a_user_whose_secret_vanished_keeps_the_verifier_and_takes_new_rules() {
    let mut users = [candidate("a", "a", 1)];
    let first = run(None, 0, &users);
    users[0].credential = None;
    users[0].rules = Ok(vec![rule("narrower")]);
    let second = run(Some(&first.document), 0, &users);
    assert_eq!(second.outcomes["a"], Outcome::Kept);
    assert_eq!(second.document.users[0].verifiers, first.document.users[0].verifiers);
    assert_eq!(second.document.users[0].rules, [rule("narrower")]);
}

#[test]
fn a_user_who_never_had_a_password_is_not_in_the_document() {
    let mut user = candidate("a", "a", 1);
    user.credential = None;
    let projection = run(None, 0, &[user]);
    assert_eq!(projection.outcomes["a"], Outcome::NoCredential);
    assert!(projection.document.users.is_empty());
    assert_eq!(projection.document.revision, 1, "an empty document is valid and admits no client");
}

#[test]
fn rules_that_cannot_be_enforced_leave_the_old_ones() {
    let mut users = [candidate("a", "a", 1)];
    let first = run(None, 0, &users);
    users[0].rules = Ok(vec![rule("a/#/b")]);
    let second = run(Some(&first.document), 0, &users);
    assert!(matches!(&second.outcomes["a"], Outcome::Invalid { problem } if problem.contains('#')));
    assert_eq!(second.document, first.document);
}

#[test]
fn rules_that_are_wrong_do_not_stop_the_change_of_a_password() {
    let mut users = [candidate("a", "a", 1)];
    let first = run(None, 0, &users);
    users[0].rules = Ok(vec![rule("a/#/b")]);
    users[0].credential.as_mut().unwrap().source = "a:2".into();
    let second = run(Some(&first.document), 1, &users);
    assert!(matches!(&second.outcomes["a"], Outcome::Invalid { .. }));
    let (before, after) = (&first.document.users[0], &second.document.users[0]);
    assert_eq!((&after.rules, after.source.as_str()), (&before.rules, "a:2@a-uid"));
    assert_ne!(after.verifiers, before.verifiers);
    assert_eq!(after.verifiers.len(), 1);
    assert!(second.changed.contains("a"));
    assert_eq!(run(Some(&second.document), 2, &users).document, second.document, "it is hashed once");
}

#[test]
fn a_password_from_another_secret_is_taken_also_while_the_rules_are_wrong() {
    let mut users = [candidate("a", "a", 1)];
    let first = run(None, 0, &users);
    users[0].rules = Ok(vec![rule("a/#/b")]);
    users[0].credential.as_mut().unwrap().source = "another:1".into();
    let second = run(Some(&first.document), 1, &users);
    assert_eq!(second.document.users[0].source, "another:1@a-uid");
    assert_eq!(second.document.users[0].rules, first.document.users[0].rules);
}

#[test]
fn an_object_gets_neither_rules_nor_password_of_a_former_one_with_the_same_user_name() {
    let former = run(None, 0, &[candidate("former", "a", 1)]).document;
    let own = candidate("a", "a", 2);
    let wrong_rules = Candidate { rules: Ok(vec![rule("a/#/b")]), ..own.clone() };
    let no_password = Candidate { credential: None, ..own.clone() };
    let same_secret = Candidate { credential: candidate("former", "a", 1).credential, ..wrong_rules.clone() };
    let neither = Candidate { credential: None, ..wrong_rules.clone() };
    let other_password = own.credential.clone().unwrap();
    for user in [wrong_rules, no_password, same_secret, neither] {
        let second = run(Some(&former), 1, std::slice::from_ref(&user));
        assert!(second.document.users.is_empty(), "{user:?}");
        assert!(second.changed.contains("a"));
    }
    let second = run(Some(&former), 1, &[own]);
    assert!(has_password(&second.document.users[0], &other_password));
    assert_ne!(second.document.users[0].verifiers, former.users[0].verifiers);
}

#[test]
fn an_entry_of_an_earlier_version_keeps_its_verifier_and_learns_its_object() {
    let users = [candidate("a", "a", 1)];
    let mut first = run(None, 0, &users).document;
    first.users[0].source = "a:1".into();
    let second = run(Some(&first), 1, &users).document;
    assert_eq!((second.users[0].source.as_str(), &second.users[0].verifiers), ("a:1@a-uid", &first.users[0].verifiers));
    assert_eq!(run(Some(&second), 2, &users).document, second);
}

#[test]
fn a_deleted_user_is_gone() {
    let first = run(None, 0, &[candidate("a", "a", 1), candidate("b", "b", 2)]);
    let second = run(Some(&first.document), 0, &[candidate("b", "b", 2)]);
    assert_eq!(second.document.users.len(), 1);
    assert_eq!(second.document.revision, 2);
}

#[test]
fn a_revision_that_somebody_saw_is_overtaken() {
    let users = [candidate("a", "a", 1)];
    let first = run(None, 0, &users);
    let second = run(Some(&first.document), 900, &users);
    assert_eq!(second.document.revision, 901);
    assert_eq!(second.document.users, first.document.users);
    assert_eq!(run(Some(&second.document), 901, &users).document.revision, 901);
}

#[test]
fn a_revision_beyond_reason_does_not_stop_the_count() {
    let users = [candidate("a", "a", 1)];
    let first = run(None, u64::MAX, &users);
    assert_eq!(first.document.revision, 1);
}

#[test]
fn the_record_survives_and_a_broken_one_still_says_its_revision() {
    let projection = run(None, 6, &[candidate("a", "a", 1)]);
    let mut files = projection.document.to_files();
    assert_eq!(read_record(&files), (Some(projection.document), 7));
    files.insert("users-0.json".into(), b"[]".to_vec());
    assert_eq!(read_record(&files), (None, 7));
    files.insert("index.json".into(), br#"{"revision": 99, "surprise": 1}"#.to_vec());
    assert_eq!(read_record(&files), (None, 99));
    files.insert("index.json".into(), b"nonsense".to_vec());
    assert_eq!(read_record(&files), (None, 0));
    assert_eq!(read_record(&BTreeMap::new()), (None, 0));
}

#[test]
fn anonymous_clients_have_rules_only_when_admitted() {
    let users = [candidate("a", "a", 1)];
    let with = project(None, 0, Some(&[rule("public")]), &users, &mut make_verifier).unwrap();
    assert_eq!(with.document.users[0].name, "");
    assert!(with.document.users[0].verifiers.is_empty());
    with.document.check().unwrap();
    assert!(run(None, 0, &users).document.users.iter().all(|user| !user.name.is_empty()));
}

#[test]
fn verifiers_match_their_kind() {
    // RFC 4231, test case 2.
    let Verifier::HmacSha256 { mac, .. } = hmac_verifier(b"what do ya want for nothing?", b"Jefe") else {
        panic!("not an HMAC")
    };
    assert_eq!(mac, "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM=");
    let brought = Credential { source: "s".into(), origin: Origin::Brought, password: b"hunter2".to_vec() };
    let Verifier::Argon2id(hash) = make_verifier(&brought).unwrap() else { panic!("not argon2id") };
    assert!(hash.starts_with("$argon2id$v=19$"), "{hash}");
}

#[test]
fn a_generated_password_has_192_bits() {
    let password = generate_password();
    assert_eq!(password.len(), 32);
    assert_ne!(password, generate_password());
}

/// Returns a candidate whose rules take about this many bytes.
fn large(object: &str, second: i64, bytes: usize) -> Candidate {
    Candidate { rules: Ok(vec![rule(&"t".repeat(500)); bytes / 600]), ..candidate(object, object, second) }
}

#[test]
fn a_user_cannot_fill_the_document() {
    let mut users = [large("a", 1, 10_000)];
    let first = run(None, 0, &users);
    users[0].rules = large("a", 1, 100_000).rules;
    let second = run(Some(&first.document), 1, &users);
    assert!(matches!(&second.outcomes["a"], Outcome::Invalid { problem } if problem.contains("at most 65536")));
    assert_eq!(second.document, first.document);
}

#[test]
fn a_full_document_delays_no_revocation() {
    let mut users: Vec<Candidate> = (10..40).map(|n| large(&format!("u{n}"), n, 50_000)).collect();
    let first = run(None, 0, &users);
    let outcome = |projection: &Projection, n: usize| projection.outcomes[&format!("u{n}")].clone();
    let present = first.document.users.len();
    assert!((15..25).contains(&present), "{present}");
    assert_eq!((outcome(&first, 10), outcome(&first, 39)), (Outcome::Included, Outcome::TooLarge));
    let bytes: usize = first.document.to_files().values().map(Vec::len).sum();
    assert!(bytes <= 1 << 20, "{bytes}");

    // One user loses its rules and another is deleted; both make room for users that waited.
    users[0].rules = Ok(vec![]);
    users.remove(1);
    let second = run(Some(&first.document), 1, &users);
    assert_eq!(second.document.revision, 2);
    assert!(second.document.users[0].rules.is_empty());
    assert!(!second.document.users.iter().any(|user| user.name == "u11"));
    assert_eq!(second.document.users.len(), present + 1);
    assert!(second.changed.contains("u10") && !second.changed.contains("u39"));
}
