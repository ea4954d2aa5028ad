//! The node's certificate, key and trusted CAs, read from a directory and reloaded when it changes.
//!
//! Invariant: the set in use is complete and its key fits its certificate; an unusable set leaves the former one in
//! use. Existing connections keep the set that they started with, new ones use the new set.

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

/// Interval between reads of the directory.
const POLL: Duration = Duration::from_secs(5);

/// Reason why the files in a directory cannot be used.
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

/// Handle on the certificates in use; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tls {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Directory of the files.
    dir: PathBuf,
    /// Uid of the cluster, which the URIs of its certificates contain.
    cluster_uid: String,
    /// The set in use.
    material: ArcSwap<Material>,
}

/// One usable set.
#[derive(Debug)]
struct Material {
    /// Content of the files, to detect changes.
    files: Files,
    /// Configuration of outgoing connections.
    client: Arc<ClientConfig>,
    /// Configuration of incoming connections.
    server: Arc<ServerConfig>,
    /// End of the certificate's validity, in seconds since the Unix epoch.
    not_after: i64,
}

/// Content of the PEM files.
#[derive(Debug, PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
    ca: Vec<u8>,
}

impl Tls {
    /// Reads the directory. Blocks on file I/O.
    ///
    /// # Errors
    /// Fails if a file is missing or unusable, or if the certificate does not carry the URI of a broker of this
    /// cluster.
    pub fn load(dir: &Path, cluster_uid: &str) -> Result<Self, TlsError> {
        let material = Files::read(dir)?.prepare(cluster_uid)?;
        let inner =
            Inner { dir: dir.into(), cluster_uid: cluster_uid.into(), material: ArcSwap::from_pointee(material) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Reads the directory again and returns whether a new set is in use. Blocks on file I/O.
    ///
    /// # Errors
    /// Fails as [`Tls::load`] does. The former set stays in use.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let files = Files::read(&self.inner.dir)?;
        if files == self.inner.material.load().files {
            return Ok(false);
        }
        self.inner.material.store(Arc::new(files.prepare(&self.inner.cluster_uid)?));
        Ok(true)
    }

    /// Polls the directory until shutdown and reloads it when it changes. The same problem is logged once.
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

    /// Returns the end of the validity of the certificate in use, in seconds since the Unix epoch.
    pub fn not_after(&self) -> i64 {
        self.inner.material.load().not_after
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        self.inner.material.load().client.clone()
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        self.inner.material.load().server.clone()
    }

    /// Returns the URI that certificates of the role carry in this cluster.
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

// Neither side resumes TLS sessions, so that each connection presents a certificate that is trusted now.

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
