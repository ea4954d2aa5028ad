//! Runs the operator: waits for its custom resources, then runs the two controllers and the HTTP server until shutdown.
//!
//! `covey operator` calls [`run`]; tests call [`run_with`] with their own client.

use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use covey_contract::names;
use covey_crds::{MqttCluster, MqttUser};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{ApiResource, DynamicObject, ListParams, PartialObjectMeta};
use kube::core::{DeserializeGuard, DynamicResourceScope};
use kube::runtime::controller::{self, Action, Config};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{Controller, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster;
use crate::context::Context;
use crate::http::{self, Readiness};
use crate::metrics::{self, Metrics};
use crate::options::Options;
use crate::user;

type Clusters = DeserializeGuard<MqttCluster>;
type Users = DeserializeGuard<MqttUser>;
/// The metadata of an object of any kind.
type Metadata = PartialObjectMeta<DynamicObject>;

const RETRY: Duration = Duration::from_secs(2);
const DEBOUNCE: Duration = Duration::from_millis(100);
const CONCURRENCY: u16 = 16;
const FORGET_EVERY: Duration = Duration::from_secs(30);

/// Why the operator stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to configure the Kubernetes client: {0}")]
    Config(#[source] Box<kube::Error>),
    #[error(transparent)]
    Metrics(#[from] metrics::Error),
    #[error("failed to serve HTTP on {address}: {source}")]
    Http { address: SocketAddr, source: std::io::Error },
}

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error("failed to parse the object: {0}")]
    Unreadable(String),
    #[error(transparent)]
    Cluster(#[from] cluster::reconcile::Error),
    #[error(transparent)]
    User(#[from] user::orphan::Error),
}

impl PassError {
    fn category(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::Cluster(error) => error.category(),
            Self::User(_) => "user",
        }
    }
}

/// Runs until `shutdown` is cancelled, with a client configured by the pod's environment or by a kubeconfig.
///
/// The future is boxed so that its code is generated in this crate and not in the one that polls it.
///
/// # Errors
/// If the client cannot be configured, or as [`run_with`].
pub fn run(options: Options, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    Box::pin(async move {
        let config = kube::Config::infer().await.map_err(kube::Error::InferConfig);
        let mut config = config.map_err(|error| Error::Config(Box::new(error)))?;
        // The client would repeat a request that is answered with 429, as a refused eviction is, up to 15 times and for
        // minutes. Access changes of the cluster would wait for that; the next pass asks again.
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|error| Error::Config(Box::new(error)))?;
        run_with(client, options, shutdown).await
    })
}

/// Runs until `shutdown` is cancelled, with the given client.
///
/// # Errors
/// If the metrics cannot be registered or the HTTP server fails. A failed reconcile is logged and tried again.
pub async fn run_with(client: Client, options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"))?;
    let readiness = Readiness::waiting(vec!["starting".into()]);
    let context = Arc::new(Context::new(client.clone(), metrics.clone(), &options));
    let address = options.http;
    let server = http::serve(address, metrics, readiness.clone(), shutdown.clone());
    let work = async {
        tokio::select! {
            () = await_definitions(&client, &options, &readiness) => {}
            () = shutdown.cancelled() => return,
        }
        tracing::info!("watching the custom resources");
        watch(&context, &options, &shutdown).await;
    };
    let (served, ()) = tokio::join!(
        async {
            let served = server.await;
            // Without probes and metrics the process cannot be supervised. Stop it, so that it is restarted.
            shutdown.cancel();
            served
        },
        work
    );
    served.map_err(|source| Error::Http { address, source })
}

fn scoped<K>(client: &Client, options: &Options) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match &options.namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Returns the API of a kind that is known only at run time. One Rust type for all watched kinds keeps the code small.
fn untyped<K>(client: &Client, options: &Options, resource: &ApiResource) -> Api<K>
where
    K: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
{
    match &options.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    }
}

/// Waits until the API server serves both custom resources. Meanwhile `/readyz` reports which are missing.
async fn await_definitions(client: &Client, options: &Options, readiness: &Readiness) {
    loop {
        let one = ListParams::default().limit(1);
        let (clusters, users) = (scoped::<Clusters>(client, options), scoped::<Users>(client, options));
        let clusters = clusters.list(&one).await.err().map(|error| format!("mqttclusters.covey.io: {error}"));
        let users = users.list(&one).await.err().map(|error| format!("mqttusers.covey.io: {error}"));
        let missing: Vec<String> = clusters.into_iter().chain(users).collect();
        readiness.set(missing.clone());
        if missing.is_empty() {
            return;
        }
        tracing::warn!(missing = missing.join("; "), "waiting for the custom resources");
        tokio::time::sleep(RETRY).await;
    }
}

