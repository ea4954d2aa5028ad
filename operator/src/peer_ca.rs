//! The certificate authority for connections between brokers, and from the operator to brokers.
//!
//! The operator keeps one [`Authority`] per cluster in Secret `<name>-peer-ca`, which is never overwritten and whose
//! key is never mounted in a broker. It issues two kinds of [`Leaf`]: one that all brokers share, and one for the
//! operator. `covey local` does the same in memory. Invariant: a leaf names its role in a URI, and only this URI
//! decides what its holder may do.

use covey_contract::names;
use jiff::{Span, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, string::Ia5String,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

const CA_YEARS: i32 = 10;
const LEAF_DAYS: i32 = 365;
/// A leaf is renewed when it is valid for fewer days than this.
const RENEW_BEFORE_DAYS: i64 = 30;

/// Why a key or certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to create a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("failed to read a certificate: {0}")]
    Read(String),
    #[error("failed to compute a certificate's dates: {0}")]
    Time(#[from] jiff::Error),
}

/// A cluster's certificate authority.
pub struct Authority {
    certificate: String,
    key: KeyPair,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A certificate and its key, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf {
    pub certificate: String,
    pub key: String,
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leaf").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Authority {
    /// Creates an authority that is valid for ten years from `now`.
    ///
    /// # Errors
    /// If the key or the certificate cannot be created.
    pub fn generate(cluster_uid: &str, now: Timestamp) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = params(&format!("covey peer CA {cluster_uid}"), now, Span::new().years(CA_YEARS))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { certificate, key })
    }

    /// Reads an authority from its certificate and private key, both as PEM.
    ///
    /// # Errors
    /// If either cannot be parsed.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem(key)?;
        Issuer::from_ca_cert_pem(certificate, &key)?;
        Ok(Self { certificate: certificate.to_owned(), key })
    }

    /// Returns the certificate as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Returns the private key as PEM.
    pub fn key(&self) -> String {
        self.key.serialize_pem()
    }

    /// Issues the certificate that the brokers share: URI `covey://<uid>/broker`, DNS name `names::PEER_TLS_NAME`,
    /// valid for 365 days.
    ///
    /// # Errors
    /// If the key or the certificate cannot be created.
    pub fn issue_broker(&self, cluster_uid: &str, now: Timestamp) -> Result<Leaf, Error> {
        self.issue(&names::broker_uri(cluster_uid), Some(names::PEER_TLS_NAME), now)
    }

    /// Issues the operator's certificate: URI `covey://<uid>/operator`, valid for 365 days. It has no DNS name, so that
    /// it cannot be used as a broker's.
    ///
    /// # Errors
    /// If the key or the certificate cannot be created.
    pub fn issue_operator(&self, cluster_uid: &str, now: Timestamp) -> Result<Leaf, Error> {
        self.issue(&names::operator_uri(cluster_uid), None, now)
    }

    fn issue(&self, uri: &str, dns: Option<&str>, now: Timestamp) -> Result<Leaf, Error> {
        let key = KeyPair::generate()?;
        let mut params = params(uri, now, Span::new().days(LEAF_DAYS))?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri)?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if let Some(dns) = dns {
            params.subject_alt_names.push(SanType::DnsName(Ia5String::try_from(dns)?));
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, &self.key)?;
        let certificate = params.signed_by(&key, &issuer)?.pem();
        Ok(Leaf { certificate, key: key.serialize_pem() })
    }

    /// Returns whether this authority issued `leaf` (PEM) for `uri`, and `leaf` is valid for more than 30 days after
    /// `now`. An authority outlives its cluster's uid if its Secret is adopted or restored, so the URI must be checked.
    pub fn vouches_for(&self, leaf: &str, uri: &str, now: Timestamp) -> bool {
        let read = || -> Result<bool, Error> {
            let (leaf, ca) = (der(leaf)?, der(&self.certificate)?);
            let names_uri = has_uri(&leaf, uri);
            let (leaf, ca) = (parse(&leaf)?, parse(&ca)?);
            let left = leaf.validity().not_after.timestamp() - now.as_second();
            Ok(names_uri
                && authority_key(&leaf).is_some_and(|key| Some(key) == subject_key(&ca))
                && left > RENEW_BEFORE_DAYS * 86_400)
        };
        read().unwrap_or(false)
    }

    /// Returns the authorities that brokers trust, as PEM: this one, and the first one of `previous` if it is another.
    pub fn bundle(&self, previous: Option<&str>) -> String {
        let previous = previous.and_then(first_certificate).filter(|other| other.trim() != self.certificate.trim());
        previous.map_or_else(|| self.certificate.clone(), |other| format!("{}{other}", self.certificate))
    }
}

