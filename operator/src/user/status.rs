//! Builds the status of a user. Pure.

use covey_contract::access::{Document, display_revision};
use covey_crds::condition::{READY, reason};
use covey_crds::{MqttUser, MqttUserStatus};
use jiff::Timestamp;

use super::credentials;
use crate::access::Outcome;
use crate::cluster::nodes::Node;
use crate::conditions::{Draft, merge};

/// The inputs of a status.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    pub user: &'a MqttUser,
    pub outcome: &'a Outcome,
    /// What is wrong with the source of the password, as a reason and a message.
    pub credential_problem: Option<(&'static str, &'a str)>,
    /// Revision since which the user is unchanged.
    pub since_revision: u64,
    pub document: &'a Document,
    pub nodes: &'a [Node],
    pub now: Timestamp,
}

/// Builds the status.
pub fn build(observed: &Observed<'_>) -> MqttUserStatus {
    let Observed { user, nodes, .. } = observed;
    let before = user.status.clone().unwrap_or_default();
    let enforcing =
        nodes.iter().filter(|node| node.revision().is_some_and(|revision| revision >= observed.since_revision)).count();
    let present = is_in_force(observed);
    let clients = |node: &Node| {
        let clients = node.report.as_ref().and_then(|report| report.clients_by_user.get(user.username()));
        clients.map_or(0, |clients| i64::from(*clients))
    };
    let draft = ready(observed, enforcing);
    MqttUserStatus {
        observed_generation: user.metadata.generation,
        secret: Some(credentials::secret_name(user)),
        acl_revision: present.then(|| since_text(observed, &before)),
        synced_nodes: present.then(|| format!("{enforcing}/{}", nodes.len())),
        connected_clients: Some(if present { nodes.iter().map(clients).sum() } else { 0 }),
        conditions: merge(&before.conditions, vec![draft], user.metadata.generation, observed.now),
    }
}

/// Returns whether the document has rules of this user. A user that cannot be taken as it is may have previous ones.
fn is_in_force(observed: &Observed<'_>) -> bool {
    match observed.outcome {
        Outcome::Included | Outcome::Kept => true,
        Outcome::TooLarge | Outcome::Invalid { .. } => {
            observed.document.users.iter().any(|user| user.name == observed.user.username())
        }
        Outcome::NoCredential | Outcome::Conflict { .. } => false,
    }
}

/// Returns the revision since which the user is unchanged, with its hash. The hash of an earlier revision is taken from
/// the previous status.
fn since_text(observed: &Observed<'_>, before: &MqttUserStatus) -> String {
    if observed.since_revision == observed.document.revision {
        return display_revision(observed.since_revision, &observed.document.hash());
    }
    let prefix = format!("r{}:", observed.since_revision);
    before
        .acl_revision
        .clone()
        .filter(|text| text.starts_with(&prefix))
        .unwrap_or_else(|| format!("r{}", observed.since_revision))
}

fn ready(observed: &Observed<'_>, enforcing: usize) -> Draft {
    let total = observed.nodes.len();
    let until_then =
        if is_in_force(observed) { "its previous rules stay in force" } else { "no client can log in as this user" };
    let (cause, problem) = observed.credential_problem.unwrap_or((reason::SECRET_MISSING, "the password is missing"));
    match observed.outcome {
        Outcome::Included if enforcing == total => {
            Draft::new(READY, Some(true), reason::SYNCED, format!("all {total} nodes enforce this user"))
        }
        Outcome::Included => {
            let names: Vec<&str> = observed
                .nodes
                .iter()
                .filter(|node| node.revision().is_none_or(|revision| revision < observed.since_revision))
                .map(|node| node.name.as_str())
                .collect();
            let message = format!(
                "{enforcing} of {total} nodes enforce revision {}; waiting for {}",
                observed.since_revision,
                names.join(", ")
            );
            Draft::new(READY, Some(false), reason::NODES_NOT_SYNCED, message)
        }
        Outcome::Kept => {
            Draft::new(READY, Some(false), cause, format!("{problem}; the last known password stays in force"))
        }
        Outcome::NoCredential => {
            Draft::new(READY, Some(false), cause, format!("{problem}; no client can log in as this user"))
        }
        Outcome::Conflict { winner } => Draft::new(
            READY,
            Some(false),
            reason::CONFLICT,
            format!(
                "user name {:?} belongs to MqttUser {winner}, which is older; choose another spec.username",
                observed.user.username()
            ),
        ),
        Outcome::TooLarge => Draft::new(
            READY,
            Some(false),
            reason::TOO_MANY_RULES,
            format!(
                "the rules of all users of the cluster do not fit in one Secret: give this user fewer, or remove \
                 others; until then {until_then}"
            ),
        ),
        Outcome::Invalid { problem } => {
            Draft::new(READY, Some(false), reason::INVALID, format!("{problem}; until this is corrected {until_then}"))
        }
    }
}