/// Runs both controllers until `shutdown` is cancelled.
async fn watch(context: &Arc<Context>, options: &Options, shutdown: &CancellationToken) {
    let client = &context.client;
    let config = Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE);
    let users = Controller::new(scoped::<Users>(client, options), watcher::Config::default());
    let user_store = users.store();
    let all_users = users.store();
    let users = users
        .watches(scoped::<Clusters>(client, options), watcher::Config::default(), move |cluster| {
            let (namespace, name) = (cluster.namespace(), cluster.name_any());
            users_of(&all_users, namespace.as_deref(), &name)
        })
        .with_config(config.clone())
        .graceful_shutdown_on(shutdown.clone().cancelled_owned())
        .run(reconcile_user, |_, _, _| Action::requeue(RETRY), Arc::clone(context))
        .for_each(|result| {
            note_watch_error(context, "mqttuser", result.map(drop));
            ready(())
        });
    let clusters = cluster_controller(context, options, user_store);
    let cluster_store = clusters.store();
    let clusters = clusters
        .with_config(config)
        .graceful_shutdown_on(shutdown.clone().cancelled_owned())
        .run(reconcile_cluster, |_, error, _| after(error), Arc::clone(context))
        .for_each(|result| {
            note_watch_error(context, "mqttcluster", result.map(drop));
            ready(())
        });
    let forget = async {
        loop {
            tokio::time::sleep(FORGET_EVERY).await;
            context.forget_missing(|(namespace, name)| {
                cluster_store.get(&ObjectRef::new(name).within(namespace)).is_some()
            });
        }
    };
    tokio::select! {
        ((), ()) = futures::future::join(users, clusters) => {}
        () = forget.map(|(): ()| ()) => {}
    }
}

/// Logs and counts a failed watch; the controller retries it after a pause. What changed meanwhile is not reported, so
/// every cluster counts as changed. Failed passes are counted by `finish`, and an object that was deleted in the meantime
/// is not a failure.
fn note_watch_error<R, Q>(context: &Context, controller: &str, result: Result<(), controller::Error<R, Q>>)
where
    R: std::error::Error + 'static,
    Q: std::error::Error + 'static,
{
    match result {
        Err(error @ (controller::Error::QueueError(_) | controller::Error::RunnerError(_))) => {
            tracing::warn!(controller, %error, "watch failed; it is tried again");
            context.metrics.watch_failed(controller);
            context.changes.mark_all();
        }
        Ok(()) | Err(controller::Error::ObjectNotFound(_) | controller::Error::ReconcilerFailed(..)) => {}
    }
}

/// Builds the cluster controller. It watches clusters, their children and pods, and the users with their Secrets.
///
/// Of children, pods and Secrets only the metadata is transferred: a change starts a pass, and the pass reads the object.
fn cluster_controller(context: &Arc<Context>, options: &Options, users: Store<Users>) -> Controller<Clusters> {
    let client = &context.client;
    let ours = || watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={}", names::FIELD_MANAGER));
    let of_users = watcher::Config::default().labels(names::LABEL_USER);
    let of_clusters = watcher::Config::default().labels(names::LABEL_CLUSTER);
    let secrets = ApiResource::erase::<Secret>(&());
    let pods = ApiResource::erase::<Pod>(&());
    let children = [
        ApiResource::erase::<StatefulSet>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<ConfigMap>(&()),
        ApiResource::erase::<PodDisruptionBudget>(&()),
        ApiResource::erase::<NetworkPolicy>(&()),
        secrets.clone(),
    ];
    let mut controller = Controller::new(scoped::<Clusters>(client, options), watcher::Config::default());
    for kind in children {
        let context = Arc::clone(context);
        let api = untyped::<Metadata>(client, options, &kind);
        controller = controller.watches_with(api, kind, ours(), move |child| marked(&context, owner_of(&child)));
    }
    let (of_user, of_secret, of_pod) = (Arc::clone(context), Arc::clone(context), Arc::clone(context));
    controller
        .watches(scoped::<Users>(client, options), watcher::Config::default(), move |user| {
            marked(&of_user, cluster_of(&user))
        })
        .watches_with(untyped::<Metadata>(client, options, &secrets), secrets, of_users, move |secret| {
            let user = secret.labels().get(names::LABEL_USER)?;
            let user = users.get(&ObjectRef::new(user).within(&secret.namespace()?))?;
            marked(&of_secret, cluster_of(&user))
        })
        .watches_with(untyped::<Metadata>(client, options, &pods), pods, of_clusters, move |pod| {
            let name = pod.labels().get(names::LABEL_CLUSTER)?;
            marked(&of_pod, Some(ObjectRef::new(name).within(&pod.namespace()?)))
        })
}

