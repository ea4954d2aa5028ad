//! Builds the brokers' ServiceAccount, which has no permissions and no token.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::{ValidatedCluster, metadata, names_of};

pub(super) fn build(cluster: &ValidatedCluster) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(cluster, names_of(cluster).service_account),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
