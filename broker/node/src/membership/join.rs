//! Joining: a node with an empty disk is admitted by the meta leader.

use covey_contract::proto;
use covey_core::meta::{Answer, Command};
use covey_raft::Purpose;
use covey_types::{GroupId, NodeId, Ordinal};
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::Membership;
use crate::lease::Request;

impl Membership {
    /// Answers a node with an empty disk that asks to join. Only the meta leader admits; other nodes name its ordinal.
    pub async fn on_join(&self, join: &proto::JoinRequest) -> proto::JoinReply {
        let refuse = |refused: &str| proto::JoinReply { refused: refused.into(), ..proto::JoinReply::default() };
        let Some(cluster) = self.identity.cluster() else { return refuse("not in a cluster yet") };
        let leadership = *self.node.raft.leadership(GroupId::META).borrow();
        if !leadership.ours {
            let ask =
                leadership.leader.and_then(|leader| self.node.meta.state.read().member(leader).map(|m| m.ordinal));
            return proto::JoinReply { ask: ask.map(Ordinal::get), ..refuse("this node does not lead the meta group") };
        }
        if let Some(reason) = self.objection(join).await {
            return refuse(&reason);
        }
        let (node, ordinal) = (NodeId::new(join.node_id), Ordinal::new(join.ordinal));
        let command = Command::Join { node, ordinal };
        let answer = self.node.raft.propose_at_leader(GroupId::META, command.encode()).await;
        match answer.map(|response| Answer::decode(&response.bytes)) {
            Ok(Some(Answer::Done)) => {
                info!(%node, ordinal = ordinal.get(), "node admitted");
                proto::JoinReply { cluster_id: cluster.to_string(), ..proto::JoinReply::default() }
            }
            _ => refuse("meta refused the node (its id was removed or has another ordinal) or did not answer"),
        }
    }

    /// Returns why the node must not join, if its ordinal has another disk: that disk may still be alive, or the
    /// members without it are no majority.
    async fn objection(&self, join: &proto::JoinRequest) -> Option<String> {
        let members: Vec<(NodeId, Ordinal)> = {
            let state = self.node.meta.state.read();
            state.present_members().map(|(node, member)| (node, member.ordinal)).collect()
        };
        let wanted = (NodeId::new(join.node_id), Ordinal::new(join.ordinal));
        let former = members.iter().find(|(node, ordinal)| *ordinal == wanted.1 && *node != wanted.0)?.0;
        let mut alive = 0;
        for (node, _) in &members {
            let may_hold_lease = self.node.network.ask_grantor(|answer| Request::MayHoldLease(*node, answer)).await;
            if may_hold_lease.unwrap_or(true) {
                if *node == former {
                    return Some(format!("ordinal {} is held by node {former}, which may be alive", join.ordinal));
                }
                alive += 1;
            }
        }
        (alive * 2 <= members.len()).then(|| "no majority without the lost disk".to_owned())
    }

    /// Asks the other nodes in turn to admit this one.
    pub(super) async fn try_join(&self) {
        let replicas = self.node.config.cluster.replicas;
        for ordinal in (0..replicas).map(Ordinal::new).filter(|ordinal| *ordinal != self.identity.ordinal()) {
            let mut ask = Some(ordinal);
            while let Some(ordinal) = ask.take() {
                let Ok(channel) = self.pool.channel(None, ordinal, Purpose::Data).await else { break };
                let request = proto::JoinRequest {
                    node_id: self.identity.node().get(),
                    ordinal: self.identity.ordinal().get(),
                    incarnation: self.identity.incarnation(),
                };
                let Ok(reply) = proto::peer_client::PeerClient::new(channel).join(request).await else { break };
                let reply = reply.into_inner();
                if let (true, Ok(cluster)) = (reply.refused.is_empty(), Uuid::parse_str(&reply.cluster_id)) {
                    match self.identity.bind(cluster) {
                        Ok(()) => info!(%cluster, "joined"),
                        Err(error) => warn!(%error, "failed to join"),
                    }
                    return;
                }
                debug!(ordinal = ordinal.get(), refused = reply.refused, "join refused");
                ask =
                    reply.ask.map(Ordinal::new).filter(|asked| *asked != ordinal && *asked != self.identity.ordinal());
            }
        }
    }
}
