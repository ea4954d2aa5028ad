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
    /// 1 while every readiness check holds.
    pub ready: IntGauge,
    /// 1 while the node is stopping.
    pub draining: IntGauge,
    /// 1 while the node is a member without a lease.
    pub fenced: IntGauge,
    /// 1 per readiness check that holds.
    pub readiness: Family<Check, IntGauge>,
    /// Seconds.
    pub event_loop_lag: Histogram,
    /// Panics of any task or thread.
    pub task_panics: IntCounter,
    /// Seconds since the Unix epoch, by listener.
    certificate_expiry: IntGaugeVec,
}

impl Node {
    pub(super) fn new(make: &Registrar<'_>, version: &str, commit: &str) -> Result<Self, Error> {
        make.gauge_vec("info", "Version and commit of the broker; always 1.", &["version", "commit"])?
            .with_label_values(&[version, commit])
            .set(1);
        Ok(Self {
            ready: make.gauge("ready", "1 while every readiness check holds.")?,
            draining: make.gauge("draining", "1 while the broker is stopping and disconnects its clients.")?,
            fenced: make.gauge("fenced", "1 while the broker is a member without a lease and serves no clients.")?,
            readiness: make.gauges("readiness_check", "1 while the readiness check holds.")?,
            event_loop_lag: make.histogram(
                "event_loop_lag_seconds",
                "Seconds by which the runtime woke a timer task too late.",
                &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0],
            )?,
            task_panics: make.counter("task_panics_total", "Panics of tasks and threads.")?,
            certificate_expiry: make.gauge_vec(
                "tls_certificate_expiry_timestamp_seconds",
                "End of the validity of a listener's certificate, in seconds since the Unix epoch.",
                &["listener"],
            )?,
        })
    }

    /// Returns the gauge of a listener's certificate. Its value is the end of validity in seconds since the Unix epoch.
    pub fn certificate_expiry(&self, listener: &str) -> IntGauge {
        self.certificate_expiry.with_label_values(&[listener])
    }
}

/// Connections of clients and their traffic.
#[derive(Debug)]
pub struct Clients {
    /// `mqtt.maxConnections` of the configuration.
    pub limit: IntGauge,
    /// Successful CONNACKs.
    pub opened: IntCounter,
    /// Connections that ended after their successful CONNACK.
    pub closed: Family<Closed, IntCounter>,
    /// Sockets closed without a successful CONNACK.
    pub rejected: Family<Rejected, IntCounter>,
    /// Packets decoded.
    pub packets_received: Family<PacketType, IntCounter>,
    /// Packets queued for clients, which includes those that a broken connection never sends.
    pub packets_sent: Family<PacketType, IntCounter>,
    /// Bytes read from sockets.
    pub bytes_received: IntCounter,
    /// Bytes written to sockets.
    pub bytes_sent: IntCounter,
    /// Connected clients, by listener and protocol.
    connections: IntGaugeVec,
}

impl Clients {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        Ok(Self {
            limit: make.gauge("connections_limit", "Maximum number of connected clients.")?,
            opened: make.counter("connections_opened_total", "Clients that got a successful CONNACK.")?,
            closed: make.counters("connections_closed_total", "Connections that ended after CONNACK, by reason.")?,
            rejected: make.counters(
                "connections_rejected_total",
                "Sockets that were closed without a successful CONNACK, by reason.",
            )?,
            packets_received: make.counters("packets_received_total", "MQTT packets received from clients.")?,
            packets_sent: make.counters("packets_sent_total", "MQTT packets queued for clients.")?,
            bytes_received: make.counter("bytes_received_total", "Bytes received from clients.")?,
            bytes_sent: make.counter("bytes_sent_total", "Bytes sent to clients.")?,
            connections: make.gauge_vec("connections", "Number of connected clients.", &["listener", "protocol"])?,
        })
    }

    /// Returns the gauge of one listener's connected clients.
    pub fn listener(&self, listener: &str, protocol: &str) -> IntGauge {
        self.connections.with_label_values(&[listener, protocol])
    }
}

