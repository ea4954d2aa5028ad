//! One local cluster: its brokers, and the passes that bring it from the observed to the desired state.
//!
//! ```text
//!  start: state -> ports -> certificates -> broker.yaml per broker -> processes
//!  pass:  status of every broker -> form (formation::decide) -> project access -> record it -> apply it
//! ```
//! The main loop of `covey local` owns it. Invariant: formation and access are on disk before they are sent to a
//! broker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use covey_contract::access::Document;
use covey_contract::config::{Paths, Peers};
use covey_contract::proto::{Member, StatusReply};
use covey_crds::{Formation, MqttCluster};
use covey_operator::access::Projection;
use covey_operator::admin::{Client, Credentials};
use covey_operator::cluster::validate::{self, ValidatedCluster};
use covey_operator::cluster::{build, nodes};
use covey_operator::formation::{self, Answer, Decision, Known};
use futures::future::join_all;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::directory::{self, Directory, State};
use super::identity;
use super::manifest::{Key, Manifests};
use super::output::{self, BrokerReport, ClusterReport};
use super::ports;
use super::process::{Plan, Process};
use super::record;
use super::users::{self, User};

/// Timeout of a status request.
const STATUS_TIMEOUT: Duration = Duration::from_millis(1500);
/// Timeout of applying access.
const PUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of forming the cluster.
const INITIALIZE_TIMEOUT: Duration = Duration::from_secs(5);

