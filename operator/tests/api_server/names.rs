//! Objects with the name of a child that do not belong to the cluster stay unchanged, and the status reports them.

use std::sync::Arc;

use covey_operator::cluster::reconcile::reconcile;
use covey_operator::context::Context;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use super::passes::{self, context};
use super::{config_maps, started};

/// Kind and name of every object that the operator writes for cluster `prod` and its user `worker`, except the
/// ConfigMap, whose name depends on its content.
const CHILDREN: [(&str, &str); 10] = [
    ("ServiceAccount", "prod-broker"),
    ("Service", "prod-peers"),
    ("Service", "prod"),
    ("PodDisruptionBudget", "prod"),
    ("NetworkPolicy", "prod-broker"),
    ("StatefulSet", "prod"),
    ("Secret", "prod-access"),
    ("Secret", "prod-peer-tls"),
    ("Secret", "prod-peer-ca"),
    ("Secret", "worker-mqtt"),
];

/// Children without which a pod cannot start.
const NEEDED_BY_PODS: [(&str, &str); 5] = [
    ("ServiceAccount", "prod-broker"),
    ("Service", "prod-peers"),
    ("Secret", "prod-access"),
    ("Secret", "prod-peer-tls"),
    ("Secret", "prod-peer-ca"),
];

const CLUSTER: &str = "MqttCluster";
const USER: &str = "MqttUser";

fn group_version(kind: &str) -> (&'static str, &'static str) {
    match kind {
        "StatefulSet" => ("apps", "v1"),
        "PodDisruptionBudget" => ("policy", "v1"),
        "NetworkPolicy" => ("networking.k8s.io", "v1"),
        CLUSTER | USER => ("covey.io", "v1alpha1"),
        _ => ("", "v1"),
    }
}

/// A test case with its own namespace, so that all cases can share one API server.
struct Case {
    client: Client,
    namespace: String,
    context: Arc<Context>,
}

impl Case {
    async fn new(client: &Client, namespace: &str) -> Self {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Namespace"));
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        api.create(&PostParams::default(), &DynamicObject::new(namespace, &resource)).await.unwrap();
        Self { client: client.clone(), namespace: namespace.to_owned(), context: context(client) }
    }

    fn api(&self, kind: &str) -> Api<DynamicObject> {
        let (group, version) = group_version(kind);
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
    }

    async fn create(&self, kind: &str, name: &str, mut object: Value) -> Value {
        let (group, version) = group_version(kind);
        object["metadata"]["name"] = json!(name);
        object["kind"] = json!(kind);
        object["apiVersion"] = if group.is_empty() { json!(version) } else { json!(format!("{group}/{version}")) };
        let object = serde_json::from_value(object).unwrap();
        serde_json::to_value(self.api(kind).create(&PostParams::default(), &object).await.unwrap()).unwrap()
    }

    async fn get(&self, kind: &str, name: &str) -> Option<Value> {
        self.api(kind).get_opt(name).await.unwrap().map(|object| serde_json::to_value(object).unwrap())
    }

