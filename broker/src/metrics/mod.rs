//! Every metric of a broker, as typed handles.
//!
//! Each part of the broker updates the metrics of its struct; the HTTP port encodes all of them. Invariant: the number
//! of series does not depend on clients, topics or users, and every combination of finite labels exists at zero from
//! the start.

mod cgroup;
mod label;
mod parts;
mod process;
mod register;

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Error, Registry, TextEncoder};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::label::{
    AclAction, AclResult, Check, Direction, DropReason, Family, Family2, Kicked, Label, PacketType, SessionEvent,
    SessionKind, SessionState, SlowAction, Stage, StorageKind, StorageOp, SubscriptionKind,
};
pub use self::parts::{Access, Clients, Cluster, Group, Messages, Node, Peer, Raft, Sessions, Storage, Subscribers};
use self::register::Registrar;

/// Value of the header `Content-Type` for [`Metrics::encode`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Interval at which the lag of the runtime is measured.
const LAG_INTERVAL: Duration = Duration::from_millis(250);

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub node: Node,
    pub clients: Clients,
    pub sessions: Sessions,
    pub messages: Messages,
    pub subscribers: Subscribers,
    pub access: Access,
    pub raft: Raft,
    pub cluster: Cluster,
    pub storage: Storage,
}

impl Metrics {
    /// Creates and registers all metrics. `version` and `commit` are the labels of the build info.
    ///
    /// # Errors
    /// Fails if two metrics have the same name.
    pub fn new(version: &str, commit: &str) -> Result<Arc<Self>, Error> {
        let registry = Registry::new();
        registry.register(Box::new(process::Process::new()?))?;
        registry.register(Box::new(cgroup::Limits::new()?))?;
        let make = Registrar(&registry);
        let metrics = Self {
            node: Node::new(&make, version, commit)?,
            clients: Clients::new(&make)?,
            sessions: Sessions::new(&make)?,
            messages: Messages::new(&make)?,
            subscribers: Subscribers::new(&make)?,
            access: Access::new(&make)?,
            raft: Raft::new(&make)?,
            cluster: Cluster::new(&make)?,
            storage: Storage::new(&make)?,
            registry,
        };
        Ok(Arc::new(metrics))
    }

    /// Returns all metrics in the text format of Prometheus. Reads files of /proc and /sys.
    ///
    /// # Errors
    /// Fails if a metric cannot be encoded.
    pub fn encode(&self) -> Result<String, Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Measures until shutdown how late the runtime wakes a task.
    pub async fn measure_lag(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            let due = Instant::now() + LAG_INTERVAL;
            if shutdown.run_until_cancelled(tokio::time::sleep_until(due)).await.is_none() {
                return;
            }
            self.node.event_loop_lag.observe(due.elapsed().as_secs_f64());
        }
    }
}

/// Converts a count to the value of a gauge; values beyond `i64::MAX` saturate.
pub fn gauge_value(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use covey_codec::QoS;
    use covey_mqtt::connection::{Closed, Rejected};

    use super::*;
    use crate::access::{AuthMethod, AuthResult};

    fn metrics() -> Arc<Metrics> {
        let metrics = Metrics::new("0.1.0", "abc").unwrap();
        metrics.clients.listener("mqtt", "mqtt");
        for group in ["meta", "retained"].into_iter().map(str::to_owned).chain((0..8).map(|n| format!("shard-{n}"))) {
            metrics.raft.group(&group);
        }
        for ordinal in 0..4 {
            metrics.cluster.peer(ordinal);
        }
        metrics.node.certificate_expiry("peer").set(1);
        metrics
    }

    #[test]
    fn every_counter_begins_at_zero() {
        let text = metrics().encode().unwrap();
        for line in [
            r#"mqtt_broker_messages_dropped_total{qos="2",reason="storage_error"} 0"#,
            r#"mqtt_broker_connections_rejected_total{reason="overload"} 0"#,
            r#"mqtt_broker_sessions_kicked_total{reason="taken_over"} 0"#,
            r#"mqtt_broker_auth_total{result="bad_credentials"} 0"#,
            r#"mqtt_broker_acl_checks_total{action="publish",result="deny"} 0"#,
            r#"mqtt_broker_raft_leader_changes_total{group="shard-7"} 0"#,
            r#"mqtt_broker_readiness_check{check="lease"} 0"#,
            r#"mqtt_broker_packets_received_total{type="publish"} 0"#,
            r#"mqtt_broker_info{commit="abc",version="0.1.0"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn each_handle_moves_its_own_series() {
        let metrics = metrics();
        metrics.messages.dropped.get(QoS::AtLeastOnce).get(DropReason::QueueFull).inc();
        metrics.clients.closed.get(Closed::Drain).inc_by(3);
        metrics.raft.group("shard-3").has_leader.set(1);
        let text = metrics.encode().unwrap();
        let moved: BTreeSet<_> = text
            .lines()
            .filter(|line| {
                ["mqtt_broker_messages_dropped", "mqtt_broker_connections_closed", "mqtt_broker_raft_has_leader"]
                    .iter()
                    .any(|name| line.starts_with(name) && !line.ends_with(" 0"))
            })
            .collect();
        let expected = [
            r#"mqtt_broker_connections_closed_total{reason="drain"} 3"#,
            r#"mqtt_broker_messages_dropped_total{qos="1",reason="queue_full"} 1"#,
            r#"mqtt_broker_raft_has_leader{group="shard-3"} 1"#,
        ];
        assert_eq!(moved, BTreeSet::from(expected));
    }

    #[test]
    fn there_are_at_most_600_series_and_each_name_has_help_and_a_unit() {
        let text = metrics().encode().unwrap();
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(series <= 600, "{series} series");
        let words = |prefix: &str| -> BTreeMap<String, String> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(prefix)?.split_once(' '));
            lines.map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
        };
        let (helps, types) = (words("# HELP "), words("# TYPE "));
        for (name, kind) in &types {
            assert!(name.starts_with("mqtt_broker_") || name.starts_with("process_"), "{name}");
            assert!(helps.get(name).is_some_and(|help| help.len() > 10), "{name} has no help");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            assert!(!name.ends_with("_ms"), "{name}");
        }
        assert!(types.len() > 60, "{} names", types.len());
    }

    #[test]
    fn labels_are_where_they_say() {
        fn check<L: Label + PartialEq + std::fmt::Debug>() {
            for (position, label) in L::ALL.iter().enumerate() {
                assert_eq!(label.position(), position, "{label:?}");
            }
            assert_eq!(L::ALL.iter().map(|label| label.text()).collect::<BTreeSet<_>>().len(), L::ALL.len());
        }
        check::<Closed>();
        check::<Rejected>();
        check::<AuthResult>();
        check::<AuthMethod>();
        check::<DropReason>();
        check::<PacketType>();
        check::<QoS>();
    }

    #[tokio::test(start_paused = true)]
    async fn lag_is_measured_until_shutdown() {
        let metrics = metrics();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(metrics.clone().measure_lag(shutdown.clone()));
        tokio::time::sleep(Duration::from_secs(2)).await;
        shutdown.cancel();
        task.await.unwrap();
        assert!(metrics.node.event_loop_lag.get_sample_count() >= 7);
    }
}
