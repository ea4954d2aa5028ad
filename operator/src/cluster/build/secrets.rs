//! Builds the cluster's Secrets: the access document of record, the peer authority, the brokers' shared certificate.

use std::collections::BTreeMap;

use covey_contract::access::Document;
use covey_contract::names;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use super::{Owner, metadata, names_of};
use crate::peer_ca::{Authority, Leaf};

/// Builds the Secret that records the access document.
pub fn access_secret<'a>(cluster: impl Into<Owner<'a>>, document: &Document) -> Secret {
    let cluster = cluster.into();
    let data = document.to_files().into_iter().map(|(key, bytes)| (key, ByteString(bytes)));
    secret(cluster, names_of(cluster).access_secret, "Opaque", data.collect())
}

/// Builds the Secret of the peer authority. It is created once and never overwritten; no pod mounts it.
pub fn peer_ca_secret<'a>(cluster: impl Into<Owner<'a>>, authority: &Authority) -> Secret {
    let cluster = cluster.into();
    let data = [(names::TLS_CERT, authority.certificate().to_owned()), (names::TLS_KEY, authority.key())];
    secret(cluster, names_of(cluster).peer_ca, "kubernetes.io/tls", bytes(data))
}

/// Returns the authority's Secret without data, for its name, labels and owner.
pub fn peer_ca_metadata<'a>(cluster: impl Into<Owner<'a>>) -> Secret {
    let cluster = cluster.into();
    Secret { metadata: metadata(cluster, names_of(cluster).peer_ca), ..Secret::default() }
}

/// Returns the Secret that every broker mounts without data, for its name, labels and owner.
pub fn peer_tls_metadata<'a>(cluster: impl Into<Owner<'a>>) -> Secret {
    let cluster = cluster.into();
    Secret { metadata: metadata(cluster, names_of(cluster).peer_tls), ..Secret::default() }
}

/// Returns the Secret of record without data, for its name, labels and owner.
pub fn access_metadata<'a>(cluster: impl Into<Owner<'a>>) -> Secret {
    let cluster = cluster.into();
    Secret { metadata: metadata(cluster, names_of(cluster).access_secret), ..Secret::default() }
}

/// Builds the Secret that every broker mounts: certificate, key, and the trusted authorities in `bundle`, all as PEM.
pub fn peer_tls_secret<'a>(cluster: impl Into<Owner<'a>>, leaf: &Leaf, bundle: &str) -> Secret {
    let cluster = cluster.into();
    let data = [
        (names::TLS_CERT, leaf.certificate.clone()),
        (names::TLS_KEY, leaf.key.clone()),
        (names::TLS_CA, bundle.to_owned()),
    ];
    secret(cluster, names_of(cluster).peer_tls, "kubernetes.io/tls", bytes(data))
}

fn bytes<const N: usize>(data: [(&str, String); N]) -> BTreeMap<String, ByteString> {
    data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect()
}

fn secret(cluster: Owner<'_>, name: String, type_: &str, data: BTreeMap<String, ByteString>) -> Secret {
    Secret { metadata: metadata(cluster, name), type_: Some(type_.to_owned()), data: Some(data), ..Secret::default() }
}
