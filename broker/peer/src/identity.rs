//! Identity of the holder of a certificate: the URI in its subject alternative name.

use covey_contract::names;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Role of the holder of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A broker of the cluster.
    Broker,
    /// The operator.
    Operator,
}

impl Role {
    /// Returns the URI that the certificate of this role carries in the cluster with this uid.
    pub fn uri(self, cluster_uid: &str) -> String {
        match self {
            Self::Broker => names::broker_uri(cluster_uid),
            Self::Operator => names::operator_uri(cluster_uid),
        }
    }
}

/// Reason why a certificate is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("peer presented no certificate")]
    Missing,
    #[error("failed to parse the certificate: {0}")]
    Parse(String),
    #[error("certificate carries {found:?}, not {wanted:?}")]
    Uri { found: Vec<String>, wanted: String },
}

/// Checks that the certificate carries `wanted` and no other `covey://` URI, so that a holder has exactly one role.
pub(super) fn check_uri(certificate: Option<&CertificateDer<'_>>, wanted: &str) -> Result<(), Error> {
    let certificate = parse(certificate.ok_or(Error::Missing)?)?;
    let names = certificate.subject_alternative_name().map_err(|error| Error::Parse(error.to_string()))?;
    let found: Vec<String> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with("covey://") => Some((*uri).to_owned()),
            _ => None,
        })
        .collect();
    if found == [wanted] { Ok(()) } else { Err(Error::Uri { found, wanted: wanted.to_owned() }) }
}

/// Returns the end of the certificate's validity, in seconds since the Unix epoch.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Result<i64, Error> {
    Ok(parse(certificate)?.validity().not_after.timestamp())
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    X509Certificate::from_der(certificate).map(|(_, parsed)| parsed).map_err(|error| Error::Parse(error.to_string()))
}
