//! Step *dereference* of a pass: reads all inputs once. I/O only, no decisions.
//!
//! Users and Secrets are listed from the API server, not read from the cache of a watch. A list is either complete or an
//! error, so a user that is absent from it has been deleted. One that cannot be parsed has not. A pass over a settled
//! cluster may use the lists of the pass before it (`changes`).

use std::collections::BTreeMap;

use covey_contract::names;
use covey_crds::{MqttCluster, MqttUser};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client, ResourceExt};

use super::build;
use crate::access::Candidate;

/// The inputs of one pass.
#[derive(Debug)]
pub struct Inputs {
    /// The cluster as the API server returned it.
    pub cluster: MqttCluster,
    /// Users of this cluster, except those that are being deleted.
    pub users: Vec<MqttUser>,
    /// Users of this cluster that cannot be parsed, for example because a later version of the operator accepted them.
    pub unreadable_users: Vec<Candidate>,
    /// Secrets with the user label, by name.
    pub user_secrets: BTreeMap<String, Secret>,
    pub access_secret: Option<Secret>,
    pub peer_ca: Option<Secret>,
    pub peer_tls: Option<Secret>,
    pub stateful_set: Option<StatefulSet>,
    pub pods: Vec<Pod>,
}

/// Reads all inputs of a pass. Returns `None` if the cluster does not exist or is being deleted.
///
/// # Errors
/// If any request to the API server fails.
pub async fn dereference(client: &Client, namespace: &str, name: &str) -> Result<Option<Inputs>, kube::Error> {
    let clusters: Api<MqttCluster> = Api::namespaced(client.clone(), namespace);
    let Some(cluster) = clusters.get_opt(name).await? else { return Ok(None) };
    if cluster.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let children = build::names(name);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let stateful_sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let users = ApiResource::erase::<MqttUser>(&());
    let users: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &users);
    let of_cluster = ListParams::default().fields(&format!("spec.clusterRef.name={name}"));
    let labelled = ListParams::default().labels(names::LABEL_USER);
    let (users, user_secrets, access_secret, peer_ca, peer_tls, stateful_set, pods) = tokio::try_join!(
        users.list(&of_cluster),
        secrets.list(&labelled),
        secrets.get_opt(&children.access_secret),
        secrets.get_opt(&children.peer_ca),
        secrets.get_opt(&children.peer_tls),
        stateful_sets.get_opt(&children.stateful_set),
        pods(client, namespace, name),
    )?;
    let (users, unreadable_users) = parse(users.items);
    Ok(Some(Inputs {
        cluster,
        users,
        unreadable_users,
        user_secrets: by_name(user_secrets.items),
        access_secret,
        peer_ca,
        peer_tls,
        stateful_set,
        pods,
    }))
}

/// Lists the broker pods of a cluster.
///
/// # Errors
/// If the request to the API server fails.
pub async fn pods(client: &Client, namespace: &str, name: &str) -> Result<Vec<Pod>, kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let of_cluster = ListParams::default().labels(&build::selector_text(name));
    Ok(api.list(&of_cluster).await?.items)
}

/// Parses the users, except those that are being deleted. One that cannot be parsed must not fail the pass of all
/// others, and must not be taken for deleted.
fn parse(objects: Vec<DynamicObject>) -> (Vec<MqttUser>, Vec<Candidate>) {
    let (mut users, mut unreadable) = (vec![], vec![]);
    for object in objects.into_iter().filter(|object| object.metadata.deletion_timestamp.is_none()) {
        let name = object.name_any();
        let username = object.data.pointer("/spec/username").and_then(serde_json::Value::as_str).unwrap_or(&name);
        let username = username.to_owned();
        let (uid, created) = (object.uid(), object.metadata.creation_timestamp.as_ref().map(|time| time.0));
        match object.try_parse::<MqttUser>() {
            Ok(user) => users.push(user),
            Err(error) => {
                tracing::warn!(user = %name, %error, "failed to parse a user: its access stays as it is");
                let rules = Err(error.to_string());
                let (client_id_pattern, credential) = (None, None);
                unreadable.push(Candidate {
                    object: name,
                    uid,
                    username,
                    created,
                    client_id_pattern,
                    rules,
                    credential,
                });
            }
        }
    }
    (users, unreadable)
}

fn by_name(secrets: Vec<Secret>) -> BTreeMap<String, Secret> {
    secrets.into_iter().filter_map(|secret| secret.metadata.name.clone().map(|name| (name, secret))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_user_that_cannot_be_parsed_is_kept_apart_and_the_others_are_read() {
        let user = |name: &str, action: &str| {
            serde_json::from_value(json!({
                "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"clusterRef": {"name": "mosaic"}, "username": format!("{name}-login"),
                    "acl": [{"allow": [action], "topics": ["a"]}]}
            }))
            .unwrap()
        };
        let (users, unreadable) = parse(vec![user("good", "Publish"), user("later", "Observe")]);
        assert_eq!(users.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["good"]);
        let [later] = &unreadable[..] else { panic!("{unreadable:?}") };
        assert_eq!((later.object.as_str(), later.username.as_str()), ("later", "later-login"));
        assert!(later.created.is_some() && later.rules.as_ref().unwrap_err().contains("Observe"));
    }
}
