//! The operator of these tests acts as the ServiceAccount that the chart binds to its ClusterRole, so that a permission
//! missing in the chart fails the test that needs it. The tests themselves act as an administrator.

use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll};

use axum::http::{HeaderValue, Request, Response};
use covey_crds::{MqttCluster, MqttUser};
use covey_operator::cluster::reconcile::reconcile;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::{self as core, ConfigMap, Pod, Secret};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleBinding};
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, EvictParams, ListParams, Patch, PatchParams, PostParams};
use kube::client::Body;
use serde_json::json;
use tonic::codegen::Service;

use super::{broker, clusters, passes, started, until};

const RELEASE_NAMESPACE: &str = "covey-system";
pub(crate) const OPERATOR: &str = "system:serviceaccount:covey-system:covey-operator";
const GROUPS: [&str; 3] = ["system:serviceaccounts", "system:serviceaccounts:covey-system", "system:authenticated"];

/// Installs the ClusterRoles and the binding of the operator's as `helm template` renders them, and waits until they are in force.
pub(crate) async fn install(client: &Client, binaries: &Path) {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/covey");
    let helm = Command::new(binaries.join("helm"))
        .args(["template", "covey"])
        .arg(&chart)
        .args(["--namespace", RELEASE_NAMESPACE, "--kube-version", "1.33.0"])
        .args(["--show-only", "templates/rbac.yaml", "--show-only", "templates/roles.yaml"])
        .output()
        .unwrap();
    assert!(helm.status.success(), "{}", String::from_utf8_lossy(&helm.stderr));
    let objects: Vec<DynamicObject> = serde_saphyr::from_multiple(&String::from_utf8(helm.stdout).unwrap()).unwrap();
    for object in objects {
        match object.types.as_ref().unwrap().kind.as_str() {
            "ClusterRole" => create::<ClusterRole>(client, &object).await,
            "ClusterRoleBinding" => create::<ClusterRoleBinding>(client, &object).await,
            other => panic!("the chart's roles have a {other}"),
        }
    }
    let operator = operator(client);
    until("the operator's ClusterRole", async || {
        Api::<MqttCluster>::all(operator.clone()).list(&ListParams::default()).await.is_ok()
    })
    .await;
}

async fn create<K>(client: &Client, object: &DynamicObject)
where
    K: kube::Resource<Scope = k8s_openapi::ClusterResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(serde_json::to_value(object).unwrap()).unwrap();
    Api::<K>::all(client.clone()).create(&PostParams::default(), &object).await.unwrap();
}

/// Returns a client with the operator's permissions, by impersonation over an administrator's connection.
pub(crate) fn operator(administrator: &Client) -> Client {
    Client::new(Impersonated(administrator.clone()), "default")
}

struct Impersonated(Client);

impl Service<Request<Body>> for Impersonated {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, kube::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), kube::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        request.headers_mut().insert("impersonate-user", HeaderValue::from_static(OPERATOR));
        for group in GROUPS {
            request.headers_mut().append("impersonate-group", HeaderValue::from_static(group));
        }
        let client = self.0.clone();
        Box::pin(async move { client.send(request).await })
    }
}

/// Proves that the tests do not run the operator as an administrator by mistake.
#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn the_operator_of_these_tests_may_delete_config_maps_secrets_and_network_policies_and_nothing_else() {
    let server = started().await;
    let operator = operator(&server.client);
    let everything = ListParams::default();
    let secrets: Api<Secret> = Api::namespaced(operator.clone(), "default");
    assert!(secrets.list(&everything).await.is_ok());
    assert!(!forbidden(secrets.delete("any", &DeleteParams::default()).await));
    let config_maps: Api<ConfigMap> = Api::namespaced(operator.clone(), "default");
    assert!(!forbidden(config_maps.delete("any", &DeleteParams::default()).await));
    let policies: Api<NetworkPolicy> = Api::namespaced(operator.clone(), "default");
    assert!(!forbidden(policies.delete("any", &DeleteParams::default()).await));
    let services: Api<core::Service> = Api::namespaced(operator.clone(), "default");
    assert!(forbidden(services.delete("any", &DeleteParams::default()).await));
    let pods: Api<Pod> = Api::namespaced(operator.clone(), "default");
    assert!(forbidden(pods.delete("any", &DeleteParams::default()).await));
    let clusters: Api<MqttCluster> = Api::namespaced(operator.clone(), "default");
    assert!(forbidden(clusters.delete("any", &DeleteParams::default()).await));
    let users: Api<MqttUser> = Api::namespaced(operator.clone(), "default");
    assert!(forbidden(users.delete("any", &DeleteParams::default()).await));
    assert!(forbidden(Api::<ClusterRole>::all(operator).list(&everything).await));
}

