//! The admin client accepts only the cluster's brokers: authority, DNS name and role must all be right.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use covey_contract::proto::admin_server::{Admin, AdminServer};
use covey_contract::proto::{
    ApplyAccessReply, ApplyAccessRequest, InitializeReply, InitializeRequest, LeaveReply, LeaveRequest, ResizeReply,
    ResizeRequest, StatusReply, StatusRequest, TransferLeadersReply, TransferLeadersRequest,
};
use covey_operator::admin::{Client, Credentials};
use covey_operator::peer_ca::{Authority, Leaf};
use jiff::Timestamp;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

const TIMEOUT: Duration = Duration::from_secs(5);

struct Node;

#[tonic::async_trait]
impl Admin for Node {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(StatusReply { node_id: "n".into(), ..StatusReply::default() }))
    }

    async fn initialize(&self, _: Request<InitializeRequest>) -> Result<Response<InitializeReply>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn apply_access(&self, _: Request<ApplyAccessRequest>) -> Result<Response<ApplyAccessReply>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn transfer_leaders(
        &self,
        _: Request<TransferLeadersRequest>,
    ) -> Result<Response<TransferLeadersReply>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn resize(&self, _: Request<ResizeRequest>) -> Result<Response<ResizeReply>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn leave(&self, _: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        Err(Status::unimplemented("not asked here"))
    }
}

/// Serves the admin service with this certificate and returns the port.
fn serve(leaf: &Leaf, ca: &Authority) -> u16 {
    let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let port = incoming.local_addr().unwrap().port();
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(&leaf.certificate, &leaf.key))
        .client_ca_root(Certificate::from_pem(ca.certificate()));
    let server = Server::builder().tls_config(tls).unwrap().add_service(AdminServer::new(Node));
    tokio::spawn(server.serve_with_incoming(incoming));
    port
}

async fn asks(port: u16, ca: &Authority, uid: &str) -> bool {
    let leaf = ca.issue_operator(uid, Timestamp::now()).unwrap();
    let credentials = Credentials { cluster_uid: uid.into(), ca: ca.certificate().into(), leaf };
    let mut client = Client::new("127.0.0.1", port, &credentials, TIMEOUT).unwrap();
    client.status(TIMEOUT).await.is_ok()
}

#[tokio::test]
async fn only_a_broker_of_the_cluster_is_believed() {
    let now = Timestamp::now();
    let ca = Authority::generate("u-1", now).unwrap();
    let other = Authority::generate("u-1", now).unwrap();
    let broker = serve(&ca.issue_broker("u-1", now).unwrap(), &ca);
    assert!(asks(broker, &ca, "u-1").await);
    assert!(!asks(broker, &other, "u-1").await, "another authority");
    let foreign = serve(&ca.issue_broker("u-2", now).unwrap(), &ca);
    assert!(!asks(foreign, &ca, "u-1").await, "the role of another cluster under the same authority");
    let operator = serve(&ca.issue_operator("u-1", now).unwrap(), &ca);
    assert!(!asks(operator, &ca, "u-1").await, "an operator's certificate is not a broker's");
}
