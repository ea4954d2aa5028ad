//! Conditions Progressing and UpgradePending.

use covey_contract::names::ANNOTATION_APPROVE_ROLLOUT;
use covey_crds::condition::{self, reason};

use super::super::postponement::Postponement;
use super::super::rollout::Step;
use super::{Observed, Phase, is_out_of_reach, out_of_reach, pending};
use crate::conditions::Draft;

/// Condition Progressing.
pub(super) fn progressing(observed: &Observed<'_>, ready: usize) -> Draft {
    let draft = |status, reason, message: String| Draft::new(condition::PROGRESSING, Some(status), reason, message);
    let scaling = observed.scale.message();
    match (observed.phase, observed.step) {
        (Phase::Forming { waiting }, _) => draft(true, reason::FORMING, waiting.clone()),
        _ if observed.paused && !pending(observed).is_empty() => {
            draft(false, reason::PAUSED, format!("{}; spec.paused is true", run_an_earlier_template(observed)))
        }
        (Phase::Formed, Step::Wait { .. } | Step::Idle | Step::Postponed(_)) if scaling.is_some() => {
            draft(true, reason::SCALING, scaling.unwrap_or_default())
        }
        (_, Step::Wait { reason: waiting }) => draft(true, reason::ROLLING, waiting.clone()),
        (_, Step::Stopped { reason: why } | Step::Refused { reason: why }) => {
            draft(false, reason::NEW_TEMPLATE_FAILS, why.clone())
        }
        (_, Step::Postponed(postponement)) => draft(false, postponement.reason(), postponed(observed, postponement)),
        (_, Step::Replace { pod, .. }) => draft(true, reason::ROLLING, format!("replacing pod {pod}")),
        (Phase::Formed, _) if is_out_of_reach(observed.nodes) => {
            draft(false, reason::OPERATOR_CANNOT_REACH_NODES, out_of_reach(observed.nodes))
        }
        _ if ready < observed.nodes.len() => {
            draft(true, reason::STARTING, format!("{ready} of {} nodes are ready", observed.nodes.len()))
        }
        _ if !pending(observed).is_empty() => {
            let (why, held) = not_replaced_because(observed);
            draft(false, why, format!("{}; {held}", run_an_earlier_template(observed)))
        }
        _ => draft(false, reason::SETTLED, "every pod runs the current template".into()),
    }
}

/// Condition UpgradePending. It is True also while the rollout waits for something else, such as a node that is unready
/// for a moment.
pub(super) fn upgrade_pending(observed: &Observed<'_>) -> Draft {
    let draft = |status, reason, message: String| Draft::new(condition::UPGRADE_PENDING, Some(status), reason, message);
    let postponement = match observed.step {
        Step::Postponed(postponement) => Some(postponement),
        Step::Wait { .. } => observed.postponement,
        // An approval or a window would change nothing.
        Step::Idle | Step::Stopped { .. } | Step::Refused { .. } | Step::Replace { .. } => None,
    };
    match postponement {
        Some(postponement) if !pending(observed).is_empty() => {
            draft(true, postponement.reason(), postponed(observed, postponement))
        }
        _ => draft(false, reason::NOTHING_POSTPONED, "no replacement of a pod is postponed".into()),
    }
}

/// Returns which pods will be replaced, and when.
fn postponed(observed: &Observed<'_>, postponement: &Postponement) -> String {
    let pods = run_an_earlier_template(observed);
    match postponement {
        Postponement::Approval { revision } => {
            let meta = &observed.cluster.metadata;
            let (name, namespace) = (meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref());
            format!(
                "{pods}; one pod after the other is replaced after: kubectl annotate mqttcluster {name} -n {} \
                 {ANNOTATION_APPROVE_ROLLOUT}={revision} --overwrite",
                namespace.unwrap_or("default")
            )
        }
        Postponement::Windows { next } => format!("{pods}; one pod after the other is replaced from {next}"),
        Postponement::Fleet { others } => {
            format!("{pods}; one pod after the other is replaced when these clusters are done: {}", others.join(", "))
        }
    }
}

/// Returns which pods run an earlier template, as the beginning of a message.
fn run_an_earlier_template(observed: &Observed<'_>) -> String {
    let pending = pending(observed);
    let verb = if pending.len() == 1 { "runs" } else { "run" };
    format!("{} {verb} an earlier template", pending.join(", "))
}

/// Returns why pods of an earlier template are not replaced although no step of a rollout is due.
fn not_replaced_because(observed: &Observed<'_>) -> (&'static str, &'static str) {
    match (observed.blocked, &observed.apply_error) {
        (Some(blocked), _) => (blocked.reason, "nothing is applied until the spec is corrected"),
        (None, Some((reason, _))) => (reason, "no pod is replaced until every object is applied"),
        (None, None) => (reason::ROLLING, "no pod is replaced while the volumes are not those of the cluster"),
    }
}