/// Transient sessions of this node, and durable sessions of the shards that this node leads.
#[derive(Debug)]
pub struct Sessions {
    /// Number of sessions.
    pub sessions: Family2<SessionState, SessionKind, IntGauge>,
    /// Connections ended by the server.
    pub kicked: Family<Kicked, IntCounter>,
    /// Not updated yet.
    pub events: Family<SessionEvent, IntCounter>,
    /// Subscriptions of the durable sessions.
    pub subscriptions: Family<SubscriptionKind, IntGauge>,
}

impl Sessions {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        Ok(Self {
            sessions: make.gauges2(
                "sessions",
                "Number of sessions: transient ones of this node, and durable ones of the shards that it leads.",
            )?,
            kicked: make
                .counters("sessions_kicked_total", "Connections closed by a takeover or a change of access rules.")?,
            events: make.counters("session_events_total", "Sessions created, resumed or discarded.")?,
            subscriptions: make.gauges(
                "subscriptions",
                "Number of subscriptions of the durable sessions of the shards that this node leads.",
            )?,
        })
    }
}

/// Application messages.
#[derive(Debug)]
pub struct Messages {
    /// PUBLISH packets decoded.
    pub publish_received: Family<QoS, IntCounter>,
    /// PUBLISH packets queued for clients.
    pub publish_sent: Family<QoS, IntCounter>,
    /// Not updated yet.
    pub delivered: Family<QoS, IntCounter>,
    /// PUBACK (QoS 1) and PUBCOMP (QoS 2) packets received.
    pub acked: Family<QoS, IntCounter>,
    /// Messages not delivered to a session that they matched. Of messages that a full queue refuses the QoS is not
    /// known; they count as QoS 1.
    pub dropped: Family2<QoS, DropReason, IntCounter>,
    /// Messages queued in the durable sessions that this node leads.
    pub queued: IntGauge,
    /// Bytes of the same.
    pub queued_bytes: IntGauge,
    /// Not updated yet.
    pub inflight: Family<Direction, IntGauge>,
    /// Not updated yet.
    pub publish_stalled: IntGauge,
    /// Seconds. Not updated yet.
    pub delivery_duration: Family2<QoS, Stage, Histogram>,
    /// Retained messages of the cluster, as this node has applied them.
    pub retained: IntGauge,
    /// Bytes of the same.
    pub retained_bytes: IntGauge,
}

impl Messages {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        Ok(Self {
            publish_received: make
                .counters("publish_received_total", "PUBLISH packets received from clients, duplicates included.")?,
            publish_sent: make
                .counters("publish_sent_total", "PUBLISH packets queued for clients, resends included.")?,
            delivered: make.counters("delivered_total", "Messages delivered to sessions that they matched.")?,
            acked: make.counters("acked_total", "PUBACK and PUBCOMP packets received from subscribers.")?,
            dropped: make.counters2(
                "messages_dropped_total",
                "Messages that were not delivered to a session that they matched, by reason.",
            )?,
            queued: make.gauge(
                "queued_messages",
                "Number of messages queued in the durable sessions of the shards that this node leads.",
            )?,
            queued_bytes: make.gauge(
                "queued_bytes",
                "Bytes of messages queued in the durable sessions of the shards that this node leads.",
            )?,
            inflight: make.gauges(
                "inflight_messages",
                "Number of QoS 1 and 2 messages between PUBLISH and their last acknowledgement.",
            )?,
            publish_stalled: make
                .gauge("publish_stalled", "Number of publishes unacknowledged for more than a second.")?,
            delivery_duration: make.histograms2(
                "delivery_duration_seconds",
                "Seconds from PUBLISH to sending it to the subscriber, and from then to its acknowledgement.",
                &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0],
            )?,
            retained: make.gauge("retained_messages", "Number of retained messages in the cluster.")?,
            retained_bytes: make.gauge("retained_bytes", "Bytes of the retained messages in the cluster.")?,
        })
    }
}

/// Queues of subscribers.
#[derive(Debug)]
pub struct Subscribers {
    /// Fill ratio of the fullest queue, by messages or bytes.
    pub fill_ratio_max: Gauge,
    /// Not updated yet.
    pub queue_depth: Histogram,
    /// Not updated yet.
    pub slow: IntGauge,
    /// Not updated yet.
    pub slow_events: Family<SlowAction, IntCounter>,
}