/// Notes that an object of the cluster has changed, and returns the cluster.
fn marked(context: &Context, cluster: Option<ObjectRef<Clusters>>) -> Option<ObjectRef<Clusters>> {
    let cluster = cluster?;
    context.changes.mark(cluster.namespace.as_deref().unwrap_or_default(), &cluster.name);
    Some(cluster)
}

/// Returns the cluster that controls the object.
fn owner_of(child: &Metadata) -> Option<ObjectRef<Clusters>> {
    let owner = child.owner_references().iter().find(|owner| owner.controller == Some(true))?;
    let is_cluster = owner.kind == MqttCluster::kind(&()) && owner.api_version == MqttCluster::api_version(&());
    is_cluster.then(|| ObjectRef::new(&owner.name).within(&child.namespace().unwrap_or_default()))
}

fn cluster_of(user: &Users) -> Option<ObjectRef<Clusters>> {
    let user = user.0.as_ref().ok()?;
    Some(ObjectRef::new(&user.spec.cluster_ref.name).within(&user.namespace()?))
}

fn users_of(store: &Store<Users>, namespace: Option<&str>, cluster: &str) -> Vec<ObjectRef<Users>> {
    let of_cluster = |user: &Arc<Users>| {
        user.0
            .as_ref()
            .is_ok_and(|user| user.namespace().as_deref() == namespace && user.spec.cluster_ref.name == cluster)
    };
    store.state().iter().filter(|user| of_cluster(user)).map(|user| ObjectRef::from_obj(user.as_ref())).collect()
}

async fn reconcile_cluster(cluster: Arc<Clusters>, context: Arc<Context>) -> Result<Action, PassError> {
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let started = Instant::now();
    let result = match &cluster.0 {
        Ok(live) => {
            let pass = cluster::reconcile::reconcile_watched(&context, &namespace, &name, live);
            Box::pin(pass).await.map_err(PassError::from)
        }
        Err(error) => {
            context.fleet.leave(&(namespace.clone(), name.clone()));
            Err(PassError::Unreadable(error.error.clone()))
        }
    };
    finish(&context, "mqttcluster", &namespace, &name, started, result)
}

async fn reconcile_user(user: Arc<Users>, context: Arc<Context>) -> Result<Action, PassError> {
    let (namespace, name) = (user.namespace().unwrap_or_default(), user.name_any());
    let started = Instant::now();
    let result = match &user.0 {
        Ok(user) => user::orphan::reconcile(user, &context).await.map_err(PassError::from),
        Err(error) => Err(PassError::Unreadable(error.error.clone())),
    };
    finish(&context, "mqttuser", &namespace, &name, started, result)
}

fn finish(
    context: &Context,
    controller: &str,
    namespace: &str,
    name: &str,
    started: Instant,
    result: Result<Action, PassError>,
) -> Result<Action, PassError> {
    if let Err(error) = &result {
        tracing::warn!(controller, namespace, name, %error, "reconcile failed");
    }
    context.metrics.reconciled(controller, result.as_ref().err().map(PassError::category), started.elapsed());
    result
}

/// Decides what follows a failed pass: a write conflict is retried after 200 ms, an unreadable object waits for a change.
fn after(error: &PassError) -> Action {
    use cluster::reconcile::Error::{Form, Status};
    match error {
        PassError::Unreadable(_) => Action::await_change(),
        PassError::Cluster(Status(source) | Form(source)) if is_conflict(source) => {
            Action::requeue(Duration::from_millis(200))
        }
        PassError::Cluster(_) | PassError::User(_) => Action::requeue(RETRY),
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict())
}
