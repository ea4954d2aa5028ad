//! Step *validate* of a pass: parses and checks the resource. Pure; `covey local` calls it for the same manifests.
//!
//! Repeats the checks of the CRD's schema, because the manifests of `covey local` do not pass through an API server.

mod network;
mod placement;
mod rollout;

use std::collections::BTreeMap;
use std::time::Duration;

use covey_contract::{access, config, names};
use covey_crds::{
    AccessMode, DeletionPolicy, ExternalTrafficPolicy, Image, MqttCluster, MqttClusterSpec, PullPolicy, Quantity,
    ResourceList, ScaleDownPolicy, ServiceType, Time, format,
};

pub use network::ValidatedNetwork;
pub use placement::ValidatedPlacement;
pub use rollout::ValidatedRollout;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The brokers' image if neither the manifest nor the operator's options name one.
pub const DEFAULT_IMAGE: &str = concat!("covey:", env!("CARGO_PKG_VERSION"));

/// Image settings of brokers whose manifest names none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDefaults {
    /// Image with tag or digest.
    pub image: String,
    /// Names of Secrets with the credentials of the image's registry.
    pub pull_secrets: Vec<String>,
}

impl Default for ImageDefaults {
    fn default() -> Self {
        Self { image: DEFAULT_IMAGE.to_owned(), pull_secrets: vec![] }
    }
}

/// The identity of a cluster as the owner of its children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub uid: &'a str,
}

/// What access and status need of a cluster. It exists for every spec: an invalid one must not delay a revocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basics {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub replicas: u32,
    pub paused: bool,
    pub builtin_alerts: bool,
    /// Rules of anonymous clients. Absent if anonymous clients are not admitted, or if a rule cannot be enforced,
    /// because it is then unknown what the rules were meant to restrict.
    pub anonymous: Option<Vec<access::Rule>>,
}

impl<'a> From<&'a Basics> for Owner<'a> {
    fn from(basics: &'a Basics) -> Self {
        Self { name: &basics.name, namespace: &basics.namespace, uid: &basics.uid }
    }
}

impl<'a> From<&'a ValidatedCluster> for Owner<'a> {
    fn from(cluster: &'a ValidatedCluster) -> Self {
        Self { name: &cluster.name, namespace: &cluster.namespace, uid: &cluster.uid }
    }
}

/// Reads the part of a cluster that access and status need, whether or not the spec is valid.
pub fn basics(cluster: &MqttCluster) -> Basics {
    let meta = &cluster.metadata;
    Basics {
        name: meta.name.clone().unwrap_or_default(),
        namespace: meta.namespace.clone().unwrap_or_else(|| "default".into()),
        uid: meta.uid.clone().unwrap_or_default(),
        replicas: cluster.spec.replicas,
        paused: cluster.spec.paused,
        builtin_alerts: cluster.spec.alerts.builtin,
        anonymous: anonymous(&cluster.spec, &mut Problems::default()),
    }
}

/// A cluster that can be built: every value parsed, every bound checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidatedCluster {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// Number of pods. While the cluster is made smaller, it is still higher than `spec.replicas`.
    pub replicas: u32,
    pub shards: u16,
    pub image: String,
    /// Names of Secrets in the cluster's namespace.
    pub pull_secrets: Vec<String>,
    pub pull_policy: PullPolicy,
    pub listeners: Vec<config::Listener>,
    pub service: ValidatedService,
    pub mqtt: config::Mqtt,
    pub sessions: config::Sessions,
    pub fence: config::Fence,
    pub storage: ValidatedStorage,
    pub drain: config::Drain,
    pub rollout: ValidatedRollout,
    /// Rules of anonymous clients. Absent if anonymous clients are not admitted.
    pub anonymous: Option<Vec<access::Rule>>,
    pub placement: ValidatedPlacement,
    pub network: ValidatedNetwork,
    /// Quantities by resource name, such as `cpu`.
    pub requests: BTreeMap<String, String>,
    pub limits: BTreeMap<String, String>,
}

