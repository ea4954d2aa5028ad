//! Reconciles an `MqttUser` whose cluster does not exist. The reconcile of a cluster handles the users of clusters that
//! exist, all at once, because they form one document.

use std::sync::Arc;

use covey_crds::condition::{READY, reason};
use covey_crds::{MqttCluster, MqttUser, MqttUserStatus};
use jiff::Timestamp;
use kube::api::PostParams;
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt as _};

use super::credentials;
use crate::conditions::{Draft, merge};
use crate::context::Context;

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to update the user: {0}")]
pub struct Error(#[from] kube::Error);

/// Sets reason `ClusterNotFound` if the user's cluster does not exist.
///
/// # Errors
/// If a request to the API server fails.
pub async fn reconcile(user: &MqttUser, context: &Arc<Context>) -> Result<Action, Error> {
    let namespace = user.namespace().unwrap_or_default();
    let clusters: Api<MqttCluster> = Api::namespaced(context.client.clone(), &namespace);
    if clusters.get_metadata_opt(&user.spec.cluster_ref.name).await?.is_some() {
        return Ok(Action::await_change());
    }
    let users: Api<MqttUser> = Api::namespaced(context.client.clone(), &namespace);
    let Some(mut live) = users.get_opt(&user.name_any()).await? else { return Ok(Action::await_change()) };
    let status = status(&live, Timestamp::now());
    if live.status.as_ref() != Some(&status) {
        live.status = Some(status);
        users.replace_status(&live.name_any(), &PostParams::default(), &live).await?;
    }
    Ok(Action::await_change())
}

fn status(user: &MqttUser, now: Timestamp) -> MqttUserStatus {
    let before = user.status.clone().unwrap_or_default();
    let cluster = &user.spec.cluster_ref.name;
    let message = format!("MqttCluster {cluster} does not exist in this namespace");
    let draft = Draft::new(READY, Some(false), reason::CLUSTER_NOT_FOUND, message);
    MqttUserStatus {
        observed_generation: user.metadata.generation,
        secret: Some(credentials::secret_name(user)),
        conditions: merge(&before.conditions, vec![draft], user.metadata.generation, now),
        ..MqttUserStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::user;

    #[test]
    fn a_user_without_a_cluster_says_so_once() {
        let mut user = user("a", "acl: []");
        let first = status(&user, Timestamp::UNIX_EPOCH);
        assert_eq!(first.conditions[0].reason, "ClusterNotFound");
        assert!(first.conditions[0].message.contains("MqttCluster mosaic"));
        user.status = Some(first.clone());
        assert_eq!(status(&user, Timestamp::from_second(99).unwrap()), first);
    }
}
