//! Finds out why the broker of a pod does not run, for condition messages.
//!
//! Part of step *poll nodes* of a pass. Pure, except for [`explain_missing`], which reads Events. The cause is known to
//! the kubelet, the scheduler or the StatefulSet controller; this module brings it into the conditions of the cluster.

use covey_crds::condition::reason;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Event, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

use super::nodes::Node;

/// Maximum number of characters quoted from a message: a condition has 1,024, and five nodes may have a problem each.
const QUOTED: usize = 240;
/// Waiting reasons of a container whose image cannot be pulled.
const PULL_REASONS: [&str; 6] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
];

/// Why a broker does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The image cannot be pulled.
    ImagePull,
    /// The container cannot be created or started from its image.
    ContainerCreate,
    /// The broker exits soon after each start, and the kubelet delays the next start.
    CrashLoop,
    /// The broker exited and runs again; it is not ready yet.
    Restarted,
    /// No machine fits the pod.
    Unschedulable,
    /// The StatefulSet controller cannot create the pod: an admission rule, an invalid template.
    NotCreated,
    /// The StatefulSet controller cannot create the pod, because a quota has no room for it.
    OverQuota,
}

impl Cause {
    /// Returns the reason for conditions.
    pub fn reason(self) -> &'static str {
        match self {
            Self::ImagePull => reason::IMAGE_PULL_FAILED,
            Self::ContainerCreate => reason::CONTAINER_START_FAILED,
            Self::CrashLoop => reason::CRASH_LOOP,
            Self::Restarted => reason::STARTING,
            Self::Unschedulable => reason::UNSCHEDULABLE,
            Self::NotCreated | Self::OverQuota => reason::POD_NOT_CREATED,
        }
    }
}

/// A problem that keeps a broker from running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub cause: Cause,
    /// A clause that follows the pod's name, such as `cannot pull image covey:9 (ErrImagePull)`.
    pub message: String,
}

impl Problem {
    /// Returns whether no broker runs in the pod, so that deleting the pod does not affect the cluster.
    pub fn is_stuck(&self) -> bool {
        self.cause != Cause::Restarted
    }

    /// Returns whether the template itself is the likely cause, and not missing capacity or a quota.
    pub fn blames_template(&self) -> bool {
        matches!(self.cause, Cause::ImagePull | Cause::ContainerCreate | Cause::CrashLoop)
    }
}

/// Returns the problem that a pod's status shows. `None` if it shows none.
pub fn of_pod(pod: &Pod) -> Option<Problem> {
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let is_ready = conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True");
    if is_ready {
        return None;
    }
    let container = status.container_statuses.as_deref().unwrap_or_default().first();
    let unscheduled = conditions.iter().find(|one| one.type_ == "PodScheduled" && one.status == "False");
    if let (Some(condition), None) = (unscheduled, container) {
        let why = quote(condition.message.as_deref().unwrap_or("the scheduler gives no reason"));
        return Some(Problem { cause: Cause::Unschedulable, message: format!("cannot be scheduled: {why}") });
    }
    of_container(container?)
}

fn of_container(container: &ContainerStatus) -> Option<Problem> {
    let waiting = container.state.as_ref().and_then(|state: &ContainerState| state.waiting.as_ref());
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    let Some(waiting) = waiting else {
        let message = match (ended, last) {
            (Some(ended), _) => format!("stopped and is about to be restarted: {}", exit(ended)),
            (None, Some(last)) => format!("was restarted and is not ready yet: {}", exit(last)),
            (None, None) => return None,
        };
        return Some(Problem { cause: Cause::Restarted, message });
    };
    let reason = waiting.reason.as_deref().unwrap_or_default();
    let detail = waiting.message.as_deref().map(quote).unwrap_or_default();
    if PULL_REASONS.contains(&reason) {
        let message = format!("cannot pull image {} ({reason}: {detail})", container.image);
        Some(Problem { cause: Cause::ImagePull, message })
    } else if reason == "CrashLoopBackOff" {
        let why = last.map_or_else(|| detail.clone(), exit);
        let message = format!("stops after each start ({} restarts): {why}", container.restart_count);
        Some(Problem { cause: Cause::CrashLoop, message })
    } else if ["CreateContainerConfigError", "CreateContainerError", "RunContainerError"].contains(&reason) {
        Some(Problem {
            cause: Cause::ContainerCreate,
            message: format!("cannot start its container ({reason}: {detail})"),
        })
    } else {
        None
    }
}

