//! SUBSCRIBE and UNSUBSCRIBE (MQTT 5, 3.8 to 3.11): filters are checked against rules and limits before they reach the
//! session.

use covey_codec::packet::{Subscribe, Subscription as Wanted, Unsubscribe};
use covey_codec::{MqttStr, ReasonCode};
use futures::FutureExt;

use super::close::Ending;
use super::guard::{Guard, Principal};
use super::open::Open;
use super::replies::{Order, Reply};
use crate::session::{Session, Sessions, Subscription};

impl<N: Sessions, G: Guard> Open<N, G> {
    pub(super) fn on_subscribe(&mut self, subscribe: &Subscribe, size: usize) -> Result<(), Ending> {
        let packet_id = subscribe.packet_id;
        self.packet_ids.request(packet_id)?;
        let size = size + subscribe.subscriptions.len() * size_of::<Subscription>();
        let identifier = subscribe.properties.subscription_identifier;
        let mut refused = Vec::with_capacity(subscribe.subscriptions.len());
        let mut admitted = Vec::with_capacity(subscribe.subscriptions.len());
        for wanted in &subscribe.subscriptions {
            let refusal = self.refuse_subscription(wanted);
            refused.push(refusal);
            if refusal.is_none() {
                admitted.push(self.remember(wanted, identifier));
            }
        }
        if admitted.is_empty() {
            let answers = merge(refused, Vec::new());
            self.replies.push(Order::Subscription, size, std::future::ready(Reply::SubAck(packet_id, answers)));
            return Ok(());
        }
        let done = self.session.subscribe(admitted);
        let reply = done.map(move |granted| Reply::SubAck(packet_id, merge(refused, granted)));
        self.replies.push(Order::Subscription, size, reply);
        Ok(())
    }

    /// Returns the reason code if the filter is refused.
    fn refuse_subscription(&self, wanted: &Wanted) -> Option<ReasonCode> {
        if wanted.filter.as_bytes().starts_with(b"$share/") {
            return Some(ReasonCode::SharedSubscriptionsNotSupported);
        }
        if !self.principal.may_subscribe(&self.client_id, &wanted.filter, wanted.options.qos) {
            self.context.observer().subscribe_denied();
            return Some(ReasonCode::NotAuthorized);
        }
        let is_new = !self.filters.contains_key(wanted.filter.as_str());
        if is_new && self.filters.len() >= self.context.limits().max_subscriptions {
            return Some(ReasonCode::QuotaExceeded);
        }
        None
    }

    /// Records the filter, so that it is checked again when the rules change. The filter stays recorded if the session
    /// refuses it: removing a subscription that does not exist is harmless.
    fn remember(&mut self, wanted: &Wanted, identifier: Option<u32>) -> Subscription {
        let filter = wanted.filter.detached();
        let options = wanted.options;
        self.filters.insert(filter.clone(), options.qos);
        Subscription {
            filter,
            qos: options.qos,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            retain_handling: options.retain_handling as u8,
            identifier,
        }
    }

    pub(super) fn on_unsubscribe(&mut self, unsubscribe: &Unsubscribe, size: usize) -> Result<(), Ending> {
        let packet_id = unsubscribe.packet_id;
        self.packet_ids.request(packet_id)?;
        let size = size + unsubscribe.filters.len() * size_of::<MqttStr>();
        for filter in &unsubscribe.filters {
            self.filters.remove(filter.as_str());
        }
        let filters = unsubscribe.filters.iter().map(MqttStr::detached).collect();
        let done = self.session.unsubscribe(filters);
        self.replies.push(Order::Subscription, size, done.map(move |reasons| Reply::UnsubAck(packet_id, reasons)));
        Ok(())
    }
}

/// Returns one code per filter of the SUBSCRIBE, in its order ([MQTT-3.8.4-6], [MQTT-3.9.3-1]).
fn merge(refused: Vec<Option<ReasonCode>>, granted: Vec<ReasonCode>) -> Vec<ReasonCode> {
    let mut granted = granted.into_iter();
    let mut answer = |refusal: Option<ReasonCode>| refusal.or_else(|| granted.next());
    refused.into_iter().map(|refusal| answer(refusal).unwrap_or(ReasonCode::UnspecifiedError)).collect()
}
