//! Asks the API server whether it would admit a pod of the new template, before a pod of the earlier one is evicted.
//!
//! The API server does not check the pod template of a StatefulSet. Without this question an evicted pod could not be
//! created again, because of an admission rule, a LimitRange, a quota or a mistake in the template. The question is a
//! request with `dryRun=All`: it runs admission and stores nothing, so the pod exists for no Service and no budget.
//!
//! A quota is counted while the pod that is to be replaced still exists. A refusal by a quota therefore counts only if
//! the new pod would not even fit in the room that the earlier one leaves ([`lacks_room`]).

use std::collections::BTreeMap;
use std::time::Duration;

use covey_contract::names;
use covey_crds::{Cpu, Quantity};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, ResourceRequirements, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client, Resource as _, ResourceExt as _};
use tokio::time::Instant;

use super::build;

/// Time after which the API server is asked again: a refusal may have been corrected, and what was admitted may be
/// refused by now.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// Maximum number of characters that are quoted from an answer.
const QUOTED: usize = 600;

/// What the API server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It would admit the pod, or it cannot be asked.
    Admitted,
    /// It would not. The text is its answer.
    Refused(String),
    /// It cannot say now, for example because a webhook does not answer.
    Unknown(String),
}

/// The last answer, and to what.
#[derive(Debug, Clone)]
pub(crate) struct Trial {
    /// Hash of the pod template.
    template: String,
    at: Instant,
    answer: Answer,
}

/// Returns whether the API server would admit a pod of `wanted`, whose template has this revision, in place of
/// `replaced`. Asks at most every 30 s; in between the last answer is returned.
pub(crate) async fn ask(
    client: &Client,
    wanted: &StatefulSet,
    revision: &str,
    replaced: Option<&Pod>,
    last: &mut Option<Trial>,
) -> Answer {
    // Not by the revision: in the pass that sees another template it is still that of the former one.
    let template = build::hash(&wanted.spec.as_ref().map(|spec| &spec.template));
    if let Some(last) = last.as_ref().filter(|last| last.template == template && last.at.elapsed() < ASK_EVERY) {
        return last.answer.clone();
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), &wanted.namespace().unwrap_or_default());
    let params = PostParams { dry_run: true, field_manager: Some(names::FIELD_MANAGER.into()) };
    let answer = match pods.create(&params, &pod(wanted, revision)).await {
        Ok(_) => Answer::Admitted,
        Err(kube::Error::Api(status)) => judge(status.code, &status.message, replaced),
        Err(error) => Answer::Unknown(error.to_string()),
    };
    *last = Some(Trial { template, at: Instant::now(), answer: answer.clone() });
    answer
}

