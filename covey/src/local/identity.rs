//! The certificate authority of a cluster and its certificates, stored in the cluster's directory.

use std::path::{Path, PathBuf};

use covey_contract::names;
use covey_operator::admin::Credentials;
use covey_operator::peer_ca::{self, Authority};
use jiff::Timestamp;

use super::directory;

/// Reason why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Directory(#[from] directory::Error),
    #[error("failed to use the authority in {}: {source}; move it aside to create a new one", path.display())]
    Unusable { path: PathBuf, source: peer_ca::Error },
    #[error(transparent)]
    Make(#[from] peer_ca::Error),
}

/// Returns the directory of the certificate that the brokers share.
pub(super) fn tls_folder(cluster: &Path) -> PathBuf {
    cluster.join("peer-tls")
}

/// Creates the authority and the certificates, or renews them if necessary. Returns the credentials with which this
/// program authenticates to brokers.
pub(super) fn ensure(cluster: &Path, uid: &str) -> Result<Credentials, Error> {
    let now = Timestamp::now();
    let authority = authority(&cluster.join("peer-ca"), uid, now)?;
    let folder = tls_folder(cluster);
    directory::make(&folder)?;
    let trusted = text(&folder.join(names::TLS_CA))?.unwrap_or_default();
    let certificate = text(&folder.join(names::TLS_CERT))?.unwrap_or_default();
    let bundle = authority.bundle(Some(&trusted));
    if !authority.vouches_for(&certificate, &names::broker_uri(uid), now)
        || !trusted.contains(authority.certificate().trim())
    {
        let leaf = authority.issue_broker(uid, now)?;
        directory::write(&folder.join(names::TLS_KEY), leaf.key.as_bytes())?;
        directory::write(&folder.join(names::TLS_CA), bundle.as_bytes())?;
        directory::write(&folder.join(names::TLS_CERT), leaf.certificate.as_bytes())?;
    }
    let leaf = authority.issue_operator(uid, now)?;
    Ok(Credentials { cluster_uid: uid.to_owned(), ca: bundle, leaf })
}

fn authority(folder: &Path, uid: &str, now: Timestamp) -> Result<Authority, Error> {
    let (certificate, key) = (folder.join(names::TLS_CERT), folder.join(names::TLS_KEY));
    // The certificate is written last, so the key exists if the certificate does.
    if let (Some(certificate), Some(key)) = (text(&certificate)?, text(&key)?) {
        let authority = Authority::from_pem(&certificate, &key);
        return authority.map_err(|source| Error::Unusable { path: folder.to_owned(), source });
    }
    directory::make(folder)?;
    let authority = Authority::generate(uid, now)?;
    directory::write(&key, authority.key().as_bytes())?;
    directory::write(&certificate, authority.certificate().as_bytes())?;
    Ok(authority)
}

fn text(path: &Path) -> Result<Option<String>, directory::Error> {
    Ok(directory::read(path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}