/// Returns how a container ended: its exit code, the kubelet's reason, and the last line of its log.
fn exit(ended: &ContainerStateTerminated) -> String {
    let reason = ended.reason.as_deref().filter(|reason| *reason != "Error").map(|reason| format!(" ({reason})"));
    let line = ended.message.as_deref().and_then(|text| text.lines().rev().find(|line| !line.trim().is_empty()));
    let line = line.map(|line| format!(": {}", quote(line))).unwrap_or_default();
    format!("exit code {}{}{line}", ended.exit_code, reason.unwrap_or_default())
}

/// Returns a text on one line, cut to at most [`QUOTED`] characters.
fn quote(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= QUOTED {
        return line;
    }
    let cut: String = line.chars().take(QUOTED).collect();
    format!("{cut} ...")
}

/// Sets the problem of nodes that have no pod, from the Events of the StatefulSet. Does nothing while every pod exists.
/// A failure to read Events is only logged, so that the pass continues.
pub(crate) async fn explain_missing(client: &Client, stateful_set: Option<&StatefulSet>, nodes: &mut [Node]) {
    let Some(stateful_set) = stateful_set else { return };
    if nodes.iter().all(|node| node.pod.is_some()) {
        return;
    }
    let api: Api<Event> = Api::namespaced(client.clone(), &stateful_set.namespace().unwrap_or_default());
    let about = format!("involvedObject.uid={}", stateful_set.uid().unwrap_or_default());
    match api.list(&ListParams::default().fields(&about)).await {
        Ok(events) => {
            for node in nodes.iter_mut().filter(|node| node.pod.is_none()) {
                node.problem = of_missing(&node.name, &events.items);
            }
        }
        Err(error) => tracing::warn!(%error, "failed to read the events of a StatefulSet"),
    }
}