/// Settings of the Service for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidatedService {
    pub type_: ServiceType,
    pub annotations: BTreeMap<String, String>,
    pub external_traffic_policy: Option<ExternalTrafficPolicy>,
}

/// Settings of the volume claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidatedStorage {
    /// Size in bytes, in Kubernetes notation.
    pub size: String,
    pub reserve: config::Storage,
    pub access_mode: AccessMode,
    pub class: Option<String>,
    pub deletion: DeletionPolicy,
    pub scale_down: ScaleDownPolicy,
}

/// Every problem of a cluster's spec, one message each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.join("; "))]
pub struct Error {
    pub problems: Vec<String>,
}

/// Collects problems, so that all of them are reported at once.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn expect(&mut self, holds: bool, sentence: &str) {
        if !holds {
            self.0.push(sentence.to_owned());
        }
    }

    /// Expects a number from 1 to `most`.
    fn range(&mut self, field: &str, number: u32, most: u32) {
        self.expect((1..=most).contains(&number), &format!("{field} must be between 1 and {most}"));
    }

    fn bytes(&mut self, field: &str, quantity: &Quantity) -> u64 {
        quantity.bytes().unwrap_or_else(|| {
            let text = quantity.as_str();
            self.0.push(format!("{field}: {text:?} must be a number of bytes such as 256Ki, 64Mi or 10Gi"));
            0
        })
    }

    fn time(&mut self, field: &str, time: &Time) -> Duration {
        time.duration().unwrap_or_else(|| {
            let text = time.as_str();
            self.0.push(format!("{field}: {text:?} must be a duration in whole seconds such as 90s, 10m or 1h30m"));
            Duration::ZERO
        })
    }
}

/// Checks and parses a cluster. `metadata.name` and `metadata.uid` are required; the namespace defaults to `default`,
/// and the image and its pull secrets to `defaults`.
///
/// # Errors
/// All problems of the spec at once.
pub fn validate(cluster: &MqttCluster, defaults: &ImageDefaults) -> Result<ValidatedCluster, Error> {
    let mut problems = Problems::default();
    let spec = &cluster.spec;
    let meta = &cluster.metadata;
    problems.expect(meta.name.is_some(), "metadata.name is missing");
    problems.expect(meta.uid.is_some(), "metadata.uid is missing: the API server sets it");
    check_size(spec, &mut problems);
    let validated = ValidatedCluster {
        name: meta.name.clone().unwrap_or_default(),
        namespace: meta.namespace.clone().unwrap_or_else(|| "default".into()),
        uid: meta.uid.clone().unwrap_or_default(),
        replicas: spec.replicas,
        shards: spec.shards,
        image: image(&spec.image, &defaults.image, &mut problems),
        pull_secrets: if spec.image.pull_secrets.is_empty() {
            defaults.pull_secrets.clone()
        } else {
            spec.image.pull_secrets.clone()
        },
        pull_policy: spec.image.pull_policy,
        listeners: listeners(spec, &mut problems),
        service: service(spec, &mut problems),
        mqtt: mqtt(spec, &mut problems),
        sessions: sessions(spec, &mut problems),
        fence: fence(spec, &mut problems),
        storage: storage(spec, &mut problems),
        drain: rollout::drain(&spec.rollout, &mut problems),
        rollout: rollout::validate(&spec.rollout, &mut problems),
        anonymous: anonymous(spec, &mut problems),
        placement: placement::validate(&spec.placement, &mut problems),
        network: network::validate(spec, &mut problems),
        requests: requests(spec, &mut problems),
        limits: amounts("resources.limits", &spec.resources.limits.clone().into(), &mut problems),
    };
    let config = super::build::broker_config(&validated, config::Peers::default(), config::Paths::default());
    if let Err(error) = config.check() {
        problems.0.push(error.to_string());
    }
    if problems.0.is_empty() { Ok(validated) } else { Err(Error { problems: problems.0 }) }
}

