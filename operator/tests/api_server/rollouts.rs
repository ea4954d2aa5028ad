//! What happens before the first pod of a new template is evicted.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{LimitRange, Pod, ResourceQuota};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use super::passes::{condition, context, create_cluster, pass};
use super::{broker, clusters, started, until};

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

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_rollout_waits_for_its_approval_its_window_and_other_clusters() {
    let server = started().await;
    let client = &server.client;
    let _node = outdated(client).await;
    let before = Api::<Pod>::namespaced(client.clone(), "default").get("prod-0").await.unwrap().uid();
    let asked = context(client);
    let clusters = clusters(client);
    let set = async |change: Value| {
        clusters.patch("prod", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
        pass(&asked).await;
        let pending = condition(client, "UpgradePending").await;
        assert_eq!(pending.status == "True", pending.reason != "NothingPostponed");
        (pending.reason, pending.message)
    };

    let (reason, message) = set(json!({"spec": {"rollout": {"policy": "Manual"}}})).await;
    assert_eq!(reason, "ApprovalNeeded");
    let command = "kubectl annotate mqttcluster prod -n default covey.io/approve-rollout=next --overwrite";
    assert!(message.starts_with("prod-0 runs an earlier template") && message.ends_with(command), "{message}");
    let approve = |revision: &str| json!({"metadata": {"annotations": {"covey.io/approve-rollout": revision}}});
    assert_eq!(set(approve("earlier")).await.0, "ApprovalNeeded", "an earlier template was approved");

    // No window is open now: it begins in 12 hours and is a minute long.
    let from = Timestamp::now().to_zoned(TimeZone::UTC).checked_add(12.hours()).unwrap().strftime("%H:%M").to_string();
    let windows = json!([{"from": from, "duration": "1m"}]);
    let (reason, message) = set(json!({"spec": {"rollout": {"policy": "Auto", "windows": windows}}})).await;
    assert_eq!(reason, "OutsideWindows");
    assert!(message.ends_with(&format!("{from} UTC")), "{message}");

    let other = ("iot".to_owned(), "other".to_owned());
    asked.fleet.enter(&other).unwrap();
    let open = json!([{"from": "00:00", "duration": "24h"}]);
    let (reason, message) = set(json!({"spec": {"rollout": {"policy": "Manual", "windows": open}}})).await;
    assert_eq!(reason, "ApprovalNeeded", "{message}");
    let (reason, message) = set(approve("next")).await;
    assert_eq!(reason, "OtherClustersRoll");
    assert!(message.ends_with("when these clusters are done: iot/other"), "{message}");
    let after = Api::<Pod>::namespaced(client.clone(), "default").get("prod-0").await.unwrap();
    assert_eq!((after.uid(), after.metadata.deletion_timestamp), (before, None));

    asked.fleet.leave(&other);
    assert_eq!(set(json!({})).await.0, "NothingPostponed");
    until("the eviction, which the budget refuses because no controller has counted it", async || {
        pass(&asked).await;
        condition(client, "Progressing").await.message.contains("the disruption budget does not allow the eviction")
    })
    .await;
    assert_eq!(asked.fleet.enter(&other), Ok(()), "a cluster whose first pod cannot be evicted holds up no other");
    asked.fleet.leave(&other);
    asked.fleet.enter(&("default".to_owned(), "prod".to_owned())).unwrap();
    assert!(asked.fleet.enter(&other).is_err());
    set(json!({"spec": {"paused": true}})).await;
    assert_eq!(asked.fleet.enter(&other), Ok(()), "a paused cluster holds up no other");
}
