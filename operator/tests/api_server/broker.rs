//! A fake node: its admin service over real gRPC and mutual TLS, without a broker. Its pod has a loopback address,
//! where the operator connects to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use covey_contract::access::Document;
use covey_contract::names;
use covey_contract::proto::admin_server::{Admin, AdminServer};
use covey_contract::proto::{
    AccessStatus, ApplyAccessReply, ApplyAccessRequest, InitializeReply, InitializeRequest, LeaveReply, LeaveRequest,
    ResizeReply, ResizeRequest, StatusReply, StatusRequest, TransferLeadersReply, TransferLeadersRequest,
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// State of a fake node, and the requests that it received.
#[derive(Debug, Default, Clone)]
pub(crate) struct State {
    pub(crate) ordinal: u32,
    pub(crate) node_id: String,
    pub(crate) cluster_id: String,
    pub(crate) initialized: Vec<InitializeRequest>,
    pub(crate) access: AccessStatus,
    pub(crate) handed: Vec<u64>,
    /// Names of the users in the document that the node enforces.
    pub(crate) users: Vec<String>,
    /// Number of nodes that the cluster is to have, as the operator has told this node; 0 before.
    size: u32,
}

/// A fake node that runs until it is dropped.
pub(crate) struct Node {
    pub(crate) state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Service(Arc<Mutex<State>>);

#[tonic::async_trait]
impl Admin for Service {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let state = self.0.lock();
        Ok(Response::new(StatusReply {
            version: "0.0.1".into(),
            node_id: state.node_id.clone(),
            ordinal: state.ordinal,
            cluster_id: state.cluster_id.clone(),
            ready: !state.cluster_id.is_empty(),
            member: !state.cluster_id.is_empty(),
            meta_leader: if state.cluster_id.is_empty() { String::new() } else { "disk-0".into() },
            access: Some(state.access.clone()),
            cluster_size: state.size,
            ..StatusReply::default()
        }))
    }

    async fn initialize(&self, request: Request<InitializeRequest>) -> Result<Response<InitializeReply>, Status> {
        let request = request.into_inner();
        let mut state = self.0.lock();
        if !request.members.iter().any(|member| member.node_id == state.node_id) {
            return Err(Status::failed_precondition("not listed"));
        }
        state.cluster_id.clone_from(&request.cluster_id);
        state.initialized.push(request);
        Ok(Response::new(InitializeReply {}))
    }

    async fn apply_access(&self, request: Request<ApplyAccessRequest>) -> Result<Response<ApplyAccessReply>, Status> {
        let document = Document::parse(&request.into_inner().document)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut state = self.0.lock();
        if document.revision > state.access.revision {
            state.access = AccessStatus {
                revision: document.revision,
                hash: document.hash(),
                users: u32::try_from(document.users.len()).unwrap(),
                ..AccessStatus::default()
            };
            state.handed.push(document.revision);
            state.users = document.users.iter().map(|user| user.name.clone()).collect();
        }
        Ok(Response::new(ApplyAccessReply { access: Some(state.access.clone()) }))
    }

    async fn transfer_leaders(
        &self,
        _: Request<TransferLeadersRequest>,
    ) -> Result<Response<TransferLeadersReply>, Status> {
        Ok(Response::new(TransferLeadersReply { left: 0 }))
    }

    async fn resize(&self, request: Request<ResizeRequest>) -> Result<Response<ResizeReply>, Status> {
        self.0.lock().size = request.into_inner().nodes;
        Ok(Response::new(ResizeReply {}))
    }

    async fn leave(&self, _: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        Err(Status::failed_precondition("not in these tests"))
    }
}

/// Starts node `ordinal` of cluster `prod` with the certificate that brokers mount, and creates its pod.
pub(crate) async fn start(client: &Client, ordinal: u32, cluster_id: &str) -> Node {
    start_in(client, "prod", ordinal, cluster_id, &format!("127.77.0.{}", ordinal + 1)).await
}

/// Starts node `ordinal` of a cluster. `ip` is a loopback address that nothing else uses, because the fake nodes listen on
/// the ports of real nodes.
pub(crate) async fn start_in(client: &Client, cluster: &str, ordinal: u32, cluster_id: &str, ip: &str) -> Node {
    let secret =
        Api::<Secret>::namespaced(client.clone(), "default").get(&format!("{cluster}-peer-tls")).await.unwrap();
    let data: BTreeMap<String, Vec<u8>> = secret.data.unwrap().into_iter().map(|(key, value)| (key, value.0)).collect();
    let state =
        State { ordinal, node_id: format!("disk-{ordinal}"), cluster_id: cluster_id.into(), ..State::default() };
    let state = Arc::new(Mutex::new(state));
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(&data[names::TLS_CERT], &data[names::TLS_KEY]))
        .client_ca_root(Certificate::from_pem(&data[names::TLS_CA]));
    let address = format!("{ip}:{}", names::PORT_ADMIN).parse().unwrap();
    let service = AdminServer::new(Service(Arc::clone(&state)));
    let incoming = tonic::transport::server::TcpIncoming::bind(address).unwrap();
    let task = tokio::spawn(async move {
        let server = Server::builder().tls_config(tls).unwrap().add_service(service);
        server.serve_with_incoming(incoming).await.unwrap();
    });
    make_pod(client, cluster, ordinal, ip).await;
    Node { state, task }
}

async fn make_pod(client: &Client, cluster: &str, ordinal: u32, ip: &str) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let name = format!("{cluster}-{ordinal}");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {
            names::LABEL_CLUSTER: cluster, "app.kubernetes.io/component": "broker",
            "statefulset.kubernetes.io/pod-name": name
        }},
        "spec": {"containers": [{"name": "broker", "image": "none"}]}
    }))
    .unwrap();
    if pods.get_opt(&name).await.unwrap().is_none() {
        pods.create(&PostParams::default(), &pod).await.unwrap();
    }
    let status = json!({"status": {
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True"}]
    }});
    pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}
