//! Creates the cluster's peer authority, and issues and renews its certificates.
//!
//! The reconcile calls [`ensure`] before it connects to any node. Invariant: `<name>-peer-ca` is never overwritten. If
//! it is lost, brokers trust the old authority beside the new one until the next renewal.

use covey_contract::names;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use super::apply;
use super::build;
use super::dereference::Inputs;
use super::ownership::{Ownership, Taken, ownership_of};
use super::validate::Basics;
use crate::admin::Credentials;
use crate::peer_ca::{self, Authority};

/// Why the certificates could not be ensured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Apply(#[from] apply::Error),
    #[error("failed to read Secret {name}: {source}")]
    Read { name: String, source: Box<kube::Error> },
    #[error("Secret {name} holds no usable certificate authority: {source}; delete it to get a new one")]
    Unusable { name: String, source: peer_ca::Error },
    #[error(transparent)]
    Make(#[from] peer_ca::Error),
}

impl From<Error> for apply::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Apply(error) => error,
            other => Self::Missing(other.to_string()),
        }
    }
}

/// Ensures that the authority and the brokers' certificate exist, and returns the operator's credentials for the
/// brokers. `known` is returned as it is while its certificate is for this cluster and valid for more than 30 days, and
/// the trusted authorities are the same.
///
/// # Errors
/// If a Secret cannot be read or written, or the authority's Secret belongs to another object or is unusable.
pub(crate) async fn ensure(
    client: &Client,
    cluster: &Basics,
    inputs: &Inputs,
    known: Option<Credentials>,
    now: Timestamp,
) -> Result<Credentials, Error> {
    let authority = authority(client, cluster, inputs.peer_ca.as_ref(), now).await?;
    let bundle = brokers(client, cluster, &authority, inputs.peer_tls.as_ref(), now).await?;
    if let Some(known) = known
        && known.ca == bundle
        && authority.vouches_for(&known.leaf.certificate, &names::operator_uri(&cluster.uid), now)
    {
        return Ok(known);
    }
    let leaf = authority.issue_operator(&cluster.uid, now)?;
    Ok(Credentials { cluster_uid: cluster.uid.clone(), ca: bundle, leaf })
}

async fn authority(
    client: &Client,
    cluster: &Basics,
    live: Option<&Secret>,
    now: Timestamp,
) -> Result<Authority, Error> {
    if let Some(secret) = live {
        return read_authority(client, cluster, secret).await;
    }
    let authority = Authority::generate(&cluster.uid, now)?;
    if apply::create_secret(client, &build::peer_ca_secret(cluster, &authority)).await?.is_some() {
        return Ok(authority);
    }
    let name = build::names_of(cluster).peer_ca;
    let api: Api<Secret> = Api::namespaced(client.clone(), &cluster.namespace);
    let secret = api.get(&name).await.map_err(|source| Error::Read { name, source: Box::new(source) })?;
    read_authority(client, cluster, &secret).await
}

async fn read_authority(client: &Client, cluster: &Basics, secret: &Secret) -> Result<Authority, Error> {
    let name = build::names_of(cluster).peer_ca;
    let parse = || {
        let (certificate, key) = (text(secret, names::TLS_CERT), text(secret, names::TLS_KEY));
        Authority::from_pem(&certificate, &key).map_err(|source| Error::Unusable { name: name.clone(), source })
    };
    let wanted = build::peer_ca_metadata(cluster);
    match ownership_of(&wanted, Some(secret)) {
        Ownership::Taken(holder) => {
            Err(apply::Error::Taken(Taken { kind: "Secret", name, holder, owner: "cluster" }).into())
        }
        Ownership::Orphan { .. } => {
            let authority = parse()?;
            apply::adopt_secret(client, &wanted, secret).await?;
            Ok(authority)
        }
        Ownership::Owned { .. } | Ownership::Free => parse(),
    }
}

/// Issues the brokers' certificate anew if it ends soon or is for another cluster uid. Returns the authorities that the
/// brokers trust, as PEM.
async fn brokers(
    client: &Client,
    cluster: &Basics,
    authority: &Authority,
    live: Option<&Secret>,
    now: Timestamp,
) -> Result<String, Error> {
    // A certificate contains the cluster's uid, so one that this cluster does not own cannot be used.
    let wanted = build::peer_tls_metadata(cluster);
    let own = live.filter(|secret| matches!(ownership_of(&wanted, Some(*secret)), Ownership::Owned { .. }));
    let trusted = own.map(|secret| text(secret, names::TLS_CA)).unwrap_or_default();
    let certificate = own.map(|secret| text(secret, names::TLS_CERT)).unwrap_or_default();
    let uri = names::broker_uri(&cluster.uid);
    if authority.vouches_for(&certificate, &uri, now) && trusted.contains(authority.certificate().trim()) {
        return Ok(trusted);
    }
    let leaf = authority.issue_broker(&cluster.uid, now)?;
    let bundle = authority.bundle(Some(&trusted));
    apply::apply_secret(client, &build::peer_tls_secret(cluster, &leaf, &bundle), live).await?;
    Ok(bundle)
}

fn text(secret: &Secret, key: &str) -> String {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice()).unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}