fn check_size(spec: &MqttClusterSpec, problems: &mut Problems) {
    let replicas = spec.replicas;
    problems.expect(replicas >= 1, "replicas must be at least 1");
    problems.expect(replicas <= 99, "replicas must not exceed 99");
    problems.expect(replicas != 2, "replicas must not be 2: two nodes have no majority when one is lost; use 1 or 3");
    problems.expect(
        replicas < 4 || replicas % 2 == 1 || spec.allow_even_replicas,
        "replicas must be odd: an even node adds no fault tolerance; set allowEvenReplicas: true if you want the capacity",
    );
    problems.expect((1..=128).contains(&spec.shards), "shards must be between 1 and 128");
}

fn image(image: &Image, default: &str, problems: &mut Problems) -> String {
    let fits = |field: Option<&str>, holds: fn(&str) -> bool| field.is_none_or(holds);
    problems.expect(
        image.repository.is_some() || image.tag.is_none() && image.digest.is_none(),
        "image.tag and image.digest need image.repository",
    );
    problems.expect(
        fits(image.repository.as_deref(), format::is_repository),
        "image.repository must look like registry.example.org/team/covey, without tag and digest",
    );
    problems.expect(
        fits(image.tag.as_deref(), format::is_tag),
        "image.tag must consist of letters, digits, dots, dashes and underscores",
    );
    problems.expect(
        fits(image.digest.as_deref(), |digest| digest.is_empty() || format::is_digest(digest)),
        "image.digest must look like sha256:<hexadecimal digits>",
    );
    let Some(repository) = &image.repository else { return default.to_owned() };
    match image.digest.as_deref().filter(|digest| !digest.is_empty()) {
        Some(digest) => format!("{repository}@{digest}"),
        None => format!("{repository}:{}", image.tag.as_deref().unwrap_or(VERSION)),
    }
}

fn listeners(spec: &MqttClusterSpec, problems: &mut Problems) -> Vec<config::Listener> {
    problems.expect(!spec.listeners.is_empty(), "listeners must name at least one listener");
    problems.expect(spec.listeners.len() <= 8, "listeners must not be more than 8");
    for (position, listener) in spec.listeners.iter().enumerate() {
        let name = listener.name.as_str();
        problems.expect(
            format::is_port_name(name),
            "a listener's name is a port name: lower case letters, digits and single dashes, a letter first",
        );
        problems.expect(
            !["peer", "admin", "http"].contains(&name),
            "peer, admin and http are names of the broker's own ports",
        );
        problems.expect(listener.port >= 1024, "the port of a listener must be between 1024 and 65535");
        problems.expect(
            ![names::PORT_PEER, names::PORT_ADMIN, names::PORT_HTTP].contains(&listener.port),
            "7883, 7884 and 9464 are the broker's own ports",
        );
        let earlier = || spec.listeners.iter().take(position);
        problems.expect(!earlier().any(|other| other.name == listener.name), "every listener needs a unique name");
        problems.expect(!earlier().any(|other| other.port == listener.port), "every listener needs a unique port");
    }
    let listener = |listener: &covey_crds::Listener| config::Listener {
        name: listener.name.clone(),
        protocol: match listener.protocol {
            covey_crds::Protocol::Mqtt => config::Protocol::Mqtt,
        },
        port: listener.port,
    };
    spec.listeners.iter().map(listener).collect()
}

fn service(spec: &MqttClusterSpec, problems: &mut Problems) -> ValidatedService {
    problems.expect(
        spec.service.external_traffic_policy.is_none() || spec.service.type_ != ServiceType::ClusterIp,
        "service.externalTrafficPolicy needs service.type NodePort or LoadBalancer",
    );
    ValidatedService {
        type_: spec.service.type_,
        annotations: spec.service.annotations.clone(),
        external_traffic_policy: spec.service.external_traffic_policy,
    }
}

