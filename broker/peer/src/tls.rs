//! The node's certificate, key and trusted CAs, read from a folder and read again when it changes.
//!
//! Invariant: what is in use is a complete set whose key fits its certificate; a set that is not leaves the former one in
//! use. Connections that exist keep what they began with, new ones use the new set.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use covey_contract::names;
use rustls::client::Resumption;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::identity::{self, Role};

/// How often the folder is looked at.
const POLL: Duration = Duration::from_secs(5);

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("failed to read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("failed to parse {file}: {source}")]
    Pem { file: &'static str, source: rustls_pki_types::pem::Error },
    #[error("{0} holds no certificate")]
    Empty(&'static str),
    #[error("failed to use the certificates: {0}")]
    Rustls(#[from] rustls::Error),
    #[error("failed to build a verifier: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    #[error("the node's own certificate is not usable: {0}")]
    Own(#[from] identity::Error),
}

/// A cheap handle on what is in use now.
#[derive(Debug, Clone)]
pub struct Tls {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    cluster_uid: String,
    material: ArcSwap<Material>,
}

#[derive(Debug)]
struct Material {
    files: Files,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    not_after: i64,
}

#[derive(Debug, PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
    ca: Vec<u8>,
}

impl Tls {
    /// Reads the folder. Blocks on files.
    pub fn load(dir: &Path, cluster_uid: &str) -> Result<Self, TlsError> {
        let material = Files::read(dir)?.prepare(cluster_uid)?;
        let inner =
            Inner { dir: dir.into(), cluster_uid: cluster_uid.into(), material: ArcSwap::from_pointee(material) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Reads the folder again; whether something new is in use. After an error the former set still is. Blocks on files.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let files = Files::read(&self.inner.dir)?;
        if files == self.inner.material.load().files {
            return Ok(false);
        }
        self.inner.material.store(Arc::new(files.prepare(&self.inner.cluster_uid)?));
        Ok(true)
    }

    /// Follows the folder until shutdown.
    pub async fn follow(self, shutdown: CancellationToken) {
        let mut problem = None;
        while shutdown.run_until_cancelled(tokio::time::sleep(POLL)).await.is_some() {
            let tls = self.clone();
            let outcome = match tokio::task::spawn_blocking(move || tls.reload()).await {
                Ok(outcome) => outcome.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match outcome {
                Ok(true) => info!(not_after = self.not_after(), "peer certificate reloaded"),
                Ok(false) => {}
                Err(ref error) if problem.as_ref() == Some(error) => {}
                Err(ref error) => warn!(%error, "failed to reload the peer certificate, the former one stays in use"),
            }
            problem = outcome.err();
        }
    }

    /// When the certificate in use ends, in seconds since the epoch.
    pub fn not_after(&self) -> i64 {
        self.inner.material.load().not_after
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        self.inner.material.load().client.clone()
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        self.inner.material.load().server.clone()
    }

    /// The URI that a holder of the role carries in this cluster.
    pub(super) fn uri(&self, role: Role) -> String {
        role.uri(&self.inner.cluster_uid)
    }
}

impl Files {
    fn read(dir: &Path) -> Result<Self, TlsError> {
        let read = |file: &str| {
            let path = dir.join(file);
            std::fs::read(&path).map_err(|source| TlsError::Read { path, source })
        };
        Ok(Self { certificate: read(names::TLS_CERT)?, key: read(names::TLS_KEY)?.into(), ca: read(names::TLS_CA)? })
    }

    fn prepare(self, cluster_uid: &str) -> Result<Material, TlsError> {
        let chain = certificates(&self.certificate, names::TLS_CERT)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|source| TlsError::Pem { file: names::TLS_KEY, source })?;
        let mut roots = RootCertStore::empty();
        for ca in certificates(&self.ca, names::TLS_CA)? {
            roots.add(ca)?;
        }
        identity::check_uri(chain.first(), &Role::Broker.uri(cluster_uid))?;
        let own = chain.first().ok_or(TlsError::Empty(names::TLS_CERT))?;
        let not_after = identity::not_after(own)?;
        let client = build_client(Arc::new(roots.clone()), chain.clone(), key.clone_key())?;
        let server = build_server(Arc::new(roots), chain, key)?;
        Ok(Material { files: self, client: Arc::new(client), server: Arc::new(server), not_after })
    }
}

fn certificates(pem: &[u8], file: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|source| TlsError::Pem { file, source })?;
    if certificates.is_empty() { Err(TlsError::Empty(file)) } else { Ok(certificates) }
}

// No session is resumed on either side: a connection always shows a certificate that is trusted now.

fn build_client(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build()?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn build_server(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