impl Subscribers {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        Ok(Self {
            fill_ratio_max: make
                .float("session_queue_fill_ratio_max", "Fill ratio of the fullest session queue; 1 is full.")?,
            queue_depth: make.histogram(
                "session_queue_depth",
                "Number of messages in a session's queue when another one is added.",
                &[0.0, 1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0],
            )?,
            slow: make.gauge("slow_consumers", "Number of sessions whose queue is too old or too full.")?,
            slow_events: make.counters("slow_consumer_events_total", "Actions on slow consumers.")?,
        })
    }
}

/// Authentication and authorization.
#[derive(Debug)]
pub struct Access {
    /// Authentications by result.
    pub auth: Family<AuthResult, IntCounter>,
    /// Seconds.
    pub auth_duration: Family<AuthMethod, Histogram>,
    /// Decisions of the rules, also for wills and for subscriptions that are checked again.
    pub checks: Family2<AclAction, AclResult, IntCounter>,
    /// Publishes and filters denied to clients.
    pub denied: Family<AclAction, IntCounter>,
    /// Subscriptions removed after a change of the rules.
    pub subscriptions_revoked: IntCounter,
    /// Enforced revision; 0 means none.
    pub revision: IntGauge,
    /// Refused revision that is higher than the enforced one; 0 means none.
    pub rejected_revision: IntGauge,
    /// Distinct problems of documents that were refused.
    pub load_failures: IntCounter,
    /// Seconds since the Unix epoch; 0 if no document was loaded.
    pub reload_timestamp: IntGauge,
}

impl Access {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        Ok(Self {
            auth: make.counters("auth_total", "Authentications of CONNECT packets, by result.")?,
            auth_duration: make.histograms(
                "auth_duration_seconds",
                "Seconds to check credentials, including the wait for a free worker.",
                &[0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 3.0],
            )?,
            checks: make.counters2("acl_checks_total", "Decisions of access rules, by action and result.")?,
            denied: make.counters(
                "acl_denied_total",
                "PUBLISH packets and filters of SUBSCRIBE packets that access rules denied.",
            )?,
            subscriptions_revoked: make.counter(
                "acl_subscriptions_revoked_total",
                "Subscriptions that were removed because access rules changed.",
            )?,
            revision: make.gauge("acl_revision", "Revision of the enforced access document; 0 means none.")?,
            rejected_revision: make
                .gauge("acl_rejected_revision", "Refused revision above the enforced one; 0 means none.")?,
            load_failures: make.counter(
                "acl_load_failures_total",
                "Problems of access documents that were refused; the same problem counts once.",
            )?,
            reload_timestamp: make.gauge(
                "acl_reload_timestamp_seconds",
                "Time at which the enforced access document was loaded, in seconds since the Unix epoch.",
            )?,
        })
    }
}

/// The Raft groups of which this node is a replica; [`Group`] documents the metrics.
#[derive(Debug)]
pub struct Raft {
    /// Seconds. Not updated yet.
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

/// The metrics of one Raft group.
#[derive(Debug, Clone)]
pub struct Group {
    /// 1 while this node knows a leader.
    pub has_leader: IntGauge,
    /// 1 while this node leads the group.
    pub is_leader: IntGauge,
    /// Term as this node knows it.
    pub term: IntGauge,
    /// Log index of the last entry known to be committed.
    pub commit_index: IntGauge,
    /// Log index of the last applied entry.
    pub applied_index: IntGauge,
    /// Log index of the last entry in the newest snapshot; 0 without one.
    pub snapshot_index: IntGauge,
    /// Entries of the leader that are not committed; 0 on the other replicas.
    pub uncommitted: IntGauge,
    /// Changes of the leader that this node saw.
    pub leader_changes: IntCounter,
}

impl Raft {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        let gauge = |name: &str, help: &str| make.gauge_vec(name, help, &["group"]);
        Ok(Self {
            proposal_duration: make.histogram(
                "raft_proposal_duration_seconds",
                "Seconds from a proposal on the leader to its result.",
                FAST,
            )?,
            has_leader: gauge("raft_has_leader", "1 while this node knows a leader of the group.")?,
            is_leader: gauge("raft_is_leader", "1 while this node leads the group.")?,
            term: gauge("raft_term", "Term of the group as this node knows it.")?,
            commit_index: gauge(
                "raft_commit_index",
                "Log index of the last entry that this node knows to be committed.",
            )?,
            applied_index: gauge("raft_applied_index", "Log index of the last entry that this node has applied.")?,
            snapshot_index: gauge(
                "raft_snapshot_index",
                "Log index of the last entry in the newest snapshot; 0 without one.",
            )?,
            uncommitted: gauge(
                "raft_uncommitted_entries",
                "Number of entries of the leader that are not committed; 0 on other replicas.",
            )?,
            leader_changes: make.counter_vec(
                "raft_leader_changes_total",
                "Changes of the group's leader that this node saw.",
                &["group"],
            )?,
        })
    }