fn mqtt(spec: &MqttClusterSpec, problems: &mut Problems) -> config::Mqtt {
    let max_packet_size = problems.bytes("mqtt.maxPacketSize", &spec.mqtt.max_packet_size);
    let fits = (1024..=16 << 20).contains(&max_packet_size);
    problems.expect(fits, "mqtt.maxPacketSize must be between 1Ki and 16Mi");
    problems.range("mqtt.maxConnectionsPerNode", spec.mqtt.max_connections_per_node, 1_000_000);
    problems.range("mqtt.receiveMaximum", spec.mqtt.receive_maximum.into(), 65_535);
    config::Mqtt {
        max_connections: spec.mqtt.max_connections_per_node,
        max_packet_size: u32::try_from(max_packet_size).unwrap_or(u32::MAX),
        receive_maximum: spec.mqtt.receive_maximum,
        topic_alias_maximum: spec.mqtt.topic_alias_maximum,
        max_retained_bytes: problems.bytes("mqtt.maxRetainedBytes", &spec.mqtt.max_retained_bytes),
    }
}

fn sessions(spec: &MqttClusterSpec, problems: &mut Problems) -> config::Sessions {
    let expiry_max = problems.time("sessions.expiryMax", &spec.sessions.expiry_max);
    let sessions = config::Sessions {
        // The default follows a lower maximum, so that a manifest may set the maximum alone.
        expiry_when_unset: spec.sessions.expiry_when_unset.as_ref().map_or_else(
            || config::Sessions::default().expiry_when_unset.min(expiry_max),
            |time| problems.time("sessions.expiryWhenUnset", time),
        ),
        expiry_max,
        max_queued_messages: spec.sessions.max_queued_messages,
        max_queued_bytes: problems.bytes("sessions.maxQueuedBytes", &spec.sessions.max_queued_bytes),
        queue_full_policy: match spec.sessions.queue_full_policy {
            covey_crds::QueueFullPolicy::RejectNewest => config::QueueFullPolicy::RejectNewest,
        },
        max_subscriptions: spec.sessions.max_subscriptions,
    };
    problems.range("sessions.maxQueuedMessages", sessions.max_queued_messages, 10_000_000);
    problems.range("sessions.maxSubscriptions", sessions.max_subscriptions, 100_000);
    problems.expect(sessions.max_queued_bytes >= 1024, "sessions.maxQueuedBytes must be at least 1Ki");
    problems.expect(
        sessions.expiry_when_unset <= sessions.expiry_max,
        "sessions.expiryWhenUnset must not exceed sessions.expiryMax",
    );
    sessions
}

fn fence(spec: &MqttClusterSpec, problems: &mut Problems) -> config::Fence {
    let close_clients_after = problems.time("fence.closeClientsAfter", &spec.fence.close_clients_after);
    problems.expect(
        (Duration::from_secs(1)..=Duration::from_mins(10)).contains(&close_clients_after),
        "fence.closeClientsAfter must be between 1s and 10m",
    );
    let lease = problems.time("fence.lease", &spec.fence.lease);
    problems.expect(lease <= Duration::from_mins(1), "fence.lease must be between 3s and 60s");
    config::Fence { lease, close_clients_after }
}

fn storage(spec: &MqttClusterSpec, problems: &mut Problems) -> ValidatedStorage {
    let size = problems.bytes("storage.size", &spec.storage.size);
    problems.expect(size >= 64 << 20, "storage.size must be at least 64Mi");
    problems.expect(
        spec.storage.storage_class_name.as_deref().is_none_or(format::is_object_name),
        "storage.storageClassName must be the name of a StorageClass: lower case letters, digits, dashes and dots",
    );
    let reserve_percent = spec.storage.reserve.value();
    problems.expect(reserve_percent.is_some(), "storage.reserve must be a percentage from 0% to 99%");
    // At least 512 MiB, except on volumes smaller than 5 GiB, where the percentage alone applies.
    let reserve_min_bytes = if size < 5 << 30 { 0 } else { 512 << 20 };
    ValidatedStorage {
        size: spec.storage.size.as_str().to_owned(),
        reserve: config::Storage { reserve_percent: reserve_percent.unwrap_or(10), reserve_min_bytes },
        access_mode: spec.storage.access_mode,
        class: spec.storage.storage_class_name.clone(),
        deletion: spec.storage.deletion_policy,
        scale_down: spec.storage.scale_down_policy,
    }
}