/// Returns the problem of a missing pod, if the newest attempt to create it or its claim failed.
fn of_missing(pod: &str, events: &[Event]) -> Option<Problem> {
    // `Create Pod NAME in ...` or `create Claim CLAIM for Pod NAME in ...`: the case of the verb depends on the version.
    let attempt = format!(" Pod {pod} in StatefulSet ");
    let attempts = events.iter().filter(|event| event.message.as_deref().is_some_and(|text| text.contains(&attempt)));
    let newest = attempts.max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0))?;
    let failed = newest.reason.as_deref() == Some("FailedCreate");
    let text = newest.message.as_deref().unwrap_or_default();
    let why = quote(text.split_once("failed error: ").map_or(text, |(_, why)| why));
    let cause = if why.contains("exceeded quota") { Cause::OverQuota } else { Cause::NotCreated };
    failed.then(|| Problem { cause, message: format!("cannot be created: {why}") })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "the cases read better without references")]
    fn pod(status: Value) -> Option<Problem> {
        of_pod(&serde_json::from_value(json!({"metadata": {"name": "mosaic-2"}, "status": status})).unwrap())
    }

    #[expect(clippy::needless_pass_by_value, reason = "the cases read better without references")]
    fn container(state: Value, last: Value, restarts: u32) -> Option<Problem> {
        pod(json!({
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}],
            "containerStatuses": [{"name": "broker", "image": "covey:9", "imageID": "", "ready": false,
                "restartCount": restarts, "state": state, "lastState": last}]
        }))
    }

    #[test]
    fn a_pull_error_names_image_and_answer() {
        let state = json!({"waiting": {"reason": "ErrImagePull", "message": "not found:\n  covey:9"}});
        let problem = container(state, json!({}), 0).unwrap();
        assert_eq!(problem.cause, Cause::ImagePull);
        assert_eq!(problem.message, "cannot pull image covey:9 (ErrImagePull: not found: covey:9)");
        assert!(problem.is_stuck() && problem.blames_template());
    }

    #[test]
    fn a_crash_loop_names_exit_code_and_last_log_line() {
        let last = json!({"terminated": {"exitCode": 2, "reason": "Error", "message": "one\nfailed to parse the configuration\n\n"}});
        let problem = container(json!({"waiting": {"reason": "CrashLoopBackOff"}}), last, 4).unwrap();
        assert_eq!(problem.cause, Cause::CrashLoop);
        let text = "stops after each start (4 restarts): exit code 2: failed to parse the configuration";
        assert_eq!(problem.message, text);
    }

    #[test]
    fn a_broker_that_was_killed_for_memory_and_runs_again_is_not_stuck() {
        let last = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        let problem = container(json!({"running": {}}), last, 1).unwrap();
        assert_eq!(problem.message, "was restarted and is not ready yet: exit code 137 (OOMKilled)");
        assert!(!problem.is_stuck() && !problem.blames_template());
    }

    #[test]
    fn an_unschedulable_pod_quotes_the_scheduler() {
        let message = "0/3 nodes are available: 3 Insufficient cpu.";
        let problem = pod(json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        ]}))
        .unwrap();
        assert_eq!(problem.message, format!("cannot be scheduled: {message}"));
        assert!(problem.is_stuck() && !problem.blames_template());
    }

    #[test]
    fn a_pod_that_starts_or_is_ready_has_no_problem() {
        assert_eq!(container(json!({"waiting": {"reason": "ContainerCreating"}}), json!({}), 0), None);
        assert_eq!(container(json!({"running": {}}), json!({}), 0), None);
        let last = json!({"terminated": {"exitCode": 1}});
        let ready = json!({
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "broker", "image": "i", "imageID": "", "ready": true, "restartCount": 1,
                "state": {"running": {}}, "lastState": last}]
        });
        assert_eq!(pod(ready), None);
    }

    #[test]
    fn a_pod_that_cannot_be_created_quotes_the_newest_event_about_it() {
        let event = |reason: &str, text: &str, time: &str| -> Event {
            serde_json::from_value(json!({"metadata": {}, "involvedObject": {}, "reason": reason, "message": text,
                "lastTimestamp": time}))
            .unwrap()
        };
        let refused = "Create Pod mosaic-2 in StatefulSet mosaic failed error: pods \"mosaic-2\" is forbidden: exceeded quota: small";
        let events = [
            event("SuccessfulCreate", "create Pod mosaic-2 in StatefulSet mosaic successful", "2026-01-01T00:00:00Z"),
            event("FailedCreate", refused, "2026-01-01T00:00:09Z"),
            event("SuccessfulCreate", "create Pod mosaic-20 in StatefulSet mosaic successful", "2026-01-01T00:01:00Z"),
        ];
        let problem = of_missing("mosaic-2", &events).unwrap();
        assert_eq!(problem.message, "cannot be created: pods \"mosaic-2\" is forbidden: exceeded quota: small");
        assert_eq!(problem.cause, Cause::OverQuota);
        assert_eq!(of_missing("mosaic-2", &events[..1]), None, "an earlier success is no problem");
        assert_eq!(of_missing("mosaic-20", &events), None, "another pod's name begins alike");
    }

    #[test]
    fn a_foreign_text_is_cut_and_put_on_one_line() {
        let long = format!("a\n{}", "b".repeat(1000));
        assert_eq!(quote(&long).chars().count(), QUOTED + 4);
        assert!(!quote(&long).contains('\n'));
    }
}