/// Builds the pod as the StatefulSet controller would, except for its name, which no pod of the cluster has.
fn pod(wanted: &StatefulSet, revision: &str) -> Pod {
    let name = format!("{}-trial", wanted.name_any());
    let set = wanted.spec.clone().unwrap_or_default();
    let mut spec = set.template.spec.unwrap_or_default();
    let volumes = set.volume_claim_templates.iter().flatten().map(|claim| Volume {
        name: claim.name_any(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: format!("{}-{name}", claim.name_any()),
            read_only: None,
        }),
        ..Volume::default()
    });
    spec.volumes.get_or_insert_default().extend(volumes);
    spec.hostname = Some(name.clone());
    spec.subdomain = set.service_name;
    let mut labels = set.template.metadata.and_then(|metadata| metadata.labels).unwrap_or_default();
    labels.insert(build::REVISION_LABEL.into(), revision.to_owned());
    labels.insert(build::POD_NAME_LABEL.into(), name.clone());
    let owner = wanted.uid().map(|uid| OwnerReference {
        api_version: StatefulSet::api_version(&()).into_owned(),
        kind: StatefulSet::kind(&()).into_owned(),
        name: wanted.name_any(),
        uid,
        controller: Some(true),
        block_owner_deletion: None,
    });
    Pod {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: wanted.namespace(),
            labels: Some(labels),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// Interprets a refusal with this HTTP status.
fn judge(code: u16, message: &str, replaced: Option<&Pod>) -> Answer {
    let text: String = message.chars().take(QUOTED).collect();
    // The operator may lack the permission, and a webhook may not know dry runs. Both say nothing about the template.
    let cannot_ask = message.contains("cannot create resource") || message.contains("does not support dry run");
    match code {
        _ if cannot_ask => {
            tracing::warn!(answer = %text, "cannot ask whether a pod of the new template would be admitted");
            Answer::Admitted
        }
        403 if message.contains("exceeded quota") => {
            if replaced.is_some_and(|pod| lacks_room(message, pod)) {
                Answer::Refused(text)
            } else {
                Answer::Admitted
            }
        }
        // The name is taken by a pod that somebody made.
        409 => Answer::Admitted,
        400 | 403 | 422 => Answer::Refused(text),
        _ => Answer::Unknown(text),
    }
}

/// Returns whether a quota has no room for the new pod even without `replaced`. `message` is that of the quota admission
/// plugin: `exceeded quota: NAME, requested: R=N,..., used: R=N,..., limited: R=N,...`, with the resources that are
/// exceeded. Returns false if it cannot be read: then the eviction is not held up.
fn lacks_room(message: &str, replaced: &Pod) -> bool {
    let amounts = |key: &str| -> BTreeMap<String, f64> {
        let text = message.split_once(&format!("{key}: ")).map_or("", |(_, text)| text);
        let text = text.split_once(", ").map_or(text, |(text, _)| text);
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.filter_map(|(name, amount)| Some((name.trim().to_owned(), number(amount.trim())?))).collect()
    };
    let (requested, used, limited) = (amounts("requested"), amounts("used"), amounts("limited"));
    requested.iter().any(|(name, requested)| {
        let (Some(used), Some(limited)) = (used.get(name), limited.get(name)) else { return false };
        // More than the error of a sum of floating-point numbers, less than any unit.
        used - share(replaced, name) + requested > limited * (1.0 + 1e-9)
    })
}

/// Returns how much of a quota's resource a pod uses.
fn share(pod: &Pod, resource: &str) -> f64 {
    let (of, resource) = match resource.split_once('.') {
        Some(("limits", resource)) => ("limits", resource),
        Some(("requests", resource)) => ("requests", resource),
        _ if ["pods", "count/pods"].contains(&resource) => return 1.0,
        _ => ("requests", resource),
    };
    let amount = |resources: &ResourceRequirements| {
        let list = if of == "limits" { &resources.limits } else { &resources.requests };
        number(&list.as_ref()?.get(resource)?.0)
    };
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers.filter_map(|container| amount(container.resources.as_ref()?)).sum()
}

/// Parses an amount of cores, bytes or objects. `None` if it is none.
#[expect(clippy::cast_precision_loss, reason = "bytes of a quota are far below 2^53")]
fn number(text: &str) -> Option<f64> {
    Cpu::new(text).cores().or_else(|| Quantity::new(text).bytes().map(|bytes| bytes as f64))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::validate::{ImageDefaults, validate};
    use super::*;
    use crate::test_support::cluster;

    fn earlier() -> Pod {
        let resources = json!({"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}});
        let containers = json!([{"name": "broker", "resources": resources}]);
        serde_json::from_value(json!({"metadata": {"name": "mosaic-2"}, "spec": {"containers": containers}})).unwrap()
    }

    fn judged(code: u16, message: &str) -> Answer {
        judge(code, message, Some(&earlier()))
    }

    #[test]
    fn what_blames_the_template_stops_and_what_does_not_goes_on() {
        for (code, message) in [
            (403, "pods \"mosaic-trial\" is forbidden: violates PodSecurity \"restricted:latest\": runAsNonRoot"),
            (403, "pods \"mosaic-trial\" is forbidden: no PriorityClass with name high was found"),
            (403, "pods \"mosaic-trial\" is forbidden: failed quota: small: must specify limits.cpu for: broker"),
            (422, "Pod \"mosaic-trial\" is invalid: spec.containers[0].image: Invalid value"),
            (400, "admission webhook \"policy.example.org\" denied the request: no"),
        ] {
            assert_eq!(judged(code, message), Answer::Refused(message.into()));
        }
        for (code, message) in [
            (403, "pods is forbidden: User \"operator\" cannot create resource \"pods\" in API group \"\""),
            (400, "admission webhook \"w.example.org\" does not support dry run"),
            (409, "pods \"mosaic-trial\" already exists"),
        ] {
            assert_eq!(judged(code, message), Answer::Admitted, "{message}");
        }
        let message = "Internal error occurred: failed calling webhook";
        assert_eq!(judged(500, message), Answer::Unknown(message.into()));
    }

    #[test]
    fn a_quota_that_is_full_only_because_of_the_earlier_pod_does_not_stop() {
        let quota = |requested: &str, used: &str, limited: &str| {
            let message = format!(
                "pods \"mosaic-trial\" is forbidden: exceeded quota: small, requested: {requested}, used: {used}, limited: {limited}"
            );
            judged(403, &message) == Answer::Admitted
        };
        assert!(quota("pods=1", "pods=3", "pods=3"));
        assert!(quota("limits.memory=1Gi,pods=1", "limits.memory=3Gi,pods=3", "limits.memory=3Gi,pods=3"));
        assert!(quota("requests.cpu=150m", "requests.cpu=300m", "requests.cpu=350m"));
        assert!(!quota("requests.cpu=200m", "requests.cpu=300m", "requests.cpu=350m"));
        assert!(!quota("limits.memory=2Gi", "limits.memory=3Gi", "limits.memory=3Gi"));
        assert!(!quota("memory=2Gi,pods=1", "memory=768Mi,pods=3", "memory=1Gi,pods=3"), "memory is requests.memory");
        assert!(!quota("pods=1", "pods=4", "pods=3"), "the quota was lowered");
        assert!(quota("a sentence", "that changed", "its form"), "not known: the eviction goes on");
    }

    #[test]
    fn the_pod_is_what_the_controller_would_make() {
        let wanted = build::stateful_set(&validate(&cluster("{}"), &ImageDefaults::default()).unwrap());
        let pod = pod(&wanted, "r-2");
        assert_eq!((pod.name_any().as_str(), pod.namespace().as_deref()), ("mosaic-trial", Some("floor")));
        assert_eq!(pod.labels()["covey.io/cluster"], "mosaic", "admission rules may select by labels");
        let spec = pod.spec.unwrap();
        let mounts = spec.containers[0].volume_mounts.clone().unwrap();
        let volumes = spec.volumes.unwrap();
        assert!(mounts.iter().all(|mount| volumes.iter().any(|volume| volume.name == mount.name)));
    }
}
