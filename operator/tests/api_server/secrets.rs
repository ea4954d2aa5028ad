//! What is written over Secrets that exist already.

use covey_contract::access::{Document, FORMAT};
use covey_contract::names;
use covey_operator::cluster::validate::basics;
use covey_operator::cluster::{apply, build};
use covey_operator::peer_ca::{Authority, has_uri};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;

use super::passes::{context, create_cluster, create_user, document, pass};
use super::{clusters, started, users};

fn secrets(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), "default")
}

async fn text(client: &Client, name: &str, key: &str) -> String {
    let data = secrets(client).get(name).await.unwrap().data.unwrap();
    String::from_utf8(data[key].0.clone()).unwrap()
}

/// A restore of Secrets into another Kubernetes gives the cluster another uid than its certificate has.
#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_certificate_of_another_cluster_uid_is_issued_anew() {
    let server = started().await;
    let client = &server.client;
    create_cluster(client, json!({"replicas": 1})).await;
    pass(&context(client)).await;
    let authority = Authority::from_pem(
        &text(client, "prod-peer-ca", names::TLS_CERT).await,
        &text(client, "prod-peer-ca", names::TLS_KEY).await,
    )
    .unwrap();
    let former = authority.issue_broker("former-uid", Timestamp::now()).unwrap();
    let data = json!({
        names::TLS_CERT: ByteString(former.certificate.into_bytes()), names::TLS_KEY: ByteString(former.key.into_bytes())
    });
    let patch = Patch::Merge(json!({"data": data}));
    secrets(client).patch("prod-peer-tls", &PatchParams::default(), &patch).await.unwrap();

    pass(&context(client)).await;
    let certificate = text(client, "prod-peer-tls", names::TLS_CERT).await;
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let uid = clusters(client).get("prod").await.unwrap().uid().unwrap();
    assert!(has_uri(&certificate, &names::broker_uri(&uid)), "a broker does not start with the former certificate");
}

/// The operator of an unreachable machine may still be in a pass when its successor has written a later revision.
#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_late_write_does_not_put_an_earlier_access_revision_over_a_later_one() {
    let server = started().await;
    let client = &server.client;
    create_cluster(client, json!({"replicas": 1})).await;
    pass(&context(client)).await;
    let cluster = basics(&clusters(client).get("prod").await.unwrap());
    let read = secrets(client).get("prod-access").await.unwrap();
    let revision = |revision| build::access_secret(&cluster, &Document { format: FORMAT, revision, users: vec![] });

    apply::apply_secret(client, &revision(8), Some(&read)).await.unwrap();
    let error = apply::apply_secret(client, &revision(7), Some(&read)).await.unwrap_err().to_string();
    assert!(error.contains("failed to apply Secret prod-access") && error.contains("modified"), "{error}");
    assert_eq!(document(client).await.revision, 8);

    let read = secrets(client).get("prod-access").await.unwrap();
    apply::apply_secret(client, &revision(9), Some(&read)).await.unwrap();
    assert_eq!(document(client).await.revision, 9, "who read it last may write");
}

#[tokio::test]
#[ignore = "needs KUBERNETES_BIN"]
async fn a_generated_password_is_deleted_once_another_one_is_in_force() {
    let server = started().await;
    let client = &server.client;
    create_cluster(client, json!({"replicas": 1})).await;
    create_user(client, "press", json!({})).await;
    create_user(client, "worker", json!({})).await;
    let context = context(client);
    pass(&context).await;
    let generated = document(client).await.users;
    let password = json!({"generate": null, "secretRef": {"name": "pin"}});
    let spec = Patch::Merge(json!({"spec": {"authentication": {"password": password}}}));
    users(client).patch("press", &PatchParams::default(), &spec).await.unwrap();
    pass(&context).await;
    assert_eq!(document(client).await.users, generated, "the new Secret does not exist");
    assert!(secrets(client).get_opt("press-mqtt").await.unwrap().is_some(), "its password is in force");

    let pin = json!({
        "metadata": {"name": "pin", "labels": {"covey.io/user": "press"}}, "stringData": {"password": "hunter2"}
    });
    secrets(client).create(&PostParams::default(), &serde_json::from_value(pin).unwrap()).await.unwrap();
    pass(&context).await;
    assert_ne!(document(client).await.users, generated);
    assert!(secrets(client).get_opt("press-mqtt").await.unwrap().is_none(), "it admits nobody");
    assert!(secrets(client).get_opt("pin").await.unwrap().is_some());
    assert!(secrets(client).get_opt("worker-mqtt").await.unwrap().is_some(), "of a user that still generates");
}
