//! The operator of these tests acts as the ServiceAccount that the chart binds to its ClusterRole, so that a permission
//! missing in the chart fails the test that needs it. The tests themselves act as an administrator.

use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{HeaderValue, Request, Response};
use covey_crds::{MqttCluster, MqttUser};
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::client::Body;
use tonic::codegen::Service;

use super::started;

const RELEASE_NAMESPACE: &str = "covey-system";
const OPERATOR: &str = "system:serviceaccount:covey-system:covey-operator";
const GROUPS: [&str; 3] = ["system:serviceaccounts", "system:serviceaccounts:covey-system", "system:authenticated"];

/// Installs the ClusterRole and its binding as `helm template` renders them, and waits until they are in force.
pub(crate) async fn install(client: &Client, binaries: &Path) {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/covey");
    let helm = Command::new(binaries.join("helm"))
        .args(["template", "covey"])
        .arg(&chart)
        .args(["--namespace", RELEASE_NAMESPACE, "--kube-version", "1.33.0", "--show-only", "templates/rbac.yaml"])
        .output()
        .unwrap();
    assert!(helm.status.success(), "{}", String::from_utf8_lossy(&helm.stderr));
    let objects: Vec<DynamicObject> = serde_saphyr::from_multiple(&String::from_utf8(helm.stdout).unwrap()).unwrap();
    for object in objects {
        match object.types.as_ref().unwrap().kind.as_str() {
            "ClusterRole" => create::<ClusterRole>(client, &object).await,
            "ClusterRoleBinding" => create::<ClusterRoleBinding>(client, &object).await,
            other => panic!("the chart's rbac.yaml has a {other}"),
        }
    }
    let operator = operator(client);
    for _ in 0..300 {
        if Api::<MqttCluster>::all(operator.clone()).list(&ListParams::default()).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the operator's ClusterRole did not come into force");
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
async fn the_operator_of_these_tests_may_delete_nothing() {
    let Some(server) = started().await else { return };
    let operator = operator(&server.client);
    let everything = ListParams::default();
    let secrets: Api<Secret> = Api::namespaced(operator.clone(), "default");
    assert!(secrets.list(&everything).await.is_ok());
    assert!(forbidden(secrets.delete("any", &DeleteParams::default()).await));
    let pods: Api<Pod> = Api::namespaced(operator.clone(), "default");
    assert!(forbidden(pods.delete("any", &DeleteParams::default()).await));
    let clusters: Api<MqttCluster> = Api::namespaced(operator.clone(), "default");
    assert!(forbidden(clusters.delete("any", &DeleteParams::default()).await));
    let users: Api<MqttUser> = Api::namespaced(operator.clone(), "default");
    assert!(forbidden(users.delete("any", &DeleteParams::default()).await));
    assert!(forbidden(Api::<ClusterRole>::all(operator).list(&everything).await));
}

fn forbidden<T>(result: Result<T, kube::Error>) -> bool {
    matches!(result, Err(kube::Error::Api(status)) if status.code == 403)
}
