//! Adapters: implements the traits of connections, the node and the admin service with [`Access`], [`Metrics`] and
//! [`Readiness`].

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use covey_codec::{Packet, QoS, ReasonCode};
use covey_contract::proto::AccessStatus;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::access::{Access, Principal};
use crate::http::Readiness;
use crate::metrics::{AclAction, Check, Closed, DropReason, Kicked, Label as _, Metrics, PacketType, Rejected};
use crate::storage::space::Space;
use crate::{admin, connection, node};

/// Access control for connections.
#[derive(Debug, Clone)]
pub(crate) struct Door(pub(crate) Access);

impl connection::Guard for Door {
    type Principal = Principal;

    async fn authenticate(
        &self,
        username: Option<&str>,
        password: Option<&[u8]>,
        client_id: &str,
        peer: IpAddr,
    ) -> Result<Arc<Principal>, ReasonCode> {
        self.0.authenticate(username, password, client_id, peer).await.map_err(crate::access::Failure::reason_code)
    }

    fn refresh(&self, principal: &Principal, client_id: &str) -> Option<Arc<Principal>> {
        self.0.refresh(principal, client_id)
    }

    fn revision(&self) -> watch::Receiver<u64> {
        self.0.revision()
    }
}

impl connection::Principal for Principal {
    fn name(&self) -> &str {
        Self::name(self)
    }

    fn may_publish(&self, client_id: &str, topic: &str, qos: QoS, retain: bool) -> bool {
        Self::may_publish(self, client_id, topic, qos, retain)
    }

    fn may_subscribe(&self, client_id: &str, filter: &str, qos: QoS) -> bool {
        Self::may_subscribe(self, client_id, filter, qos)
    }
}

/// Counts the events of connections and the node in the metrics.
#[derive(Debug, Clone)]
pub(crate) struct Counting(pub(crate) Arc<Metrics>);

impl connection::Observer for Counting {
    fn opened(&self) {
        self.0.clients.opened.inc();
    }

    fn closed(&self, reason: Closed) {
        self.0.clients.closed.get(reason).inc();
        match reason {
            Closed::TakenOver => self.0.sessions.kicked.get(Kicked::TakenOver).inc(),
            Closed::Revoked => self.0.sessions.kicked.get(Kicked::AclRevoked).inc(),
            _ => {}
        }
    }

    fn rejected(&self, reason: Rejected) {
        self.0.clients.rejected.get(reason).inc();
    }

    fn received(&self, packet: &Packet) {
        self.0.clients.packets_received.get(kind(packet)).inc();
        match packet {
            Packet::Publish(publish) => self.0.messages.publish_received.get(publish.qos).inc(),
            Packet::PubAck(_) => self.0.messages.acked.get(QoS::AtLeastOnce).inc(),
            Packet::PubComp(_) => self.0.messages.acked.get(QoS::ExactlyOnce).inc(),
            _ => {}
        }
    }

    fn sent(&self, packet: &Packet) {
        self.0.clients.packets_sent.get(kind(packet)).inc();
        if let Packet::Publish(publish) = packet {
            self.0.messages.publish_sent.get(publish.qos).inc();
        }
    }

    fn bytes_received(&self, bytes: usize) {
        self.0.clients.bytes_received.inc_by(bytes as u64);
    }

    fn bytes_sent(&self, bytes: usize) {
        self.0.clients.bytes_sent.inc_by(bytes as u64);
    }

    fn publish_denied(&self) {
        self.0.access.denied.get(AclAction::Publish).inc();
    }

    fn subscribe_denied(&self) {
        self.0.access.denied.get(AclAction::Subscribe).inc();
    }

    fn subscription_revoked(&self) {
        self.0.access.subscriptions_revoked.inc();
    }

    fn dropped_too_large(&self, qos: QoS) {
        self.0.messages.dropped.get(qos).get(DropReason::TooLarge).inc();
    }
}

fn kind(packet: &Packet) -> PacketType {
    match packet {
        Packet::Connect(_) => PacketType::Connect,
        Packet::ConnAck(_) => PacketType::Connack,
        Packet::Publish(_) => PacketType::Publish,
        Packet::PubAck(_) => PacketType::Puback,
        Packet::PubRec(_) => PacketType::Pubrec,
        Packet::PubRel(_) => PacketType::Pubrel,
        Packet::PubComp(_) => PacketType::Pubcomp,
        Packet::Subscribe(_) => PacketType::Subscribe,
        Packet::SubAck(_) => PacketType::Suback,
        Packet::Unsubscribe(_) => PacketType::Unsubscribe,
        Packet::UnsubAck(_) => PacketType::Unsuback,
        Packet::PingReq => PacketType::Pingreq,
        Packet::PingResp => PacketType::Pingresp,
        Packet::Disconnect(_) => PacketType::Disconnect,
        Packet::Auth(_) => PacketType::Auth,
    }
}

impl node::Observer for Counting {
    fn dropped_unreachable(&self) {
        self.0.messages.dropped.get(QoS::AtMostOnce).get(DropReason::PeerUnreachable).inc();
    }

    fn dropped_slow(&self) {
        self.0.messages.dropped.get(QoS::AtMostOnce).get(DropReason::Qos0Slow).inc();
    }

    fn missed(&self, count: u64) {
        self.0.messages.dropped.get(QoS::AtLeastOnce).get(DropReason::QueueFull).inc_by(count);
    }
}

/// Facts for the admin service that do not come from the node.
#[derive(Debug, Clone)]
pub(crate) struct NodeFacts {
    /// Enforced access rules.
    pub(crate) access: Access,
    /// Readiness checks.
    pub(crate) readiness: Readiness,
    /// Data directory whose volume is measured.
    pub(crate) data: PathBuf,
}

impl admin::Facts for NodeFacts {
    fn failing_checks(&self) -> Vec<String> {
        self.readiness.failing().iter().map(|check| check.text().to_owned()).collect()
    }

    fn is_draining(&self) -> bool {
        self.readiness.failing().contains(&Check::NotDraining)
    }

    fn access(&self) -> AccessStatus {
        self.access.status()
    }

    fn apply_access(&self, document: Bytes) -> BoxFuture<'_, AccessStatus> {
        Box::pin(self.access.apply(document))
    }

    fn space(&self) -> (u64, u64) {
        Space::read(&self.data).map_or((0, 0), |space| (space.free, space.capacity))
    }
}
