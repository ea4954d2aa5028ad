//! Builds the conditions of a status.
//!
//! Invariant: `lastTransitionTime` changes only when `status` changes: the same drafts yield the same conditions.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// A condition without its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    pub type_: &'static str,
    /// True, False, or `None` for Unknown.
    pub status: Option<bool>,
    pub reason: &'static str,
    pub message: String,
}

impl Draft {
    /// Creates a draft. The status `None` is `Unknown`.
    pub fn new(type_: &'static str, status: Option<bool>, reason: &'static str, message: impl Into<String>) -> Self {
        Self { type_, status, reason, message: message.into() }
    }
}

/// Turns drafts into conditions. A condition whose status is the same in `before` keeps its transition time.
pub fn merge(before: &[Condition], drafts: Vec<Draft>, generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    let condition = |draft: Draft| {
        let status = draft.status.map_or("Unknown", |status| if status { "True" } else { "False" });
        let known = before.iter().find(|condition| condition.type_ == draft.type_ && condition.status == status);
        let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
        Condition {
            type_: draft.type_.to_owned(),
            status: status.to_owned(),
            reason: draft.reason.to_owned(),
            message: draft.message.chars().take(1024).collect(),
            last_transition_time: known.map_or(now, |condition| condition.last_transition_time.clone()),
            observed_generation: generation,
        }
    };
    drafts.into_iter().map(condition).collect()
}

/// Returns the status of a condition (`True`, `False` or `Unknown`), if the condition exists.
pub fn status_of<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a str> {
    conditions.iter().find(|condition| condition.type_ == type_).map(|condition| condition.status.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_moves_only_with_the_status() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let draft = |status, message: &str| vec![Draft::new("Ready", Some(status), "R", message)];
        let first = merge(&[], draft(true, "a"), Some(1), at(10));
        let same = merge(&first, draft(true, "b"), Some(2), at(20));
        assert_eq!(same[0].last_transition_time, first[0].last_transition_time);
        assert_eq!((same[0].message.as_str(), same[0].observed_generation), ("b", Some(2)));
        let other = merge(&same, draft(false, "b"), Some(2), at(30));
        assert_eq!(other[0].last_transition_time.0, at(30));
        assert_eq!(status_of(&other, "Ready"), Some("False"));
    }
}