/// Returns whether a certificate (DER) has `uri` among its subject alternative names.
pub fn has_uri(certificate: &[u8], uri: &str) -> bool {
    let Ok(certificate) = parse(certificate) else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|name| matches!(name, GeneralName::URI(found) if *found == uri))
}

fn params(common_name: &str, now: Timestamp, validity: Span) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    let today = now.to_zoned(TimeZone::UTC);
    // Valid from the day before, because the clocks of machines differ.
    let (first, last) = (today.checked_sub(Span::new().days(1))?, today.checked_add(validity)?);
    let midnight = |date: &jiff::Zoned| {
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = midnight(&first);
    params.not_after = midnight(&last);
    Ok(params)
}

fn first_certificate(bundle: &str) -> Option<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let (first, _) = bundle.split_once(END)?;
    Some(format!("{}{END}\n", first.trim_start()))
}

fn der(pem: &str) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| Error::Read(error.to_string()))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Error> {
    X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(|error| Error::Read(error.to_string()))
}

fn authority_key<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|key| key.0),
        _ => None,
    })
}

fn subject_key<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-06-01T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn leaves_name_their_role_and_only_theirs() {
        let authority = Authority::generate("u-1", now()).unwrap();
        let broker = der(&authority.issue_broker("u-1", now()).unwrap().certificate).unwrap();
        let operator = der(&authority.issue_operator("u-1", now()).unwrap().certificate).unwrap();
        assert!(has_uri(&broker, "covey://u-1/broker") && !has_uri(&broker, "covey://u-1/operator"));
        assert!(has_uri(&operator, "covey://u-1/operator") && !has_uri(&operator, "covey://u-1/broker"));
        assert!(!has_uri(&broker, "covey://u-2/broker"));
        assert!(!has_uri(b"nonsense", "covey://u-1/broker"));
    }

    #[test]
    fn a_leaf_is_renewed_with_thirty_days_left_or_under_another_authority() {
        let authority = Authority::generate("u-1", now()).unwrap();
        let leaf = authority.issue_broker("u-1", now()).unwrap().certificate;
        let uri = names::broker_uri("u-1");
        let after = |days: i64| Timestamp::from_second(now().as_second() + days * 86_400).unwrap();
        assert!(authority.vouches_for(&leaf, &uri, now()));
        assert!(authority.vouches_for(&leaf, &uri, after(334)));
        assert!(!authority.vouches_for(&leaf, &uri, after(337)));
        assert!(!Authority::generate("u-1", now()).unwrap().vouches_for(&leaf, &uri, now()));
        assert!(!authority.vouches_for("nonsense", &uri, now()));
    }

    #[test]
    fn a_leaf_of_another_cluster_or_role_is_replaced_although_the_authority_is_the_same() {
        let authority = Authority::generate("u-1", now()).unwrap();
        let leaf = authority.issue_broker("u-1", now()).unwrap().certificate;
        assert!(!authority.vouches_for(&leaf, &names::broker_uri("u-2"), now()));
        assert!(!authority.vouches_for(&leaf, &names::operator_uri("u-1"), now()));
    }

    #[test]
    fn an_authority_survives_its_secret() {
        let authority = Authority::generate("u-1", now()).unwrap();
        let back = Authority::from_pem(authority.certificate(), &authority.key()).unwrap();
        let leaf = back.issue_broker("u-1", now()).unwrap();
        assert!(authority.vouches_for(&leaf.certificate, &names::broker_uri("u-1"), now()));
        assert!(Authority::from_pem("nonsense", &authority.key()).is_err());
    }

    #[test]
    fn a_new_authority_is_trusted_beside_the_previous_one() {
        let (old, new) = (Authority::generate("u", now()).unwrap(), Authority::generate("u", now()).unwrap());
        let bundle = new.bundle(Some(old.certificate()));
        assert!(bundle.contains(new.certificate().trim()) && bundle.contains(old.certificate().trim()));
        assert_eq!(new.bundle(Some(&new.bundle(None))), new.certificate());
    }
}
