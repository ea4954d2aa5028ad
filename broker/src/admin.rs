//! The admin gRPC service, through which the operator reads and controls this node.

use std::collections::BTreeSet;
use std::sync::Arc;

use covey_contract::proto::admin_server::AdminServer;
use covey_contract::proto::{self, admin_server::Admin};
use covey_log::space::Space;
use covey_node::{Membership, Node, ResizeError};
use covey_raft::MAX_MESSAGE;
use covey_types::{GroupId, NodeId};
use tonic::{Request, Response, Status};

/// Parts of the service that do not come from the node.
pub trait AdminBackend: Send + Sync + 'static {
    /// Returns the names of the readiness checks that fail.
    fn failing_checks(&self) -> Vec<String>;
    /// Returns whether the broker is disconnecting its clients in order to stop.
    fn is_draining(&self) -> bool;
    /// Returns the enforced and the last refused access revision.
    fn access(&self) -> proto::AccessStatus;
    /// Enforces a JSON document if its revision is higher than the one in force. Returns the resulting status.
    fn apply_access(&self, document: bytes::Bytes) -> futures::future::BoxFuture<'_, proto::AccessStatus>;
    /// Returns the space on the data volume; `None` if it cannot be read.
    fn space(&self) -> Option<Space>;
}

/// Implementation of the admin service.
pub struct AdminService {
    /// The node that is reported on.
    pub node: Arc<Node>,
    /// Membership of the node, which `Initialize`, `Resize` and `Leave` change.
    pub membership: Arc<Membership>,
    /// The parts that do not come from the node.
    pub backend: Arc<dyn AdminBackend>,
}

impl std::fmt::Debug for AdminService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminService").field("node", &self.node).finish_non_exhaustive()
    }
}

impl AdminService {
    /// Returns the gRPC routes of the admin port.
    pub fn into_routes(self) -> tonic::service::Routes {
        tonic::service::Routes::new(AdminServer::new(self).max_decoding_message_size(MAX_MESSAGE))
    }

    fn status_now(&self) -> proto::StatusReply {
        let (node, identity) = (&self.node, self.membership.identity());
        let failing_checks = self.backend.failing_checks();
        let space = self.backend.space();
        let meta_leader = node.leader_of(GroupId::META);
        let totals = node.durable_totals();
        let behind = node.voters_behind();
        proto::StatusReply {
            version: env!("CARGO_PKG_VERSION").into(),
            node_id: identity.node().to_string(),
            ordinal: identity.ordinal().get(),
            cluster_id: identity.cluster().map(|cluster| cluster.to_string()).unwrap_or_default(),
            incarnation: identity.incarnation(),
            ready: failing_checks.is_empty(),
            failing_checks,
            member: node.is_member(),
            draining: self.backend.is_draining(),
            access: Some(self.backend.access()),
            connections: node.sessions_here() as u64,
            sessions: (totals.online + totals.offline) as u64,
            retained: node.retained_size().0 as u64,
            storage_free_bytes: space.as_ref().map_or(0, |space| space.free),
            storage_capacity_bytes: space.as_ref().map_or(0, |space| space.capacity),
            meta_leader: meta_leader.map(|node| node.to_string()).unwrap_or_default(),
            groups_out_of_sync: count(behind.len()),
            voters_behind: behind
                .into_values()
                .flatten()
                .collect::<BTreeSet<_>>()
                .iter()
                .map(NodeId::to_string)
                .collect(),
            groups_led: count(node.groups_led().count()),
            groups_changing: count(node.groups_changing().count()),
            cluster_size: node.cluster_size().unwrap_or_default(),
            clients_by_user: node.clients_by_user(),
            members: node
                .members_by_ordinal()
                .into_iter()
                .map(|(ordinal, node)| proto::Member { ordinal: ordinal.get(), node_id: node.to_string() })
                .collect(),
            groups: node
                .groups_held()
                .map(|group| proto::GroupReplica {
                    group: group.get().into(),
                    has_leader: node.leader_of(group).is_some(),
                })
                .collect(),
        }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _: Request<proto::StatusRequest>) -> Result<Response<proto::StatusReply>, Status> {
        Ok(Response::new(self.status_now()))
    }

    async fn initialize(
        &self,
        request: Request<proto::InitializeRequest>,
    ) -> Result<Response<proto::InitializeReply>, Status> {
        let formed = self.membership.initialize(request.get_ref()).await;
        formed.map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(proto::InitializeReply {}))
    }

    async fn apply_access(
        &self,
        request: Request<proto::ApplyAccessRequest>,
    ) -> Result<Response<proto::ApplyAccessReply>, Status> {
        let access = self.backend.apply_access(request.into_inner().document).await;
        Ok(Response::new(proto::ApplyAccessReply { access: Some(access) }))
    }

    async fn transfer_leaders(
        &self,
        _: Request<proto::TransferLeadersRequest>,
    ) -> Result<Response<proto::TransferLeadersReply>, Status> {
        self.node.transfer_leaders().await;
        Ok(Response::new(proto::TransferLeadersReply { left: count(self.node.groups_led().count()) }))
    }

    async fn resize(&self, request: Request<proto::ResizeRequest>) -> Result<Response<proto::ResizeReply>, Status> {
        self.membership.resize(request.get_ref().nodes).await.map_err(|error| status_of(&error))?;
        Ok(Response::new(proto::ResizeReply {}))
    }

    async fn leave(&self, request: Request<proto::LeaveRequest>) -> Result<Response<proto::LeaveReply>, Status> {
        let node = request.get_ref().node_id.parse();
        let node = node.map_err(|_| Status::invalid_argument("the node id is not 16 hexadecimal digits"))?;
        self.membership.leave(node).await.map_err(|error| status_of(&error))?;
        Ok(Response::new(proto::LeaveReply {}))
    }
}

fn status_of(error: &ResizeError) -> Status {
    match error {
        ResizeError::Unanswered(_) => Status::unavailable(error.to_string()),
        ResizeError::Refused => Status::failed_precondition(error.to_string()),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
