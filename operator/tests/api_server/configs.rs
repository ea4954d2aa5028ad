//! A pod keeps the configuration file that it was created with until it is deleted.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use super::passes::{context, create_cluster, pass};
use super::{clusters, config_maps, started};

/// Replaces the pod by one that mounts this ConfigMap, in place of the StatefulSet controller.
async fn replace_pod(client: &Client, config_map: &str) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    drop(pods.delete("prod-0", &DeleteParams::default().grace_period(0)).await);
    let pod = serde_json::from_value(json!({
        "metadata": {
            "name": "prod-0",
            "labels": {"covey.io/cluster": "prod", "app.kubernetes.io/component": "broker"}
        },
        "spec": {
            "containers": [{"name": "broker", "image": "none"}],
            "volumes": [{"name": "config", "configMap": {"name": config_map}}]
        }
    }))
    .unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
}

/// What the StatefulSet's controller says when it has seen this generation of the template.
async fn observe(client: &Client, generation: i64) {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let status = Patch::Merge(json!({"status": {"replicas": 1, "observedGeneration": generation}}));
    sets.patch_status("prod", &PatchParams::default(), &status).await.unwrap();
}

async fn names(client: &Client) -> Vec<String> {
    config_maps(client, "default").await.iter().map(ConfigMap::name_any).collect()
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_pod_keeps_its_configuration_until_it_goes() {
    let server = started().await;
    let client = &server.client;
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    create_cluster(client, json!({"replicas": 1})).await;
    let context = context(client);
    pass(&context).await;
    let [earlier] = names(client).await.try_into().unwrap();
    replace_pod(client, &earlier).await;
    observe(client, 1).await;
    let data = Patch::Merge(json!({"data": {"broker.yaml": "edited"}}));
    let refused = api.patch(&earlier, &PatchParams::default(), &data).await.unwrap_err();
    assert!(refused.to_string().contains("immutable"), "{refused}");
    let labels = json!({"covey.io/cluster": "prod"});
    let copy = serde_json::from_value(json!({"metadata": {"name": "copied-labels", "labels": labels}})).unwrap();
    api.create(&PostParams::default(), &copy).await.unwrap();

    let spec = Patch::Merge(json!({"spec": {"rollout": {"drain": {"rate": 77}}}}));
    clusters(client).patch("prod", &PatchParams::default(), &spec).await.unwrap();
    for _ in 0..3 {
        pass(&context).await;
    }
    let mut both = names(client).await;
    both.retain(|name| name != "copied-labels");
    assert!(both.len() == 2 && both.contains(&earlier), "{both:?}: the pod mounts {earlier}");
    both.retain(|name| *name != earlier);
    let [later] = both.try_into().unwrap();
    assert!(api.get(&later).await.unwrap().data.unwrap()["broker.yaml"].contains("77"));

    replace_pod(client, &later).await;
    pass(&context).await;
    assert!(names(client).await.contains(&earlier), "a pod of the earlier template may still be created");
    observe(client, 2).await;
    pass(&context).await;
    assert_eq!(
        names(client).await,
        ["copied-labels".to_owned(), later],
        "unused ConfigMaps of the cluster are deleted, others are kept"
    );
}