/// Returns whether the difference must be written at once. A difference in the number of clients alone can wait.
pub fn is_urgent(before: Option<&MqttUserStatus>, after: &MqttUserStatus) -> bool {
    let still = |status: &MqttUserStatus| MqttUserStatus { connected_clients: None, ..status.clone() };
    before.map(still).as_ref() != Some(&still(after))
}

#[cfg(test)]
mod tests {
    use covey_contract::access::FORMAT;
    use covey_contract::proto::{AccessStatus, StatusReply};

    use super::*;
    use crate::test_support::user;

    fn node(ordinal: u32, revision: Option<u64>) -> Node {
        let report = revision.map(|revision| StatusReply {
            access: Some(AccessStatus { revision, ..AccessStatus::default() }),
            clients_by_user: [("a".to_owned(), 2)].into(),
            ..StatusReply::default()
        });
        Node { ordinal, name: format!("mosaic-{ordinal}"), pod: None, report, problem: None }
    }

    fn status(outcome: &Outcome, since_revision: u64, nodes: &[Node]) -> MqttUserStatus {
        status_in(&Document { format: FORMAT, revision: 9, users: vec![] }, outcome, since_revision, nodes)
    }

    fn status_in(document: &Document, outcome: &Outcome, since_revision: u64, nodes: &[Node]) -> MqttUserStatus {
        build(&Observed {
            user: &user("a", "acl: []"),
            outcome,
            credential_problem: None,
            since_revision,
            document,
            nodes,
            now: Timestamp::UNIX_EPOCH,
        })
    }

    #[test]
    fn ready_means_every_node_enforces_it() {
        let synced = status(&Outcome::Included, 7, &[node(0, Some(7)), node(1, Some(9)), node(2, Some(8))]);
        assert_eq!((synced.conditions[0].status.as_str(), synced.synced_nodes.as_deref()), ("True", Some("3/3")));
        assert_eq!(synced.connected_clients, Some(6));
        let behind = status(&Outcome::Included, 9, &[node(0, Some(9)), node(1, Some(8)), node(2, None)]);
        assert_eq!((behind.conditions[0].status.as_str(), behind.synced_nodes.as_deref()), ("False", Some("1/3")));
        assert!(behind.conditions[0].message.contains("mosaic-1, mosaic-2"), "{}", behind.conditions[0].message);
        assert!(behind.acl_revision.unwrap().starts_with("r9:"));
    }

    #[test]
    fn a_conflict_says_who_has_the_name() {
        let status = status(&Outcome::Conflict { winner: "b".into() }, 0, &[node(0, Some(9))]);
        assert_eq!((status.conditions[0].reason.as_str(), status.synced_nodes), ("Conflict", None));
        assert!(status.conditions[0].message.contains("MqttUser b"));
    }

    #[test]
    fn a_user_that_cannot_be_taken_shows_what_its_previous_rules_do() {
        let previous = covey_contract::access::User {
            name: "a".into(),
            source: String::new(),
            verifiers: vec![],
            client_id_pattern: None,
            rules: vec![],
        };
        let nodes = [node(0, Some(9))];
        for outcome in [Outcome::TooLarge, Outcome::Invalid { problem: "acl[0] has no topic".into() }] {
            let without = status(&outcome, 7, &nodes);
            assert_eq!((&without.acl_revision, without.connected_clients), (&None, Some(0)));
            assert!(without.conditions[0].message.ends_with("no client can log in as this user"));
            let document = Document { format: FORMAT, revision: 9, users: vec![previous.clone()] };
            let with = status_in(&document, &outcome, 7, &nodes);
            assert_eq!((with.synced_nodes.as_deref(), with.connected_clients), (Some("1/1"), Some(2)));
            assert!(with.conditions[0].message.ends_with("its previous rules stay in force"));
        }
    }

    #[test]
    fn a_client_more_or_less_is_not_urgent() {
        let before = status(&Outcome::Included, 7, &[node(0, Some(7))]);
        let after = MqttUserStatus { connected_clients: Some(99), ..before.clone() };
        assert!(!is_urgent(Some(&before), &after) && is_urgent(None, &after));
        assert!(is_urgent(Some(&before), &MqttUserStatus { synced_nodes: None, ..before.clone() }));
    }
}
