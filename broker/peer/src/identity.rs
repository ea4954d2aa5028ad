//! Who a certificate says that its holder is.

use covey_contract::names;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// What the holder of a certificate may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Broker,
    Operator,
}

impl Role {
    /// The URI that the certificate has to carry.
    pub fn uri(self, cluster_uid: &str) -> String {
        match self {
            Self::Broker => names::broker_uri(cluster_uid),
            Self::Operator => names::operator_uri(cluster_uid),
        }
    }
}

/// Why a certificate is not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("peer presented no certificate")]
    Missing,
    #[error("failed to parse the certificate: {0}")]
    Parse(String),
    #[error("certificate carries {found:?}, not {wanted:?}")]
    Uri { found: Vec<String>, wanted: String },
}

/// Checks that the certificate carries `wanted` and no other identity of this scheme: nobody is two roles.
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

/// End of the certificate's validity, in seconds since the epoch.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Result<i64, Error> {
    Ok(parse(certificate)?.validity().not_after.timestamp())
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    X509Certificate::from_der(certificate).map(|(_, parsed)| parsed).map_err(|error| Error::Parse(error.to_string()))
}