    async fn merge(&self, kind: &str, name: &str, patch: Value) {
        self.api(kind).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    async fn delete(&self, kind: &str, name: &str) {
        self.api(kind).delete(name, &DeleteParams::default()).await.unwrap();
        // No controller runs here that would remove finalizers, so the object must be gone at once.
        assert!(self.get(kind, name).await.is_none(), "{kind} {name} is still there");
    }

    /// Creates the cluster and returns its uid.
    async fn create_cluster(&self, spec: Value) -> String {
        let cluster = self.create(CLUSTER, "prod", json!({"spec": spec})).await;
        cluster["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// Runs one pass of the reconcile.
    async fn pass(&self) -> Result<(), String> {
        let pass = Box::pin(reconcile(&self.context, &self.namespace, "prod")).await;
        pass.map(drop).map_err(|error| error.to_string())
    }

    async fn condition(&self, kind: &str, name: &str, type_: &str) -> Value {
        let object = self.get(kind, name).await.unwrap();
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|condition| condition["type"] == type_).unwrap_or_default()
    }

    async fn controller(&self, kind: &str, name: &str) -> Option<String> {
        let object = self.get(kind, name).await?;
        let owners = object["metadata"]["ownerReferences"].as_array()?.clone();
        owners.iter().find(|owner| owner["controller"] == true)?["uid"].as_str().map(str::to_owned)
    }

    /// Asserts that the conditions report reason NameTaken for this child, with `sentence` in the message.
    async fn assert_taken(&self, kind: &str, name: &str, sentence: &str) {
        let about = format!("{kind} {name}");
        let conditions = if name == "worker-mqtt" {
            vec![(self.condition(USER, "worker", "Ready").await, "False")]
        } else {
            vec![
                (self.condition(CLUSTER, "prod", "Ready").await, "False"),
                (self.condition(CLUSTER, "prod", "Degraded").await, "True"),
            ]
        };
        for (condition, status) in conditions {
            assert_eq!((&condition["reason"], &condition["status"]), (&json!("NameTaken"), &json!(status)), "{about}");
            let message = condition["message"].as_str().unwrap();
            assert!(message.contains(&about) && message.contains(sentence), "{message}");
        }
    }
}

/// Returns an object that does not come from the operator.
fn foreign(kind: &str) -> Value {
    match kind {
        "Service" => json!({"spec": {"selector": {"app": "mosquitto"}, "ports": [{"name": "mqtt", "port": 1883}]}}),
        "PodDisruptionBudget" => {
            json!({"spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "mosquitto"}}}})
        }
        "NetworkPolicy" => json!({"spec": {"podSelector": {"matchLabels": {"app": "mosquitto"}}}}),
        "StatefulSet" => json!({"spec": {
            "serviceName": "mosquitto",
            "selector": {"matchLabels": {"app": "mosquitto"}},
            "template": {
                "metadata": {"labels": {"app": "mosquitto"}},
                "spec": {"containers": [{"name": "mosquitto", "image": "mosquitto"}]}
            }
        }}),
        "ConfigMap" => json!({"data": {"mosquitto.conf": "listener 1883"}}),
        "Secret" => json!({"stringData": {"password": "of-somebody-else"}}),
        _ => json!({}),
    }
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn an_object_that_is_not_the_clusters_is_left_alone() {
    let server = started().await;
    for (index, (kind, name)) in CHILDREN.into_iter().enumerate() {
        let case = Case::new(&server.client, &format!("taken-{index}")).await;
        let before = case.create(kind, name, foreign(kind)).await;
        let uid = case.create_cluster(json!({"replicas": 3})).await;
        case.create(USER, "worker", json!({"spec": {"clusterRef": {"name": "prod"}}})).await;
        for _ in 0..3 {
            drop(case.pass().await);
        }
        assert_eq!(case.get(kind, name).await.unwrap(), before, "{kind} {name} was changed");
        case.assert_taken(kind, name, "exists and does not belong to this").await;
        the_others_exist(&case, (kind, name)).await;

        case.delete(kind, name).await;
        case.pass().await.unwrap();
        case.pass().await.unwrap();
        for (kind, name) in CHILDREN {
            let owner = case.controller(kind, name).await;
            assert!(owner.is_some(), "{kind} {name} has no controller");
            assert!(name == "worker-mqtt" || owner.as_ref() == Some(&uid), "{kind} {name}");
        }
        assert_eq!(case.condition(CLUSTER, "prod", "Ready").await["reason"], "Forming");
        assert_eq!(case.condition(USER, "worker", "Ready").await["reason"], "NodesNotSynced");
    }
}

async fn the_others_exist(case: &Case, taken: (&str, &str)) {
    for other in CHILDREN.into_iter().filter(|other| *other != taken) {
        let waits = (other.0 == "StatefulSet" && NEEDED_BY_PODS.contains(&taken))
            || (other.1 == "prod-peer-tls" && taken.1 == "prod-peer-ca");
        let (kind, name) = other;
        let owner = case.controller(kind, name).await;
        assert_eq!(owner.is_none(), waits, "{kind} {name} beside a foreign {} {}", taken.0, taken.1);
    }
}

/// The name of the ConfigMap is known only once it exists, so the foreign object is created afterwards.
#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_config_map_that_is_not_the_clusters_is_left_alone() {
    let server = started().await;
    let case = Case::new(&server.client, "taken-config").await;
    case.create_cluster(json!({"replicas": 3})).await;
    case.pass().await.unwrap();
    let name = config_maps(&server.client, "taken-config").await[0].name_any();
    case.delete("StatefulSet", "prod").await;
    case.delete("ConfigMap", &name).await;
    let before = case.create("ConfigMap", &name, foreign("ConfigMap")).await;
    for _ in 0..3 {
        drop(case.pass().await);
    }
    assert_eq!(case.get("ConfigMap", &name).await.unwrap(), before);
    case.assert_taken("ConfigMap", &name, "exists and does not belong to this").await;
    assert!(case.get("StatefulSet", "prod").await.is_none(), "its pods could not start");
    case.delete("ConfigMap", &name).await;
    case.pass().await.unwrap();
    assert!(case.controller("StatefulSet", "prod").await.is_some());
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn objects_of_a_former_cluster_are_waited_for() {
    let server = started().await;
    for (index, (kind, name)) in CHILDREN.into_iter().enumerate() {
        let case = Case::new(&server.client, &format!("former-{index}")).await;
        let (owner, owner_name) = if name == "worker-mqtt" { (USER, "worker") } else { (CLUSTER, "prod") };
        let mut former = foreign(kind);
        former["metadata"] = json!({
            "labels": {"covey.io/cluster": "prod", "covey.io/user": "worker"},
            "ownerReferences": [{
                "apiVersion": "covey.io/v1alpha1", "kind": owner, "name": owner_name,
                "uid": "6d0c8a52-0000-4000-8000-000000000000", "controller": true
            }]
        });
        let before = case.create(kind, name, former).await;
        case.create_cluster(json!({"replicas": 1})).await;
        case.create(USER, "worker", json!({"spec": {"clusterRef": {"name": "prod"}}})).await;
        drop(case.pass().await);
        assert_eq!(case.get(kind, name).await.unwrap(), before, "{kind} {name} was changed");
        case.assert_taken(kind, name, &format!("belongs to an earlier {owner} {owner_name}: waiting for")).await;
        // Deletes in place of the garbage collector, which does not run here.
        case.delete(kind, name).await;
        case.pass().await.unwrap();
        assert!(case.controller(kind, name).await.is_some(), "{kind} {name} was not made");
    }
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn what_an_orphaning_deletion_leaves_is_adopted() {
    let server = started().await;
    let mut case = Case::new(&server.client, "orphans").await;
    // An adoption adds an owner to a live object. OwnerReferencesPermissionEnforcement, which is on here, requires the
    // permission to delete the object for that. The chart does not grant it: there the objects must be deleted by hand.
    case.context = passes::context_with(server.client.clone());
    let former = case.create_cluster(json!({"replicas": 3})).await;
    case.pass().await.unwrap();
    let children: Vec<_> = CHILDREN.into_iter().filter(|(_, name)| *name != "worker-mqtt").collect();
    let mut uids = vec![];
    for (kind, name) in &children {
        // The garbage collector does this for `kubectl delete --cascade=orphan`.
        case.merge(kind, name, json!({"metadata": {"ownerReferences": null}})).await;
        uids.push(case.get(kind, name).await.unwrap()["metadata"]["uid"].clone());
    }
    case.delete(CLUSTER, "prod").await;
    let uid = case.create_cluster(json!({"replicas": 3})).await;
    assert_ne!(uid, former);
    case.pass().await.unwrap();
    for ((kind, name), before) in children.iter().zip(uids) {
        assert_eq!(case.controller(kind, name).await.as_deref(), Some(uid.as_str()), "{kind} {name}");
        assert_eq!(case.get(kind, name).await.unwrap()["metadata"]["uid"], before, "{kind} {name} was replaced");
    }
    labels_alone_are_no_evidence(&server.client).await;
}

/// Labels are copied together with a manifest, so they do not prove who created an object.
async fn labels_alone_are_no_evidence(client: &Client) {
    let case = Case::new(client, "copied").await;
    let labels = json!({
        "covey.io/cluster": "prod", "app.kubernetes.io/name": "covey", "app.kubernetes.io/instance": "prod",
        "app.kubernetes.io/component": "broker", "app.kubernetes.io/managed-by": "covey",
    });
    let mut copy = foreign("Service");
    copy["metadata"] = json!({"labels": labels});
    let before = case.create("Service", "prod", copy).await;
    case.create_cluster(json!({"replicas": 1})).await;
    drop(case.pass().await);
    assert_eq!(case.get("Service", "prod").await.unwrap(), before);
    case.assert_taken("Service", "prod", "exists and does not belong to this cluster").await;
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_child_that_the_server_refuses_stops_no_other() {
    let server = started().await;
    let case = Case::new(&server.client, "refused").await;
    let uid = case.create_cluster(json!({"replicas": 3, "service": {"annotations": {"bad key!": "x"}}})).await;
    let error = case.pass().await.unwrap_err();
    assert!(error.contains("failed to apply Service prod"), "{error}");
    assert!(case.get("Service", "prod").await.is_none());
    for (kind, name) in CHILDREN.into_iter().filter(|(kind, name)| (*kind, *name) != ("Service", "prod")) {
        let wanted = (name != "worker-mqtt").then_some(uid.as_str());
        assert_eq!(case.controller(kind, name).await.as_deref(), wanted, "{kind} {name}");
    }
    assert_eq!(case.condition(CLUSTER, "prod", "Ready").await["reason"], "ApplyFailed");
}

/// Creating and applying an object are separate kinds of field ownership, and the operator must give up both.
#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_field_that_is_no_longer_wanted_goes() {
    let server = started().await;
    let case = Case::new(&server.client, "fields").await;
    case.create_cluster(json!({"replicas": 1, "service": {"annotations": {"example.org/a": "1"}}})).await;
    case.pass().await.unwrap();
    let annotation = |service: Value| service["metadata"]["annotations"]["example.org/a"].clone();
    assert_eq!(annotation(case.get("Service", "prod").await.unwrap()), "1");
    case.merge(CLUSTER, "prod", json!({"spec": {"service": {"annotations": null}}})).await;
    case.pass().await.unwrap();
    assert_eq!(annotation(case.get("Service", "prod").await.unwrap()), Value::Null);
}
