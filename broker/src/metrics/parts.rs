//! The metrics of each part of the broker.

use covey_codec::QoS;
use covey_mqtt::connection::{Closed, Rejected};
use prometheus::{Error, Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::label::{
    AclAction, AclResult, Check, Direction, DropReason, Family, Family2, Kicked, PacketType, SessionEvent, SessionKind,
    SessionState, SlowAction, Stage, StorageKind, StorageOp, SubscriptionKind,
};
use super::register::{FAST, Registrar};
use crate::access::{AuthMethod, AuthResult};

/// The node as a whole.
#[derive(Debug)]
pub struct Node {
    pub ready: IntGauge,
    pub draining: IntGauge,
    pub fenced: IntGauge,
    pub readiness: Family<Check, IntGauge>,
    pub event_loop_lag: Histogram,
    pub task_panics: IntCounter,
    certificate_expiry: IntGaugeVec,
}

impl Node {
    pub(super) fn new(make: &Registrar<'_>, version: &str, commit: &str) -> Result<Self, Error> {
        make.gauge_vec("info", "What the broker was built from; always 1.", &["version", "commit"])?
            .with_label_values(&[version, commit])
            .set(1);
        Ok(Self {
            ready: make.gauge("ready", "Whether the broker judges itself ready to serve clients.")?,
            draining: make.gauge("draining", "Whether the broker is sending its clients away.")?,
            fenced: make.gauge("fenced", "Whether a member of the cluster has no lease and serves nobody.")?,
            readiness: make.gauges("readiness_check", "Whether one part of readiness holds.")?,
            event_loop_lag: make.histogram(
                "event_loop_lag_seconds",
                "How late the runtime wakes a task.",
                &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0],
            )?,
            task_panics: make.counter("task_panics_total", "Tasks that ended by a panic.")?,
            certificate_expiry: make.gauge_vec(
                "tls_certificate_expiry_timestamp_seconds",
                "When the certificate that a listener serves ends, in seconds since the epoch.",
                &["listener"],
            )?,
        })
    }

    /// End of the certificate that a listener serves, in seconds since the epoch.
    pub fn certificate_expiry(&self, listener: &str) -> IntGauge {
        self.certificate_expiry.with_label_values(&[listener])
    }
}

/// Connections of clients and what goes over them.
#[derive(Debug)]
pub struct Clients {
    pub limit: IntGauge,
    pub opened: IntCounter,
    pub closed: Family<Closed, IntCounter>,
    pub rejected: Family<Rejected, IntCounter>,
    pub packets_received: Family<PacketType, IntCounter>,
    pub packets_sent: Family<PacketType, IntCounter>,
    pub bytes_received: IntCounter,
    pub bytes_sent: IntCounter,
    connections: IntGaugeVec,
}

impl Clients {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        Ok(Self {
            limit: make.gauge("connections_limit", "Most connections that the broker takes.")?,
            opened: make.counter("connections_opened_total", "Connections that got a successful CONNACK.")?,
            closed: make.counters("connections_closed_total", "Connections that ended after their CONNACK.")?,
            rejected: make
                .counters("connections_rejected_total", "Sockets that were closed before a successful CONNACK.")?,
            packets_received: make.counters("packets_received_total", "MQTT packets from clients.")?,
            packets_sent: make.counters("packets_sent_total", "MQTT packets to clients.")?,
            bytes_received: make.counter("bytes_received_total", "Bytes of MQTT from clients.")?,
            bytes_sent: make.counter("bytes_sent_total", "Bytes of MQTT to clients.")?,
            connections: make.gauge_vec("connections", "Connected clients.", &["listener", "protocol"])?,
        })
    }

    /// Connected clients of one listener.
    pub fn listener(&self, listener: &str, protocol: &str) -> IntGauge {
        self.connections.with_label_values(&[listener, protocol])
    }
}

/// Sessions that this node holds or leads.
#[derive(Debug)]
pub struct Sessions {
    pub sessions: Family2<SessionState, SessionKind, IntGauge>,
    pub kicked: Family<Kicked, IntCounter>,
    pub events: Family<SessionEvent, IntCounter>,
    pub subscriptions: Family<SubscriptionKind, IntGauge>,
}

impl Sessions {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        Ok(Self {
            sessions: make
                .gauges2("sessions", "Sessions, clean ones here and persistent ones that this node leads.")?,
            kicked: make
                .counters("sessions_kicked_total", "Sessions or connections ended against the client's will.")?,
            events: make.counters("session_events_total", "Sessions that were created, resumed or discarded.")?,
            subscriptions: make.gauges("subscriptions", "Subscriptions of the sessions counted here.")?,
        })
    }
}

/// Messages on their way.
#[derive(Debug)]
pub struct Messages {
    pub publish_received: Family<QoS, IntCounter>,
    pub publish_sent: Family<QoS, IntCounter>,
    pub delivered: Family<QoS, IntCounter>,
    pub acked: Family<QoS, IntCounter>,
    pub dropped: Family2<QoS, DropReason, IntCounter>,
    pub queued: IntGauge,
    pub queued_bytes: IntGauge,
    pub inflight: Family<Direction, IntGauge>,
    pub publish_stalled: IntGauge,
    pub delivery_duration: Family2<QoS, Stage, Histogram>,
    pub retained: IntGauge,
    pub retained_bytes: IntGauge,
}