/// Returns whether user `ann` may do this in namespace `default`.
async fn ann_may(client: &Client, verb: &str, group: &str, resource: &str) -> bool {
    let attributes = json!({"namespace": "default", "verb": verb, "group": group, "resource": resource});
    let review = json!({"metadata": {}, "spec": {"user": "ann", "resourceAttributes": attributes}});
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let review = reviews.create(&PostParams::default(), &serde_json::from_value(review).unwrap()).await.unwrap();
    review.status.unwrap().allowed
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_team_that_manages_users_may_change_users_and_no_cluster_and_read_no_password() {
    let server = started().await;
    let client = &server.client;
    let binding = json!({
        "metadata": {"name": "ann"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "covey-operator-edit-users"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}]
    });
    assert!(!ann_may(client, "create", "covey.io", "mqttusers").await);
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), "default");
    bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
    until("the binding", async || ann_may(client, "create", "covey.io", "mqttusers").await).await;
    for verb in ["get", "list", "watch", "update", "patch", "delete"] {
        assert!(ann_may(client, verb, "covey.io", "mqttusers").await, "{verb} mqttusers");
    }
    assert!(ann_may(client, "get", "covey.io", "mqttclusters").await);
    for verb in ["create", "update", "patch", "delete"] {
        assert!(!ann_may(client, verb, "covey.io", "mqttclusters").await, "{verb} mqttclusters");
    }
    assert!(!ann_may(client, "update", "covey.io", "mqttusers/status").await);
    assert!(!ann_may(client, "get", "", "secrets").await);
}

/// A pass that lacks the permission for its last step must report that in the status.
#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_right_that_is_missing_is_named_in_the_status() {
    let server = started().await;
    let client = &server.client;
    passes::create_cluster(client, json!({"replicas": 1})).await;
    let context = passes::context(client);
    passes::pass(&context).await;
    let _node = broker::start(client, 0, "").await;
    for _ in 0..3 {
        passes::pass(&context).await;
    }
    let roles: Api<ClusterRole> = Api::all(client.clone());
    let mut role = roles.get("covey-operator").await.unwrap();
    let is_eviction = |rule: &PolicyRule| rule.resources.iter().flatten().any(|resource| resource == "pods/eviction");
    role.rules.as_mut().unwrap().retain(|rule| !is_eviction(rule));
    roles.replace("covey-operator", &PostParams::default(), &role).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(operator(client), "default");
    until("the loss of the right", async || forbidden(pods.evict("none", &EvictParams::default()).await)).await;
    // The status that the StatefulSet controller writes when the pod runs an earlier template.
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let status = json!({"status": {"replicas": 1, "observedGeneration": 99, "updateRevision": "next"}});
    sets.patch_status("prod", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();

    let error = Box::pin(reconcile(&context, "default", "prod")).await.unwrap_err().to_string();
    assert!(error.contains("failed to replace a pod"), "{error}");
    let status = clusters(client).get("prod").await.unwrap().status.unwrap();
    let progressing = status.conditions.into_iter().find(|condition| condition.type_ == "Progressing").unwrap();
    assert!(progressing.message.contains("failed to replace a pod"), "{}", progressing.message);
    assert!(progressing.message.contains("forbidden"), "{}", progressing.message);
}

fn forbidden<T>(result: Result<T, kube::Error>) -> bool {
    matches!(result, Err(kube::Error::Api(status)) if status.code == 403)
}
