//! Identity of a node, and the hello by which nodes tell it to each other.

use std::collections::HashMap;
use std::sync::Arc;

use covey_contract::proto;
use covey_log::marker::Claimed;
use covey_types::{NodeId, Ordinal};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;
use tracing::warn;
use uuid::Uuid;

/// Identity of this node: its data directory, and what is known of other processes.
#[derive(Debug)]
pub struct Identity {
    /// The claimed data directory.
    disk: Mutex<Claimed>,
    /// Node id, made once per data directory.
    node: NodeId,
    /// Ordinal of the node's pod.
    ordinal: Ordinal,
    /// Number of this process start on the data directory.
    incarnation: u64,
    /// Highest incarnation that each node has said hello with. An older process is refused.
    seen: Mutex<HashMap<NodeId, u64>>,
    /// Cancelled when another node says that this one has left the cluster, and the disk is marked.
    left: CancellationToken,
}

impl Identity {
    /// Wraps a claimed data directory.
    pub fn new(disk: Claimed, ordinal: Ordinal) -> Arc<Self> {
        let (node, incarnation) = (disk.marker().node_id, disk.marker().incarnation);
        let left = CancellationToken::new();
        Arc::new(Self { disk: Mutex::new(disk), node, ordinal, incarnation, seen: Mutex::default(), left })
    }

    /// Returns the node id, made once per data directory.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Returns the ordinal of the node's pod.
    pub fn ordinal(&self) -> Ordinal {
        self.ordinal
    }

    /// Returns the number of this process start on the data directory.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Returns the cluster of this data directory; `None` if it has none yet.
    pub fn cluster(&self) -> Option<Uuid> {
        self.disk.lock().marker().cluster_id
    }

    /// Releases the lock of the data directory for another process. The last step of a node's shutdown.
    pub fn release(&self) {
        self.disk.lock().release();
    }

    pub(super) fn bind(&self, cluster: Uuid) -> Result<(), covey_log::marker::Error> {
        self.disk.lock().bind(cluster)
    }

    fn cluster_text(&self) -> String {
        self.cluster().map(|cluster| cluster.to_string()).unwrap_or_default()
    }

    fn hello(&self) -> proto::HelloRequest {
        proto::HelloRequest {
            cluster_id: self.cluster_text(),
            node_id: self.node.get(),
            ordinal: self.ordinal.get(),
            incarnation: self.incarnation,
        }
    }

    /// Waits until another node says that this one has left the cluster. The disk is then marked and will be emptied at
    /// the next start: the process has to end.
    pub async fn left(&self) {
        self.left.cancelled().await;
    }

    /// Answers a hello of another node. Refuses a node of another cluster, and an older process of a known node.
    pub(super) fn on_hello(&self, hello: &proto::HelloRequest) -> proto::HelloReply {
        let (cluster, node) = (self.cluster_text(), NodeId::new(hello.node_id));
        let refused = if !cluster.is_empty() && !hello.cluster_id.is_empty() && cluster != hello.cluster_id {
            format!("node {node} belongs to cluster {}, this one to {cluster}", hello.cluster_id)
        } else {
            let mut seen = self.seen.lock();
            let known = seen.entry(node).or_default();
            if hello.incarnation < *known {
                format!("a newer process of node {node} was here: incarnation {known}")
            } else {
                *known = hello.incarnation;
                String::new()
            }
        };
        if !refused.is_empty() {
            warn!(refused, ordinal = hello.ordinal, "refused a node's hello");
        }
        let (node_id, incarnation) = (self.node.get(), self.incarnation);
        proto::HelloReply { refused, cluster_id: cluster, node_id, incarnation, left: false }
    }

    /// Sends this node's hello on a new channel and returns the reply.
    ///
    /// # Errors
    /// Resolves to the status of a failed call. A refusal is part of the reply.
    pub fn greet(self: &Arc<Self>, channel: Channel) -> BoxFuture<'static, Result<proto::HelloReply, Status>> {
        let identity = self.clone();
        Box::pin(async move {
            let mut peer = proto::peer_client::PeerClient::new(channel);
            let reply = peer.hello(identity.hello()).await.map(tonic::Response::into_inner)?;
            if reply.left {
                identity.on_left();
            }
            Ok(reply)
        })
    }

    /// Marks the disk as that of a node that has left.
    fn on_left(&self) {
        match self.disk.lock().leave() {
            Ok(()) => self.left.cancel(),
            Err(error) => warn!(%error, "failed to mark the disk of this node, which has left the cluster; retrying"),
        }
    }
}