impl Messages {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        Ok(Self {
            publish_received: make.counters("publish_received_total", "PUBLISH packets from clients.")?,
            publish_sent: make.counters("publish_sent_total", "PUBLISH packets to clients, repeats among them.")?,
            delivered: make.counters("delivered_total", "Messages handed to sessions that they matched.")?,
            acked: make.counters("acked_total", "Deliveries that subscribers acknowledged.")?,
            dropped: make.counters2("messages_dropped_total", "Messages that did not reach a session.")?,
            queued: make.gauge("queued_messages", "Messages that wait in sessions which this node leads.")?,
            queued_bytes: make
                .gauge("queued_bytes", "Bytes of payload that wait in sessions which this node leads.")?,
            inflight: make
                .gauges("inflight_messages", "Messages at QoS 1 and 2 between PUBLISH and its last answer.")?,
            publish_stalled: make
                .gauge("publish_stalled", "Publishes whose acknowledgement is held for over a second.")?,
            delivery_duration: make.histograms2(
                "delivery_duration_seconds",
                "Time of a message inside the broker, and until the subscriber's acknowledgement.",
                &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0],
            )?,
            retained: make.gauge("retained_messages", "Retained messages.")?,
            retained_bytes: make.gauge("retained_bytes", "Bytes of retained messages.")?,
        })
    }
}

/// How well subscribers keep up.
#[derive(Debug)]
pub struct Subscribers {
    pub fill_ratio_max: Gauge,
    pub queue_depth: Histogram,
    pub slow: IntGauge,
    pub slow_events: Family<SlowAction, IntCounter>,
}

impl Subscribers {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        Ok(Self {
            fill_ratio_max: make
                .float("session_queue_fill_ratio_max", "The fullest queue of a session, as a part of its limit.")?,
            queue_depth: make.histogram(
                "session_queue_depth",
                "Messages in a session's queue when another one is added.",
                &[0.0, 1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0],
            )?,
            slow: make.gauge("slow_consumers", "Sessions whose queue is too old or too full.")?,
            slow_events: make.counters("slow_consumer_events_total", "What was done about slow consumers.")?,
        })
    }
}

/// Who may enter and what they may do.
#[derive(Debug)]
pub struct Access {
    pub auth: Family<AuthResult, IntCounter>,
    pub auth_duration: Family<AuthMethod, Histogram>,
    pub checks: Family2<AclAction, AclResult, IntCounter>,
    pub denied: Family<AclAction, IntCounter>,
    pub subscriptions_revoked: IntCounter,
    pub revision: IntGauge,
    pub rejected_revision: IntGauge,
    pub load_failures: IntCounter,
    pub reload_timestamp: IntGauge,
}

impl Access {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        Ok(Self {
            auth: make.counters("auth_total", "CONNECT packets by what came of their credentials.")?,
            auth_duration: make.histograms(
                "auth_duration_seconds",
                "Time to check credentials, waiting for a free worker included.",
                &[0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 3.0],
            )?,
            checks: make.counters2("acl_checks_total", "Decisions of access rules.")?,
            denied: make.counters(
                "acl_denied_total",
                "PUBLISH packets, and filters of SUBSCRIBE packets, that access rules refused to clients.",
            )?,
            subscriptions_revoked: make.counter(
                "acl_subscriptions_revoked_total",
                "Subscriptions that were ended because access rules changed.",
            )?,
            revision: make.gauge("acl_revision", "Revision of the access document that is enforced; 0 for none.")?,
            rejected_revision: make
                .gauge("acl_rejected_revision", "Higher revision that was seen and refused; 0 for none.")?,
            load_failures: make.counter("acl_load_failures_total", "Access documents that could not be loaded.")?,
            reload_timestamp: make.gauge(
                "acl_reload_timestamp_seconds",
                "When the access document that is enforced was loaded, in seconds since the epoch.",
            )?,
        })
    }
}

/// The Raft groups of which this node is a replica.
#[derive(Debug)]
pub struct Raft {
    pub proposal_duration: Histogram,
    has_leader: IntGaugeVec,
    is_leader: IntGaugeVec,
    term: IntGaugeVec,
    commit_index: IntGaugeVec,
    applied_index: IntGaugeVec,
    snapshot_index: IntGaugeVec,
    uncommitted: IntGaugeVec,
    leader_changes: IntCounterVec,
}

/// One Raft group.
#[derive(Debug, Clone)]
pub struct Group {
    pub has_leader: IntGauge,
    pub is_leader: IntGauge,
    pub term: IntGauge,
    pub commit_index: IntGauge,
    pub applied_index: IntGauge,
    pub snapshot_index: IntGauge,
    pub uncommitted: IntGauge,
    pub leader_changes: IntCounter,
}

