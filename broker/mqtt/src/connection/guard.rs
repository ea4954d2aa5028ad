//! What a connection needs of access control and of metrics: two small borders that `access` and `metrics` implement.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use covey_codec::{Packet, QoS, ReasonCode};
use tokio::sync::watch;

use super::{Closed, Rejected};

/// Decides who may connect.
pub trait Guard: Send + Sync + 'static {
    /// A user with its rights.
    type Principal: Principal;

    /// Proves who a client is. Refusals are reason codes of CONNACK: 0x86 for unknown users and wrong passwords alike,
    /// 0x87 for a client id the user may not take, 0x89 when too many passwords wait to be checked.
    fn authenticate(
        &self,
        username: Option<&str>,
        password: Option<&[u8]>,
        client_id: &str,
        peer: IpAddr,
    ) -> impl Future<Output = Result<Arc<Self::Principal>, ReasonCode>> + Send;

    /// The principal under the present rules; `None` when the user is gone or may not hold this client id any more.
    fn refresh(&self, principal: &Self::Principal, client_id: &str) -> Option<Arc<Self::Principal>>;

    /// Changes whenever [`Guard::refresh`] or a right may answer otherwise than before.
    fn revision(&self) -> watch::Receiver<u64>;
}

/// A user with the rights of one revision of the rules.
pub trait Principal: Send + Sync + 'static {
    /// The user name.
    fn name(&self) -> &str;

    /// Whether a message may be published, at this QoS and with this retain flag.
    fn may_publish(&self, client_id: &str, topic: &str, qos: QoS, retain: bool) -> bool;

    /// Whether every topic that the filter can match may be received.
    fn may_subscribe(&self, client_id: &str, filter: &str, qos: QoS) -> bool;
}

/// Counts what connections do. Every method may be called from any task and must not block.
pub trait Observer: Send + Sync + 'static {
    /// A client got its successful CONNACK.
    fn opened(&self);

    /// A connection that was [`Observer::opened`] ended.
    fn closed(&self, reason: Closed);

    /// A socket was closed before it was [`Observer::opened`].
    fn rejected(&self, reason: Rejected);

    /// A packet came from a client.
    fn received(&self, packet: &Packet);

    /// A packet was written for a client.
    fn sent(&self, packet: &Packet);

    /// Bytes came from a client.
    fn bytes_received(&self, bytes: usize);

    /// Bytes went to a client.
    fn bytes_sent(&self, bytes: usize);

    /// A publish was refused by the rules.
    fn publish_denied(&self);

    /// One filter of a SUBSCRIBE was refused by the rules.
    fn subscribe_denied(&self);

    /// A subscription was ended because the rules changed.
    fn subscription_revoked(&self);

    /// A message did not fit into the client's maximum packet size and was dropped.
    fn dropped_too_large(&self, qos: QoS);
}
