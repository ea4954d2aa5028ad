//! Adapters: implements the traits of connections, the node, access control and the admin service with the access
//! rules, the metrics and the readiness checks.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use covey_codec::{Packet, QoS, ReasonCode};
use covey_contract::proto::AccessStatus;
use covey_core::access::{Action, Decision};
use covey_log::space::Space;
use covey_mqtt::connection::{self, Closed, Rejected};
use covey_node as node;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::access::{self, Access, AuthMethod, AuthResult, Principal};
use crate::admin;
use crate::metrics::{AclAction, AclResult, Check, DropReason, Kicked, Label as _, Metrics, PacketType, gauge_value};
use crate::readiness::Readiness;

/// Access control for connections.
#[derive(Debug, Clone)]
pub(crate) struct AccessGuard(pub(crate) Access);

impl connection::Guard for AccessGuard {
    type Principal = Principal;

    async fn authenticate(
        &self,
        username: Option<&str>,
        password: Option<&[u8]>,
        client_id: &str,
        peer: IpAddr,
    ) -> Result<Arc<Principal>, ReasonCode> {
        self.0.authenticate(username, password, client_id, peer).await.map_err(access::Failure::reason_code)
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

/// Counts the events of connections, the node and access control in the metrics.
#[derive(Debug, Clone)]
pub(crate) struct MetricsObserver(pub(crate) Arc<Metrics>);

impl connection::Observer for MetricsObserver {
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

impl access::Observer for MetricsObserver {
    fn authenticated(&self, result: AuthResult) {
        self.0.access.auth.get(result).inc();
    }

    fn checked(&self, method: AuthMethod, duration: Duration) {
        self.0.access.auth_duration.get(method).observe(duration.as_secs_f64());
    }

    fn decided(&self, action: Action, decision: Decision) {
        let action = match action {
            Action::Publish => AclAction::Publish,
            Action::Subscribe => AclAction::Subscribe,
        };
        let result = match decision {
            Decision::Allowed(_) => AclResult::Allow,
            Decision::Denied(_) => AclResult::Deny,
            Decision::NoMatch => AclResult::NoMatch,
        };
        self.0.access.checks.get(action).get(result).inc();
    }

    fn enforced(&self, revision: u64) {
        self.0.access.revision.set(gauge_value(revision));
        self.0.access.reload_timestamp.set(jiff::Timestamp::now().as_second());
    }

    fn load_failed(&self) {
        self.0.access.load_failures.inc();
    }

    fn rejected(&self, revision: u64) {
        self.0.access.rejected_revision.set(gauge_value(revision));
    }
}

impl node::Observer for MetricsObserver {
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

/// The part of the status that does not come from the node.
#[derive(Debug, Clone)]
pub(crate) struct BrokerBackend {
    /// Enforced access rules.
    pub(crate) access: Access,
    /// Readiness checks.
    pub(crate) readiness: Readiness,
    /// Data directory whose volume is measured.
    pub(crate) data: PathBuf,
}

impl admin::AdminBackend for BrokerBackend {
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

    fn space(&self) -> Option<Space> {
        Space::read(&self.data).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_access_control_reports_is_in_its_series() {
        let metrics = Metrics::new("0", "0").unwrap();
        let observer: &dyn access::Observer = &MetricsObserver(metrics.clone());
        observer.authenticated(AuthResult::RateLimit);
        observer.checked(AuthMethod::Argon2id, Duration::from_millis(2));
        observer.decided(Action::Publish, Decision::Denied(1));
        observer.enforced(7);
        observer.load_failed();
        observer.rejected(9);
        let text = metrics.encode().unwrap();
        for line in [
            r#"mqtt_broker_auth_total{result="rate_limit"} 1"#,
            r#"mqtt_broker_auth_duration_seconds_count{method="argon2id"} 1"#,
            r#"mqtt_broker_acl_checks_total{action="publish",result="deny"} 1"#,
            "mqtt_broker_acl_revision 7",
            "mqtt_broker_acl_load_failures_total 1",
            "mqtt_broker_acl_rejected_revision 9",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
