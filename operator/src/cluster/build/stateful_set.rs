//! Builds the StatefulSet: one pod and one volume per node. The operator rolls the pods itself (`OnDelete`).

use std::collections::BTreeMap;
use std::path::Path;

use covey_contract::names;
use covey_crds::{DeletionPolicy, PullPolicy, ScaleDownPolicy};
use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction, Lifecycle,
    LifecycleHandler, LocalObjectReference, ObjectFieldSelector, PersistentVolumeClaim, PersistentVolumeClaimSpec,
    PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecretVolumeSource,
    SecurityContext, SleepAction, Volume, VolumeMount, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{ValidatedCluster, config_map, immutable_selector, labels, metadata, names_of, placement};

/// User and group of the broker process.
const USER: i64 = 65_532;
/// Seconds that a pod has to stop in addition to the deadline of its drain.
const STOP_SECONDS: u64 = 60;
/// Name of the claim template, which begins the name of each claim.
pub const DATA: &str = "data";

/// Builds the StatefulSet of a cluster.
pub fn stateful_set(cluster: &ValidatedCluster) -> StatefulSet {
    StatefulSet {
        metadata: metadata(cluster, names_of(cluster).stateful_set),
        spec: Some(StatefulSetSpec {
            replicas: i32::try_from(cluster.replicas).ok(),
            service_name: Some(names_of(cluster).peers_service),
            pod_management_policy: Some("Parallel".into()),
            update_strategy: Some(StatefulSetUpdateStrategy { type_: Some("OnDelete".into()), rolling_update: None }),
            revision_history_limit: Some(10),
            min_ready_seconds: Some(0),
            persistent_volume_claim_retention_policy: Some(retention(cluster)),
            selector: LabelSelector { match_labels: Some(immutable_selector(&cluster.name)), match_expressions: None },
            template: template(cluster),
            volume_claim_templates: Some(vec![claim(cluster)]),
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

fn retention(cluster: &ValidatedCluster) -> StatefulSetPersistentVolumeClaimRetentionPolicy {
    let when_deleted = match cluster.storage.deletion {
        DeletionPolicy::Retain => "Retain",
        DeletionPolicy::Delete => "Delete",
    };
    let when_scaled = match cluster.storage.scale_down {
        ScaleDownPolicy::Retain => "Retain",
        ScaleDownPolicy::Delete => "Delete",
    };
    StatefulSetPersistentVolumeClaimRetentionPolicy {
        when_deleted: Some(when_deleted.into()),
        when_scaled: Some(when_scaled.into()),
    }
}

/// The volume claim template of a StatefulSet is immutable, so it contains nothing that can change.
fn claim(cluster: &ValidatedCluster) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(DATA.into()),
            labels: Some(immutable_selector(&cluster.name)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec![cluster.storage.access_mode.as_str().into()]),
            storage_class_name: cluster.storage.class.clone(),
            volume_mode: Some("Filesystem".into()),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".into(), Quantity(cluster.storage.size.clone()))])),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

fn template(cluster: &ValidatedCluster) -> PodTemplateSpec {
    let wait = cluster.rollout.wait_endpoint_removal;
    let grace = (wait + cluster.drain.deadline).as_secs().saturating_add(STOP_SECONDS);
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels(cluster)), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            service_account_name: Some(names_of(cluster).service_account),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: i64::try_from(grace).ok(),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                fs_group_change_policy: Some("OnRootMismatch".into()),
                seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
                ..PodSecurityContext::default()
            }),
            topology_spread_constraints: Some(placement::spread(cluster)),
            node_selector: Some(cluster.placement.node_selector.clone()).filter(|labels| !labels.is_empty()),
            tolerations: Some(cluster.placement.tolerations.clone()).filter(|all| !all.is_empty()),
            affinity: cluster.placement.affinity.clone(),
            priority_class_name: cluster.placement.priority_class.clone(),
            image_pull_secrets: pull_secrets(cluster),
            containers: vec![container(cluster)],
            volumes: Some(volumes(cluster)),
            ..PodSpec::default()
        }),
    }
}

fn pull_secrets(cluster: &ValidatedCluster) -> Option<Vec<LocalObjectReference>> {
    let secrets = cluster.pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() });
    Some(secrets.collect::<Vec<_>>()).filter(|secrets| !secrets.is_empty())
}