    /// Returns the metrics of a group. The first call creates its series.
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

    /// Removes the series of a group of which this node no longer holds a replica.
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

/// The other nodes; [`Peer`] documents the metrics of each.
#[derive(Debug)]
pub struct Cluster {
    /// Members that this node heard within a lease, itself included.
    pub members_alive: IntGauge,
    /// Members of the cluster.
    pub members_configured: IntGauge,
    rtt: GaugeVec,
    dropped: IntCounterVec,
    send_queue_bytes: IntGaugeVec,
}

/// The metrics of one other node. Not updated yet.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Seconds.
    pub rtt: Gauge,
    /// Messages dropped because the peer did not accept them.
    pub dropped: IntCounter,
    /// Bytes waiting to be sent.
    pub send_queue_bytes: IntGauge,
}

impl Cluster {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        Ok(Self {
            members_alive: make
                .gauge("cluster_members_alive", "Number of members that this node hears, itself included.")?,
            members_configured: make.gauge("cluster_members_configured", "Number of members of the cluster.")?,
            rtt: make.float_vec("peer_rtt_seconds", "Seconds of the last round trip to a peer.", &["peer"])?,
            dropped: make.counter_vec(
                "peer_messages_dropped_total",
                "Messages for a peer that were dropped because it did not accept them.",
                &["peer"],
            )?,
            send_queue_bytes: make.gauge_vec(
                "peer_send_queue_bytes",
                "Bytes waiting to be sent to a peer.",
                &["peer"],
            )?,
        })
    }

    /// Returns the metrics of the peer with the ordinal. The first call creates its series.
    pub fn peer(&self, ordinal: u32) -> Peer {
        let label = &[ordinal.to_string()];
        Peer {
            rtt: self.rtt.with_label_values(label),
            dropped: self.dropped.with_label_values(label),
            send_queue_bytes: self.send_queue_bytes.with_label_values(label),
        }
    }

    /// Removes the series of a peer that is no longer a member.
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
    /// Bytes that the broker may still write.
    pub free_bytes: IntGauge,
    /// Bytes of the volume.
    pub capacity_bytes: IntGauge,
    /// Bytes of files. Only the log is measured.
    pub used_bytes: Family<StorageKind, IntGauge>,
    /// Seconds. Only the log is measured.
    pub fsync_duration: Family<StorageKind, Histogram>,
    /// Not updated yet.
    pub errors: Family<StorageOp, IntCounter>,
}

impl Storage {
    pub(super) fn new(make: &Registrar<'_>) -> Result<Self, Error> {
        Ok(Self {
            free_bytes: make
                .gauge("storage_free_bytes", "Bytes of the data volume that the broker may still write.")?,
            capacity_bytes: make.gauge("storage_capacity_bytes", "Bytes of the data volume.")?,
            used_bytes: make.gauges("storage_used_bytes", "Bytes of the broker's files, by kind.")?,
            fsync_duration: make.histograms("storage_fsync_duration_seconds", "Seconds of an fsync, by kind.", FAST)?,
            errors: make.counters("storage_errors_total", "Failed operations on the data volume.")?,
        })
    }
}
