//! What connections and the node report, counted.

use std::sync::Arc;

use covey_codec::{Packet, QoS};
use prometheus::IntGauge;

use super::Metrics;
use super::label::{DropReason, PacketType};
use crate::connection::{self, Closed, Rejected};
use crate::node;

/// The connections of one listener.
#[derive(Debug)]
pub struct Observed {
    metrics: Arc<Metrics>,
    connections: IntGauge,
}

impl Observed {
    /// `protocol` is one of mqtt, mqtts, ws and wss.
    pub fn new(metrics: Arc<Metrics>, listener: &str, protocol: &str) -> Self {
        Self { connections: metrics.clients.listener(listener, protocol), metrics }
    }
}

impl connection::Observer for Observed {
    fn opened(&self) {
        self.connections.inc();
        self.metrics.clients.opened.inc();
    }

    fn closed(&self, reason: Closed) {
        self.connections.dec();
        self.metrics.clients.closed.get(reason).inc();
    }

    fn rejected(&self, reason: Rejected) {
        self.metrics.clients.rejected.get(reason).inc();
    }

    fn received(&self, packet: &Packet) {
        self.metrics.clients.packets_received.get(type_of(packet)).inc();
        let messages = &self.metrics.messages;
        match packet {
            Packet::Publish(publish) => messages.publish_received.get(publish.qos).inc(),
            Packet::PubAck(_) => messages.acked.get(QoS::AtLeastOnce).inc(),
            Packet::PubComp(_) => messages.acked.get(QoS::ExactlyOnce).inc(),
            _ => {}
        }
    }

    fn sent(&self, packet: &Packet) {
        self.metrics.clients.packets_sent.get(type_of(packet)).inc();
        if let Packet::Publish(publish) = packet {
            let messages = &self.metrics.messages;
            messages.publish_sent.get(publish.qos).inc();
            if !publish.dup {
                messages.delivered.get(publish.qos).inc();
            }
        }
    }

    fn bytes_received(&self, bytes: usize) {
        self.metrics.clients.bytes_received.inc_by(count(bytes));
    }

    fn bytes_sent(&self, bytes: usize) {
        self.metrics.clients.bytes_sent.inc_by(count(bytes));
    }

    fn dropped_too_large(&self, qos: QoS) {
        self.metrics.messages.dropped.get(qos).get(DropReason::TooLarge).inc();
    }
}

impl node::Observer for Metrics {
    fn dropped_unreachable(&self) {
        self.messages.dropped.get(QoS::AtMostOnce).get(DropReason::PeerUnreachable).inc();
    }

    fn missed(&self, count: u64) {
        // Only durable sessions miss messages, and QoS 0 never enters their queues.
        self.messages.dropped.get(QoS::AtLeastOnce).get(DropReason::QueueFull).inc_by(count);
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn type_of(packet: &Packet) -> PacketType {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Observer as _;
    use crate::node::Observer as _;

    #[test]
    fn a_connection_is_counted_from_its_opening_to_its_end() {
        let metrics = Metrics::new("0", "0").unwrap();
        let observed = Observed::new(metrics.clone(), "tls", "mqtts");
        observed.opened();
        observed.opened();
        observed.closed(Closed::Drain);
        observed.received(&Packet::PingReq);
        observed.bytes_sent(7);
        metrics.missed(3);
        let text = metrics.encode().unwrap();
        for line in [
            r#"mqtt_broker_connections{listener="tls",protocol="mqtts"} 1"#,
            "mqtt_broker_connections_opened_total 2",
            r#"mqtt_broker_connections_closed_total{reason="drain"} 1"#,
            r#"mqtt_broker_packets_received_total{type="pingreq"} 1"#,
            "mqtt_broker_bytes_sent_total 7",
            r#"mqtt_broker_messages_dropped_total{qos="1",reason="queue_full"} 3"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