fn container(cluster: &ValidatedCluster) -> Container {
    let args = ["broker", "--config", names::PATH_CONFIG, "--name", "$(POD_NAME)"];
    let own = [("peer", names::PORT_PEER), ("admin", names::PORT_ADMIN), ("http", names::PORT_HTTP)];
    let listeners = cluster.listeners.iter().map(|listener| (listener.name.as_str(), listener.port));
    Container {
        name: "broker".into(),
        image: Some(cluster.image.clone()),
        image_pull_policy: Some(pull_policy(cluster.pull_policy).into()),
        command: Some(vec!["covey".into()]),
        args: Some(args.map(String::from).to_vec()),
        env: Some(vec![field("POD_NAME", "metadata.name")]),
        lifecycle: lifecycle(cluster),
        ports: Some(listeners.chain(own).map(|(name, port)| container_port(name, port)).collect()),
        // 120 * 5 s = 10 minutes until the first answer, for slow disks. /livez answers before the log is replayed, so
        // the length of the log does not matter. Until then the kubelet runs neither of the other probes, which can
        // therefore have short limits.
        startup_probe: Some(probe("/livez", 5, 3, 120)),
        liveness_probe: Some(probe("/livez", 10, 3, 3)),
        // Fails within 2 s, so that the Service stops routing to a fenced node.
        readiness_probe: Some(probe("/readyz", 1, 1, 2)),
        resources: Some(ResourceRequirements {
            requests: quantities(&cluster.requests),
            limits: quantities(&cluster.limits),
            claims: None,
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            ..SecurityContext::default()
        }),
        // Puts the last log line of a crashed broker into the pod's status, from where it reaches the conditions.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(vec![
            mount(DATA, names::PATH_DATA, false),
            mount("config", &folder(names::PATH_CONFIG), true),
            mount("access", names::PATH_ACCESS, true),
            mount("peer-tls", names::PATH_PEER_TLS, true),
        ]),
        ..Container::default()
    }
}

/// A pod is marked as terminating before its containers are told to stop. The broker is told only after Services have had
/// time to route around the pod: a client that is sent to a closed port is refused.
fn lifecycle(cluster: &ValidatedCluster) -> Option<Lifecycle> {
    let seconds = i64::try_from(cluster.rollout.wait_endpoint_removal.as_secs()).ok().filter(|seconds| *seconds > 0)?;
    let sleep = LifecycleHandler { sleep: Some(SleepAction { seconds }), ..LifecycleHandler::default() };
    Some(Lifecycle { pre_stop: Some(sleep), ..Lifecycle::default() })
}

fn volumes(cluster: &ValidatedCluster) -> Vec<Volume> {
    let names = names_of(cluster);
    let secret = |name: &str, secret_name: String| Volume {
        name: name.into(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret_name),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    let config = Volume {
        name: "config".into(),
        config_map: Some(ConfigMapVolumeSource {
            name: config_map::name(cluster),
            default_mode: Some(0o440),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    vec![config, secret("access", names.access_secret), secret("peer-tls", names.peer_tls)]
}

fn folder(file: &str) -> String {
    Path::new(file).parent().map(|folder| folder.to_string_lossy().into_owned()).unwrap_or_default()
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { api_version: Some("v1".into()), field_path: path.into() }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

fn container_port(name: &str, port: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.into()),
        container_port: i32::from(port),
        protocol: Some("TCP".into()),
        ..ContainerPort::default()
    }
}

fn probe(path: &str, period: i32, timeout: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String("http".into()),
            scheme: Some("HTTP".into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(timeout),
        failure_threshold: Some(failures),
        success_threshold: Some(1),
        ..Probe::default()
    }
}

fn pull_policy(policy: PullPolicy) -> &'static str {
    match policy {
        PullPolicy::Always => "Always",
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Never => "Never",
    }
}

fn quantities(amounts: &BTreeMap<String, String>) -> Option<BTreeMap<String, Quantity>> {
    let quantities: BTreeMap<_, _> =
        amounts.iter().map(|(name, amount)| (name.clone(), Quantity(amount.clone()))).collect();
    (!quantities.is_empty()).then_some(quantities)
}