impl Raft {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        let gauge = |name: &str, help: &str| make.gauge_vec(name, help, &["group"]);
        Ok(Self {
            proposal_duration: make.histogram(
                "raft_proposal_duration_seconds",
                "Time from a proposal on the leader to its result.",
                FAST,
            )?,
            has_leader: gauge("raft_has_leader", "Whether this node knows a leader of the group.")?,
            is_leader: gauge("raft_is_leader", "Whether this node leads the group.")?,
            term: gauge("raft_term", "Term of the group as this node knows it.")?,
            commit_index: gauge("raft_commit_index", "Highest entry that this node knows to be committed.")?,
            applied_index: gauge("raft_applied_index", "Highest entry that this node has applied.")?,
            snapshot_index: gauge("raft_snapshot_index", "Last entry in the newest snapshot.")?,
            uncommitted: gauge("raft_uncommitted_entries", "Entries of the leader that wait for a majority.")?,
            leader_changes: make.counter_vec(
                "raft_leader_changes_total",
                "Times that this node saw another leader of the group.",
                &["group"],
            )?,
        })
    }

    /// The metrics of a group; the first call makes its series.
    pub fn group(&self, group: &str) -> Group {
        let label = &[group];
        Group {
            has_leader: self.has_leader.with_label_values(label),
            is_leader: self.is_leader.with_label_values(label),
            term: self.term.with_label_values(label),
            commit_index: self.commit_index.with_label_values(label),
            applied_index: self.applied_index.with_label_values(label),
            snapshot_index: self.snapshot_index.with_label_values(label),
            uncommitted: self.uncommitted.with_label_values(label),
            leader_changes: self.leader_changes.with_label_values(label),
        }
    }

    /// Removes the series of a group that this node holds no more.
    pub fn remove_group(&self, group: &str) {
        let label = &[group];
        // Fails where the series never existed.
        for gauges in [
            &self.has_leader,
            &self.is_leader,
            &self.term,
            &self.commit_index,
            &self.applied_index,
            &self.snapshot_index,
            &self.uncommitted,
        ] {
            gauges.remove_label_values(label).ok();
        }
        self.leader_changes.remove_label_values(label).ok();
    }
}

/// The other nodes.
#[derive(Debug)]
pub struct Cluster {
    pub members_alive: IntGauge,
    pub members_configured: IntGauge,
    rtt: GaugeVec,
    dropped: IntCounterVec,
    send_queue_bytes: IntGaugeVec,
}

/// One other node.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Seconds.
    pub rtt: Gauge,
    pub dropped: IntCounter,
    pub send_queue_bytes: IntGauge,
}

impl Cluster {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        Ok(Self {
            members_alive: make.gauge("cluster_members_alive", "Members that this node reaches, itself included.")?,
            members_configured: make.gauge("cluster_members_configured", "Members that the cluster has.")?,
            rtt: make.float_vec("peer_rtt_seconds", "Last round trip to a peer.", &["peer"])?,
            dropped: make.counter_vec(
                "peer_messages_dropped_total",
                "Messages for a peer that were dropped because it did not take them.",
                &["peer"],
            )?,
            send_queue_bytes: make.gauge_vec(
                "peer_send_queue_bytes",
                "Bytes that wait to be sent to a peer.",
                &["peer"],
            )?,
        })
    }

    /// The metrics of the peer with that ordinal; the first call makes its series.
    pub fn peer(&self, ordinal: u32) -> Peer {
        let label = &[ordinal.to_string()];
        Peer {
            rtt: self.rtt.with_label_values(label),
            dropped: self.dropped.with_label_values(label),
            send_queue_bytes: self.send_queue_bytes.with_label_values(label),
        }
    }

    /// Forgets a peer that is no longer in the cluster.
    pub fn remove_peer(&self, ordinal: u32) {
        let label = &[ordinal.to_string()];
        // Fails where the series never existed.
        self.rtt.remove_label_values(label).ok();
        self.dropped.remove_label_values(label).ok();
        self.send_queue_bytes.remove_label_values(label).ok();
    }
}

/// The data volume.
#[derive(Debug)]
pub struct Storage {
    pub free_bytes: IntGauge,
    pub capacity_bytes: IntGauge,
    pub used_bytes: Family<StorageKind, IntGauge>,
    pub fsync_duration: Family<StorageKind, Histogram>,
    pub errors: Family<StorageOp, IntCounter>,
}

impl Storage {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        Ok(Self {
            free_bytes: make.gauge("storage_free_bytes", "Bytes of the data volume that the broker may still use.")?,
            capacity_bytes: make.gauge("storage_capacity_bytes", "Size of the data volume.")?,
            used_bytes: make.gauges("storage_used_bytes", "Bytes that the broker's files take.")?,
            fsync_duration: make.histograms("storage_fsync_duration_seconds", "Duration of an fsync.", FAST)?,
            errors: make.counters("storage_errors_total", "Reads and writes that the data volume failed.")?,
        })
    }
}
