//! What the status says when volume claims are not those of the spec.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde_json::{Value, json};

use super::passes::{context, create_cluster, pass};
use super::{clusters, started};

async fn create<K>(client: &Client, object: Value)
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), "default");
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
}

async fn ready(client: &Client) -> (String, String) {
    let status = clusters(client).get("prod").await.unwrap().status.unwrap();
    let ready = status.conditions.into_iter().find(|condition| condition.type_ == "Ready").unwrap();
    (ready.reason, ready.message)
}

/// What the StatefulSet controller and the scheduler do for a claim of a storage class that does not exist.
async fn pod_without_a_volume(client: &Client, class: &str) {
    let labels = json!({"covey.io/cluster": "prod", "app.kubernetes.io/component": "broker"});
    create::<PersistentVolumeClaim>(
        client,
        json!({
            "metadata": {"name": "data-prod-0", "labels": {"covey.io/cluster": "prod"}},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "resources": {"requests": {"storage": "10Gi"}}
            }
        }),
    )
    .await;
    create::<Pod>(
        client,
        json!({
            "metadata": {"name": "prod-0", "labels": labels},
            "spec": {"containers": [{"name": "broker", "image": "none"}]}
        }),
    )
    .await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let message = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.";
    let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message});
    let status = Patch::Merge(json!({"status": {"conditions": [condition]}}));
    pods.patch_status("prod-0", &PatchParams::default(), &status).await.unwrap();
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_storage_class_that_was_corrected_names_what_still_has_the_former_one() {
    let server = started().await;
    let client = &server.client;
    create_cluster(client, json!({"replicas": 1, "storage": {"storageClassName": "fsat"}})).await;
    let context = context(client);
    pass(&context).await;
    pod_without_a_volume(client, "fsat").await;

    let spec = Patch::Merge(json!({"spec": {"storage": {"storageClassName": "fast"}}}));
    clusters(client).patch("prod", &PatchParams::default(), &spec).await.unwrap();
    drop(Box::pin(covey_operator::cluster::reconcile::reconcile(&context, "default", "prod")).await);
    let (reason, message) = ready(client).await;
    assert_eq!(reason, "ApplyFailed");
    assert!(message.contains("delete the StatefulSet and the claims data-prod-0, which are not bound"), "{message}");

    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    sets.delete("prod", &DeleteParams::default()).await.unwrap();
    pass(&context).await;
    let claims = sets.get("prod").await.unwrap().spec.unwrap().volume_claim_templates.unwrap();
    assert_eq!(claims[0].spec.as_ref().unwrap().storage_class_name.as_deref(), Some("fast"));
    let (reason, message) = ready(client).await;
    assert_eq!(reason, "Forming");
    let sentence = "its claim data-prod-0 has the storage class fsat and not fast: delete the claim";
    assert!(message.contains(sentence), "{message}");
}
