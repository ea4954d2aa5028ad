//! SUBSCRIBE and UNSUBSCRIBE of a session, and the retained messages of a transient one.

use covey_codec::{MqttStr, QoS, ReasonCode};
use covey_core::shard::{self, Operation, Outcome, Publication, Subscribed, WantRetained};
use covey_core::subscriptions::Options;
use covey_core::topic::Filter;
use covey_mqtt::session::{Delivery, Event, Subscription};

use super::local::SessionState;
use super::node_session::NodeSession;
use crate::publish::message;

impl NodeSession {
    /// Commits subscriptions of a durable session. Pending forever if the epoch ended: the connection is being closed
    /// and must not be answered.
    pub(super) async fn subscribe_durable(&self, wanted: Vec<Subscription>) -> Vec<ReasonCode> {
        let subscriptions = wanted.iter().map(to_shard).collect();
        let (client, owner) = (self.local.client.clone(), self.local.owner);
        let count = wanted.len();
        match self.shard().call(Operation::Subscribe { client, owner, subscriptions }).await {
            Ok(Outcome::Subscribed(granted)) => granted
                .into_iter()
                .map(|granted| match granted {
                    Subscribed::Granted { qos, .. } => granted_qos(qos),
                    Subscribed::LimitReached => ReasonCode::QuotaExceeded,
                })
                .collect(),
            Ok(_) => vec![ReasonCode::UnspecifiedError; count],
            Err(_) => std::future::pending().await,
        }
    }

    /// Adds subscriptions of a transient session and waits until other nodes know them. Pending forever if the epoch
    /// ended.
    pub(super) async fn subscribe_transient(&self, wanted: Vec<Subscription>) -> Vec<ReasonCode> {
        let (mut codes, mut change, mut awaited) = (Vec::new(), 0, Vec::new());
        let limit = self.context.config.sessions.max_subscriptions as usize;
        for wanted in &wanted {
            let Ok(filter) = Filter::new(wanted.filter.clone()) else {
                codes.push(ReasonCode::TopicFilterInvalid);
                continue;
            };
            let SessionState::Transient(session) = &mut *self.local.state.lock() else { continue };
            let granted = session.subscribe(&self.context.filters, &wanted.filter, &filter, options(wanted), limit);
            let Some(granted) = granted else {
                codes.push(ReasonCode::QuotaExceeded);
                continue;
            };
            if wanted.retain_handling == 0 || (wanted.retain_handling == 1 && granted.is_new) {
                session.await_retained(&wanted.filter, filter);
                awaited.push(wanted.clone());
            }
            change = change.max(granted.change);
            codes.push(granted_qos(wanted.qos));
        }
        let known = self.context.known_everywhere(self.local.epoch, change).await;
        if known.is_err() {
            return std::future::pending().await;
        }
        if !awaited.is_empty() {
            let session = self.clone();
            self.spawn("retained messages", async move { session.send_retained(awaited).await });
        }
        codes
    }

    /// Sends retained messages for new subscriptions of a transient session, except copies that are not newer than a
    /// live one.
    async fn send_retained(&self, wanted: Vec<Subscription>) {
        for wanted in wanted {
            let found = self.context.retained.matching(wanted.filter.as_str()).await;
            // Locked until they are sent: a newer live copy is either queued before and recorded, or queued behind
            // them.
            let mut state = self.local.state.lock();
            let SessionState::Transient(session) = &mut *state else { return };
            let fresh = session.take_retained(&wanted.filter, found);
            for delivery in fresh.iter().filter_map(|found| retained_delivery(found, &wanted)) {
                if delivery.message.qos == QoS::AtMostOnce {
                    self.local.send(vec![Event::Deliver(Box::new(delivery))]);
                } else {
                    self.local.push(session, delivery);
                }
            }
        }
    }

    /// Removes subscriptions of a transient session and returns whether each existed; `None` for a durable session.
    pub(super) fn unsubscribe_transient(&self, filters: &[MqttStr]) -> Option<Vec<bool>> {
        let SessionState::Transient(session) = &mut *self.local.state.lock() else { return None };
        Some(filters.iter().map(|filter| session.unsubscribe(&self.context.filters, filter)).collect())
    }
}

/// Returns the delivery of a retained message to a transient subscription; `None` if it cannot be decoded.
fn retained_delivery(found: &Publication, wanted: &Subscription) -> Option<Delivery> {
    let qos = found.qos.min(wanted.qos);
    let message = message::decode(&found.body, qos, true, found.expiry)?;
    let subscription_identifiers = wanted.identifier.into_iter().collect();
    Some(Delivery { packet_id: None, dup: false, message, subscription_identifiers })
}

fn to_shard(wanted: &Subscription) -> shard::Subscription {
    shard::Subscription {
        filter: wanted.filter.as_str().into(),
        options: options(wanted),
        retained: match wanted.retain_handling {
            0 => WantRetained::Always,
            1 => WantRetained::IfNew,
            _ => WantRetained::Never,
        },
    }
}

fn options(wanted: &Subscription) -> Options {
    Options {
        qos: wanted.qos,
        no_local: wanted.no_local,
        retain_as_published: wanted.retain_as_published,
        identifier: wanted.identifier,
    }
}

fn granted_qos(qos: QoS) -> ReasonCode {
    match qos {
        QoS::AtMostOnce => ReasonCode::Success,
        QoS::AtLeastOnce => ReasonCode::GrantedQos1,
        QoS::ExactlyOnce => ReasonCode::GrantedQos2,
    }
}