/// Reason why a cluster cannot run as the files define it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Directory(#[from] directory::Error),
    #[error(transparent)]
    Ports(#[from] ports::Error),
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("MqttCluster {name}: {source}")]
    Invalid { name: String, source: validate::Error },
    #[error("MqttCluster {name}: {problem}")]
    Fixed { name: String, problem: &'static str },
    #[error("failed to write a broker's configuration: {0}")]
    Config(#[from] covey_contract::config::Error),
    #[error("failed to create the admin client of a broker: {0}")]
    Admin(#[from] covey_operator::admin::Error),
    #[error("failed to project users: {0}")]
    Access(#[from] covey_operator::access::Error),
    #[error("failed to hash passwords: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// A broker of the cluster.
#[derive(Debug)]
struct Broker {
    /// Its process.
    process: Process,
    /// Client of its admin service.
    client: Client,
    /// Reply to the last status request; `None` if it did not answer.
    status: Option<StatusReply>,
}

/// A running cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    /// Directory of the cluster.
    folder: PathBuf,
    /// First client port of the program (`--port`).
    port: u16,
    /// Desired state, from the manifest.
    wanted: ValidatedCluster,
    /// Users with their passwords.
    users: Vec<User>,
    /// State on disk.
    state: State,
    /// Certificate with which the program authenticates to brokers.
    credentials: Credentials,
    /// Brokers by ordinal.
    brokers: Vec<Broker>,
    /// Access document on disk.
    document: Option<Document>,
    /// Message that was last logged, so that it is logged once.
    said: String,
    shutdown: CancellationToken,
}

impl Cluster {
    /// Starts the brokers of a cluster.
    pub(super) fn start(
        directory: &Directory,
        key: &Key,
        manifests: &Manifests,
        manifest: &MqttCluster,
        port: u16,
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let folder = directory.cluster(&key.0, &key.1);
        directory::make(&folder)?;
        let placed = directory.states()?;
        let (replicas, listeners) = (manifest.spec.replicas, manifest.spec.listeners.len());
        let mut state = State::read(&folder)?.unwrap_or_else(|| {
            let offset = ports::next_offset(&placed);
            State::new(offset, ports::end(offset, listeners, replicas), manifest.spec.shards)
        });
        let others: Vec<u16> =
            placed.iter().filter(|other| other.uid != state.uid).map(|other| other.inner_port).collect();
        state.inner_port = ports::choose_inner(state.inner_port, replicas, &others)?;
        let wanted = validated(key, manifest, port, &state)?;
        ports::check_clients(&wanted.listeners, 0..wanted.replicas)?;
        state.write(&folder)?;
        let credentials = identity::ensure(&folder, &state.uid)?;
        let document = record::read(&folder.join("access"))?;
        let mut cluster = Self {
            folder,
            port,
            wanted,
            users: vec![],
            state,
            credentials,
            brokers: vec![],
            document,
            said: String::new(),
            shutdown,
        };
        cluster.take_users(key, manifests)?;
        cluster.start_brokers()?;
        Ok(cluster)
    }

    /// Applies a changed manifest.
    pub(super) fn update(&mut self, key: &Key, manifests: &Manifests, manifest: &MqttCluster) -> Result<(), Error> {
        let wanted = validated(key, manifest, self.port, &self.state)?;
        self.take_users(key, manifests)?;
        if wanted == self.wanted {
            return Ok(());
        }
        ports::check_clients(&wanted.listeners, self.wanted.replicas..wanted.replicas)?;
        let grows = wanted.replicas > self.wanted.replicas;
        let same = ValidatedCluster { replicas: wanted.replicas, ..self.wanted.clone() };
        if wanted != (ValidatedCluster { anonymous: wanted.anonymous.clone(), ..same }) {
            tracing::warn!(cluster = key.1, "changed settings take effect when the brokers are restarted");
        }
        self.wanted = wanted;
        if grows { self.start_brokers() } else { self.write_configs() }
    }

    fn take_users(&mut self, key: &Key, manifests: &Manifests) -> Result<(), Error> {
        let objects = manifests.users_of(key);
        let mut state = self.state.clone();
        users::keep(&mut state.users, &objects);
        if state != self.state {
            state.write(&self.folder)?;
            self.state = state;
        }
        self.users = users::resolve(&objects, &self.state.users, &manifests.secrets_in(&key.0));
        Ok(())
    }

    fn name(&self, ordinal: u32) -> String {
        format!("{}-{ordinal}", self.wanted.name)
    }

    fn broker_folder(&self, ordinal: u32) -> PathBuf {
        self.folder.join(self.name(ordinal))
    }

    fn peers(&self) -> Peers {
        let inner = ports::inner(self.state.inner_port);
        Peers {
            host: "127.0.0.1".into(),
            bind: "127.0.0.1".into(),
            port: inner.peer,
            admin_port: inner.admin,
            http_port: inner.http,
            port_step: 1,
        }
    }

    /// Writes every broker's configuration. Running brokers do not read it again.
    fn write_configs(&self) -> Result<(), Error> {
        for ordinal in 0..self.wanted.replicas {
            let folder = self.broker_folder(ordinal);
            directory::make(&folder)?;
            let paths = Paths {
                data: folder.join("data"),
                access: self.folder.join("access"),
                peer_tls: identity::tls_folder(&self.folder),
            };
            let mut config = build::broker_config(&self.wanted, self.peers(), paths);
            config.cluster.id.clone_from(&self.state.cluster_id);
            let text = config.to_yaml()?;
            let path = config_file(&folder);
            if directory::read(&path)?.as_deref() != Some(text.as_bytes()) {
                directory::write(&path, text.as_bytes())?;
            }
        }
        Ok(())
    }

    fn start_brokers(&mut self) -> Result<(), Error> {
        self.state.replicas = self.wanted.replicas;
        self.state.write(&self.folder)?;
        self.write_configs()?;
        let started = u32::try_from(self.brokers.len()).unwrap_or(u32::MAX);
        for ordinal in started..self.wanted.replicas {
            let folder = self.broker_folder(ordinal);
            let port = ports::at(self.peers().admin_port, ordinal);
            let client = Client::new("127.0.0.1", port, &self.credentials, STATUS_TIMEOUT)?;
            let plan = Plan {
                name: self.name(ordinal),
                config: config_file(&folder),
                log: log_file(&folder),
                drain: self.wanted.drain.deadline,
            };
            let process = Process::start(plan, self.shutdown.clone());
            self.brokers.push(Broker { process, client, status: None });
        }
        Ok(())
    }

    /// Runs one pass: brings the cluster one step closer to the desired state.
    pub(super) async fn pass(&mut self) -> Result<(), Error> {
        self.ask().await;
        self.form().await?;
        let projection = self.project().await?;
        if self.document.as_ref() != Some(&projection.document) {
            record::write(&self.folder.join("access"), &projection.document)?;
            let document = &projection.document;
            tracing::info!(cluster = self.wanted.name, revision = document.revision, "access document written");
        }
        self.push(&projection.document).await;
        let complaints = users::complaints(&self.users, &projection);
        self.document = Some(projection.document);
        self.say(complaints);
        Ok(())
    }

    async fn ask(&mut self) {
        let asked = self.brokers.iter_mut().map(|broker| async {
            broker.status = broker.client.status(STATUS_TIMEOUT).await.ok();
        });
        join_all(asked).await;
    }

    async fn form(&mut self) -> Result<(), Error> {
        match self.decide() {
            Decision::Record(formation) => self.record_formation(formation, false),
            Decision::Adopt(formation) => self.record_formation(formation, true),
            Decision::Initialize { ordinals } => {
                self.initialize(&ordinals).await;
                Ok(())
            }
            Decision::Formed if self.state.cluster_id.is_none() => {
                let formation = self.state.formation.clone().unwrap_or_default();
                self.record_formation(formation, true)
            }
            Decision::Formed
            | Decision::Wait { .. }
            | Decision::Foreign { .. }
            | Decision::TooFew { .. }
            | Decision::AllDisksEmpty => Ok(()),
        }
    }

    fn decide(&self) -> Decision {
        let answers: Vec<Answer> = self.statuses().map(answer).collect();
        let known = Known {
            replicas: self.wanted.replicas,
            recorded: self.state.formation.as_ref(),
            formed: self.state.cluster_id.as_deref(),
        };
        formation::decide(known, &answers, &Uuid::new_v4().to_string())
    }

    fn statuses(&self) -> impl Iterator<Item = &StatusReply> {
        self.brokers.iter().filter_map(|broker| broker.status.as_ref())
    }

    fn record_formation(&mut self, formation: Formation, formed: bool) -> Result<(), Error> {
        if formed {
            self.state.cluster_id = Some(formation.cluster_id.clone());
            tracing::info!(cluster = self.wanted.name, id = formation.cluster_id, "cluster formed");
        }
        self.state.formation = Some(formation);
        self.state.write(&self.folder)?;
        // From now on a disk of another cluster is refused.
        if formed { self.write_configs() } else { Ok(()) }
    }

    async fn initialize(&mut self, ordinals: &[u32]) {
        let Some(formation) = &self.state.formation else { return };
        let member =
            |member: &covey_crds::FormationMember| Member { ordinal: member.ordinal, node_id: member.node_id.clone() };
        let members: Vec<Member> = formation.members.iter().map(member).collect();
        let initialized = self
            .brokers
            .iter_mut()
            .filter(|broker| broker.status.as_ref().is_some_and(|status| ordinals.contains(&status.ordinal)));
        let initialized = initialized
            .map(|broker| broker.client.initialize(&formation.cluster_id, members.clone(), INITIALIZE_TIMEOUT));
        for answer in join_all(initialized).await {
            if let Err(error) = answer {
                tracing::warn!(%error, "failed to form the cluster on a broker, it is retried");
            }
        }
    }

    async fn project(&self) -> Result<Projection, Error> {
        let access = self.statuses().filter_map(|status| status.access.as_ref());
        let seen = access.map(|access| access.revision.max(access.rejected_revision)).max().unwrap_or(0);
        let (users, previous, anonymous) = (self.users.clone(), self.document.clone(), self.wanted.anonymous.clone());
        let work = move || users::project(&users, previous.as_ref(), seen, anonymous.as_deref());
        Ok(tokio::task::spawn_blocking(work).await??)
    }

    async fn push(&mut self, document: &Document) {
        let json = document.to_json();
        let behind = self.brokers.iter_mut().filter(|broker| broker.status.is_some() && !broker.enforces(document));
        let pushes = behind.map(|broker| async {
            match broker.client.apply_access(json.clone(), PUSH_TIMEOUT).await {
                Ok(access) => {
                    if let Some(status) = &mut broker.status {
                        status.access = Some(access);
                    }
                }
                Err(error) => tracing::warn!(%error, "failed to apply access to a broker, it is retried"),
            }
        });
        join_all(pushes).await;
    }

    /// Logs what keeps the cluster from being ready or a user from connecting, when that changes.
    fn say(&mut self, complaints: Vec<String>) {
        let mut sentences = complaints;
        match self.decide() {
            Decision::Foreign { disks } => {
                let disks = disks.iter().map(|(ordinal, id)| format!("{} of cluster {id}", self.name(*ordinal)));
                let disks: Vec<String> = disks.collect();
                sentences.push(format!("brokers have disks of other clusters, formation waits: {}", disks.join(", ")));
            }
            Decision::TooFew { members } => {
                sentences.push(format!("the disks belong to a cluster of {members} brokers; set replicas: {members}"));
            }
            Decision::AllDisksEmpty => sentences.push(
                "every broker came back with an empty disk; put the data back, or move the folder of the cluster aside \
                 to start over"
                    .to_owned(),
            ),
            _ => {}
        }
        let waiting: Vec<String> = self
            .brokers
            .iter()
            .zip(0..)
            .filter_map(|(broker, ordinal)| broker.waits_for().map(|reason| format!("{} {reason}", self.name(ordinal))))
            .collect();
        if !waiting.is_empty() {
            sentences.push(format!("waiting: {}", waiting.join("; ")));
        }
        let said = sentences.join(". ");
        if said != self.said && !said.is_empty() {
            tracing::info!(cluster = self.wanted.name, "{said}");
        }
        self.said = said;
    }

    /// Returns how to connect; `None` unless every broker is ready and enforces the current access document.
    pub(super) fn report(&self) -> Option<ClusterReport> {
        let document = self.document.as_ref()?;
        let cluster_id = self.state.cluster_id.clone()?;
        if !self.brokers.iter().all(|broker| broker.waits_for().is_none() && broker.enforces(document)) {
            return None;
        }
        let password = |name: &str| self.users.iter().find(|user| user.object.username() == name)?.password();
        Some(ClusterReport {
            namespace: self.wanted.namespace.clone(),
            name: self.wanted.name.clone(),
            cluster_id,
            access_revision: document.revision,
            brokers: self
                .brokers
                .iter()
                .zip(0..)
                .map(|(broker, ordinal)| self.broker_report(broker, ordinal))
                .collect(),
            users: document.users.iter().map(|user| output::user(user, password(&user.name))).collect(),
        })
    }

    fn broker_report(&self, broker: &Broker, ordinal: u32) -> BrokerReport {
        let address = |port| format!("127.0.0.1:{}", ports::at(port, ordinal));
        let folder = self.broker_folder(ordinal);
        BrokerReport {
            name: self.name(ordinal),
            addresses: self.wanted.listeners.iter().map(|listener| address(listener.port)).collect(),
            http: address(self.peers().http_port),
            pid: broker.process.pid(),
            config: config_file(&folder).display().to_string(),
            log: log_file(&folder).display().to_string(),
        }
    }

    /// Waits until all brokers have ended after the shutdown.
    pub(super) async fn ended(self) {
        join_all(self.brokers.into_iter().map(|broker| broker.process.ended())).await;
    }
}

impl Broker {
    fn enforces(&self, document: &Document) -> bool {
        let access = self.status.as_ref().and_then(|status| status.access.as_ref());
        access.is_some_and(|access| access.revision == document.revision && access.hash == document.hash())
    }

    fn waits_for(&self) -> Option<String> {
        match &self.status {
            None => Some("does not answer".into()),
            Some(status) if status.ready => None,
            Some(status) => Some(format!("is not ready ({})", status.failing_checks.join(", "))),
        }
    }
}

fn answer(status: &StatusReply) -> Answer {
    Answer {
        ordinal: status.ordinal,
        node_id: status.node_id.clone(),
        cluster_id: status.cluster_id.clone(),
        members: nodes::members_of(status),
    }
}

fn config_file(folder: &Path) -> PathBuf {
    folder.join("broker.yaml")
}

fn log_file(folder: &Path) -> PathBuf {
    folder.join("log")
}

/// Validates the manifest as the operator does, and sets the local ports.
fn validated(key: &Key, manifest: &MqttCluster, port: u16, state: &State) -> Result<ValidatedCluster, Error> {
    let mut manifest = manifest.clone();
    manifest.metadata.uid = Some(state.uid.clone());
    let name = || key.1.clone();
    let mut wanted = validate::validate(&manifest, &validate::ImageDefaults::default())
        .map_err(|source| Error::Invalid { name: name(), source })?;
    if wanted.replicas < state.replicas {
        let problem = "replicas can only grow: moving data away from a broker before its removal is not supported yet";
        return Err(Error::Fixed { name: name(), problem });
    }
    if wanted.shards != state.shards {
        return Err(Error::Fixed {
            name: name(),
            problem: "shards cannot change after creation: create another cluster",
        });
    }
    ports::place(&mut wanted.listeners, port, state, wanted.replicas)?;
    Ok(wanted)
}
