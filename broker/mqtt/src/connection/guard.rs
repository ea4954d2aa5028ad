//! Interface of connections to access control and to metrics.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use covey_codec::{Packet, QoS, ReasonCode};
use tokio::sync::watch;

use super::{Closed, Rejected};

/// Authenticates clients.
pub trait Guard: Send + Sync + 'static {
    /// A user with its rights.
    type Principal: Principal;

    /// Authenticates a client and checks that the user may use the client id.
    ///
    /// # Errors
    /// Returns the reason code for CONNACK: 0x86 for an unknown user or a wrong password, 0x87 for a client id that the
    /// user may not use, 0x88 if no rules are loaded, 0x89 if too many password checks are queued or the address failed
    /// too often.
    fn authenticate(
        &self,
        username: Option<&str>,
        password: Option<&[u8]>,
        client_id: &str,
        peer: IpAddr,
    ) -> impl Future<Output = Result<Arc<Self::Principal>, ReasonCode>> + Send;

    /// Returns the principal under the rules in force, or `None` if the user no longer exists or may no longer use the
    /// client id.
    fn refresh(&self, principal: &Self::Principal, client_id: &str) -> Option<Arc<Self::Principal>>;

    /// Returns a receiver of the revision, which changes whenever the result of [`Guard::refresh`] or of an access
    /// check may have changed.
    fn revision(&self) -> watch::Receiver<u64>;
}

/// A user with the rights of one revision of the rules.
pub trait Principal: Send + Sync + 'static {
    /// Returns the user name.
    fn name(&self) -> &str;

    /// Returns whether the user may publish to the topic at this QoS and with this retain flag.
    fn may_publish(&self, client_id: &str, topic: &str, qos: QoS, retain: bool) -> bool;

    /// Returns whether the user may receive every topic that the filter matches.
    fn may_subscribe(&self, client_id: &str, filter: &str, qos: QoS) -> bool;
}

/// Receives the events of connections, to count them. Methods may be called from any task and must not block.
pub trait Observer: Send + Sync + 'static {
    /// A successful CONNACK was queued for a client.
    fn opened(&self);

    /// A connection that was [`Observer::opened`] ended.
    fn closed(&self, reason: Closed);

    /// A socket was closed before it was [`Observer::opened`].
    fn rejected(&self, reason: Rejected);

    /// A packet was received from a client.
    fn received(&self, packet: &Packet);

    /// A packet was queued for a client.
    fn sent(&self, packet: &Packet);

    /// Bytes were received from a client.
    fn bytes_received(&self, bytes: usize);

    /// Bytes were written to a client's socket.
    fn bytes_sent(&self, bytes: usize);

    /// The rules denied a publish.
    fn publish_denied(&self);

    /// The rules denied one filter of a SUBSCRIBE.
    fn subscribe_denied(&self);

    /// A subscription was ended because the rules changed.
    fn subscription_revoked(&self);

    /// A message was dropped because it exceeds the client's maximum packet size.
    fn dropped_too_large(&self, qos: QoS);
}