/// Returns the rules of anonymous clients, or `None` if they are not admitted or a rule cannot be enforced.
fn anonymous(spec: &MqttClusterSpec, problems: &mut Problems) -> Option<Vec<access::Rule>> {
    problems.expect(
        spec.acl.anonymous || spec.acl.anonymous_rules.is_empty(),
        "acl.anonymousRules need acl.anonymous: true",
    );
    let named = |topic: &String| topic.contains("{clientId}") || topic.contains("{username}");
    let rules: Result<Vec<_>, String> = if spec.acl.anonymous_rules.iter().flat_map(|rule| &rule.topics).any(named) {
        Err("cannot use {clientId} or {username}: an anonymous client could choose its own topics".into())
    } else {
        spec.acl.anonymous_rules.iter().map(|rule| rule.to_access(false)).collect()
    };
    let rules = rules.map_err(|problem| {
        problems
            .0
            .push(format!("acl.anonymousRules: {problem}; no anonymous client is admitted until this is corrected"));
    });
    rules.ok().filter(|_| spec.acl.anonymous)
}

/// Returns the resource requests, and checks that requests, limits and `mqtt.maxRetainedBytes` are compatible.
fn requests(spec: &MqttClusterSpec, problems: &mut Problems) -> BTreeMap<String, String> {
    let (requests, limits) = (&spec.resources.requests, &ResourceList::from(spec.resources.limits.clone()));
    let memory = |list: &ResourceList| list.memory.as_ref().and_then(Quantity::bytes);
    let cores = |list: &ResourceList| list.cpu.as_ref().and_then(covey_crds::Cpu::cores);
    let exceeds = |one: Option<u64>, other: Option<u64>| one.zip(other).is_some_and(|(one, other)| one > other);
    problems.expect(
        !exceeds(memory(requests), memory(limits)),
        "resources.requests.memory must not exceed resources.limits.memory",
    );
    problems.expect(
        !cores(requests).zip(cores(limits)).is_some_and(|(request, limit)| request > limit),
        "resources.requests.cpu must not exceed resources.limits.cpu",
    );
    problems.expect(
        memory(limits).is_none_or(|bytes| bytes >= 128 << 20),
        "resources.limits.memory must be at least 128Mi",
    );
    problems.expect(
        memory(requests).is_none_or(|bytes| bytes >= 1 << 20),
        "resources.requests.memory must be at least 1Mi",
    );
    let retained = spec.mqtt.max_retained_bytes.bytes().map(|bytes| bytes.saturating_mul(2));
    problems.expect(
        !exceeds(retained, memory(limits)),
        "mqtt.maxRetainedBytes must not exceed half of resources.limits.memory: every node keeps all retained \
         messages in memory",
    );
    amounts("resources.requests", requests, problems)
}

fn amounts(field: &str, list: &ResourceList, problems: &mut Problems) -> BTreeMap<String, String> {
    let mut amounts = BTreeMap::new();
    if let Some(cpu) = &list.cpu {
        let cores = cpu.cores();
        problems.expect(cores.is_some(), &format!("{field}.cpu: must be a number of cores such as 500m or 2"));
        problems.expect(cores != Some(0.0), &format!("{field}.cpu must be more than 0"));
        amounts.insert("cpu".to_owned(), cpu.as_str().to_owned());
    }
    if let Some(memory) = &list.memory {
        problems.bytes(&format!("{field}.memory"), memory);
        amounts.insert("memory".to_owned(), memory.as_str().to_owned());
    }
    amounts
}

#[cfg(test)]
mod tests;
