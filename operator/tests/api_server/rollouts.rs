//! What happens before the first pod of a new template is evicted.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{LimitRange, Pod, ResourceQuota};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use super::passes::{condition, context, create_cluster, pass};
use super::{broker, started, until};

/// Forms a cluster of one node, whose pod then runs an earlier template.
async fn outdated(client: &Client) -> broker::Node {
    create_cluster(client, json!({"replicas": 1})).await;
    let context = context(client);
    pass(&context).await;
    let node = broker::start(client, 0, "").await;
    for _ in 0..3 {
        pass(&context).await;
    }
    assert_eq!(condition(client, "Ready").await.reason, "AllNodesReady");
    // The status that the StatefulSet controller writes.
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let status = json!({"status": {"replicas": 1, "observedGeneration": 99, "updateRevision": "next"}});
    sets.patch_status("prod", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    node
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_template_that_admission_refuses_costs_no_pod() {
    let server = started().await;
    let client = &server.client;
    let limits: Api<LimitRange> = Api::namespaced(client.clone(), "default");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let _node = outdated(client).await;
    let before = pods.get("prod-0").await.unwrap();
    let small =
        json!({"metadata": {"name": "small"}, "spec": {"limits": [{"type": "Container", "max": {"memory": "512Mi"}}]}});
    limits.create(&PostParams::default(), &serde_json::from_value(small).unwrap()).await.unwrap();

    let asked = context(client);
    for _ in 0..2 {
        pass(&asked).await;
        for (type_, status) in [("Progressing", "False"), ("Degraded", "True")] {
            let condition = condition(client, type_).await;
            assert_eq!((condition.status.as_str(), condition.reason.as_str()), (status, "NewTemplateFails"));
            let text = &condition.message;
            assert!(text.contains("no further pod is evicted") && text.contains("512Mi, but limit is 1Gi"), "{text}");
        }
    }
    let after = pods.get("prod-0").await.unwrap();
    assert_eq!((after.uid(), after.metadata.deletion_timestamp), (before.uid(), None));
    assert_eq!(pods.list(&kube::api::ListParams::default()).await.unwrap().items.len(), 1, "a dry run stores nothing");

    limits.delete("small", &DeleteParams::default()).await.unwrap();
    until("the eviction, which the budget refuses because no controller has counted it", async || {
        pass(&context(client)).await;
        condition(client, "Progressing").await.message.contains("the disruption budget does not allow the eviction")
    })
    .await;
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_quota_that_the_earlier_pod_fills_does_not_hold_up_its_replacement() {
    let server = started().await;
    let client = &server.client;
    let _node = outdated(client).await;
    let quotas: Api<ResourceQuota> = Api::namespaced(client.clone(), "default");
    let one = json!({"metadata": {"name": "one"}, "spec": {"hard": {"pods": "1"}}});
    quotas.create(&PostParams::default(), &serde_json::from_value(one).unwrap()).await.unwrap();
    let count = async |used: &str| {
        let status = Patch::Merge(json!({"status": {"hard": {"pods": "1"}, "used": {"pods": used}}}));
        quotas.patch_status("one", &PatchParams::default(), &status).await.unwrap();
        pass(&context(client)).await;
        condition(client, "Progressing").await
    };
    until("the refusal of a quota that was lowered", async || {
        let condition = count("2").await;
        condition.reason == "NewTemplateFails" && condition.message.contains("exceeded quota: one")
    })
    .await;
    until("the eviction", async || count("1").await.message.contains("does not allow the eviction")).await;
}
