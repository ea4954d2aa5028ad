//! The operator's admin client for one broker: gRPC over mutual TLS.
//!
//! The cluster reconcile uses it; `covey local` uses it with loopback addresses. Invariant: the client accepts a server
//! only if the cluster's authority issued its certificate *and* the certificate names the cluster's broker role.

use std::sync::Arc;
use std::time::Duration;

use covey_contract::names;
use covey_contract::proto::admin_client::AdminClient;
use covey_contract::proto::{
    AccessStatus, ApplyAccessRequest, InitializeRequest, LeaveRequest, Member, ResizeRequest, StatusReply,
    StatusRequest, TransferLeadersRequest,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint, Identity};

use crate::peer_ca::{self, Leaf};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
/// Time for moving leaderships, which the broker does one group after the other. The next pass moves the rest: a pass
/// must be short, because access changes wait for it.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a request to a broker failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to prepare the connection: {0}")]
    Prepare(String),
    #[error("failed to reach the broker: {0}")]
    Transport(#[from] tonic::transport::Error),
    #[error("the broker refused: {}", .0.message())]
    Refused(Box<tonic::Status>),
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// The operator's credentials for the brokers of one cluster.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub cluster_uid: String,
    /// Trusted certificate authorities, as PEM.
    pub ca: String,
    /// Certificate with the operator's URI, and its key.
    pub leaf: Leaf,
}

/// A connection to one broker. Cheap to clone; reconnects automatically.
#[derive(Debug, Clone)]
pub struct Client {
    inner: AdminClient<Channel>,
}

impl Client {
    /// Prepares a connection to `host:port`; the first request connects, within `timeout` and at most 1.5 s.
    ///
    /// # Errors
    /// If the host is not a valid address or the credentials cannot be parsed.
    pub fn new(host: &str, port: u16, credentials: &Credentials, timeout: Duration) -> Result<Self, Error> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let tls = ClientTlsConfig::new()
            .domain_name(names::PEER_TLS_NAME)
            .identity(Identity::from_pem(&credentials.leaf.certificate, &credentials.leaf.key));
        let endpoint = Endpoint::from_shared(format!("https://{host}:{port}"))?
            .connect_timeout(CONNECT_TIMEOUT.min(timeout))
            .timeout(timeout.max(TRANSFER_TIMEOUT))
            .tls_config_with_verifier(tls, Arc::new(BrokerVerifier::new(credentials)?))?;
        let inner = AdminClient::new(endpoint.connect_lazy()).max_decoding_message_size(16 << 20);
        Ok(Self { inner })
    }

    /// Requests the status of the node.
    ///
    /// # Errors
    /// If the broker cannot be reached, refuses, or does not answer within `timeout`.
    pub async fn status(&mut self, timeout: Duration) -> Result<StatusReply, Error> {
        Ok(self.inner.status(bounded(StatusRequest {}, timeout)).await?.into_inner())
    }

    /// Initializes the node as one of the first `members` of a cluster. Idempotent.
    ///
    /// # Errors
    /// If the broker cannot be reached, does not answer within `timeout`, is not listed, or is in another cluster.
    pub async fn initialize(&mut self, cluster_id: &str, members: Vec<Member>, timeout: Duration) -> Result<(), Error> {
        let request = InitializeRequest { cluster_id: cluster_id.to_owned(), members };
        self.inner.initialize(bounded(request, timeout)).await?;
        Ok(())
    }

    /// Sends an access document (JSON) and returns what the node enforces now: the higher revision wins.
    ///
    /// # Errors
    /// If the broker cannot be reached or does not answer within `timeout`. A document that it refuses is no error: the
    /// status that is returned says so.
    pub async fn apply_access(&mut self, document: Vec<u8>, timeout: Duration) -> Result<AccessStatus, Error> {
        let request = ApplyAccessRequest { document: document.into() };
        let reply = self.inner.apply_access(bounded(request, timeout)).await?.into_inner();
        Ok(reply.access.unwrap_or_default())
    }

    /// Moves the leadership of every group to another node, and returns how many groups the node still leads.
    ///
    /// # Errors
    /// If the broker cannot be reached or does not answer within 3 s.
    pub async fn transfer_leaders(&mut self) -> Result<u32, Error> {
        let request = bounded(TransferLeadersRequest {}, TRANSFER_TIMEOUT);
        Ok(self.inner.transfer_leaders(request).await?.into_inner().left)
    }

    /// Tells the brokers how many nodes the cluster is to have. Members with higher ordinals retire.
    ///
    /// # Errors
    /// If the broker cannot be reached, or the meta group does not answer within `timeout`.
    pub async fn resize(&mut self, nodes: u32, timeout: Duration) -> Result<(), Error> {
        self.inner.resize(bounded(ResizeRequest { nodes }, timeout)).await?;
        Ok(())
    }

    /// Removes a retiring member for good.
    ///
    /// # Errors
    /// If the broker cannot be reached, the member's epoch has not ended, or the meta group does not answer within
    /// `timeout`.
    pub async fn leave(&mut self, node_id: &str, timeout: Duration) -> Result<(), Error> {
        let request = LeaveRequest { node_id: node_id.to_owned() };
        self.inner.leave(bounded(request, timeout)).await?;
        Ok(())
    }
}

fn bounded<T>(message: T, timeout: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}

/// Verifies a certificate as rustls does, and that it names the broker role of the cluster.
#[derive(Debug)]
struct BrokerVerifier {
    inner: Arc<WebPkiServerVerifier>,
    uri: String,
}

impl BrokerVerifier {
    fn new(credentials: &Credentials) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(credentials.ca.as_bytes()) {
            let certificate = certificate.map_err(|error| Error::Prepare(error.to_string()))?;
            roots.add(certificate).map_err(|error| Error::Prepare(error.to_string()))?;
        }
        let provider = CryptoProvider::get_default()
            .cloned()
            .unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| Error::Prepare(error.to_string()))?;
        Ok(Self { inner, uri: names::broker_uri(&credentials.cluster_uid) })
    }
}

impl ServerCertVerifier for BrokerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        if peer_ca::has_uri(end_entity, &self.uri) {
            Ok(verified)
        } else {
            Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
