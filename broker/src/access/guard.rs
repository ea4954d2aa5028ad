//! Access as connections see it.

use std::net::IpAddr;
use std::sync::Arc;

use covey_codec::{QoS, ReasonCode};
use tokio::sync::watch;

use super::{Access, Failure, Principal};
use crate::connection::{self, Guard};

impl Guard for Access {
    type Principal = Principal;

    async fn authenticate(
        &self,
        username: Option<&str>,
        password: Option<&[u8]>,
        client_id: &str,
        peer: IpAddr,
    ) -> Result<Arc<Principal>, ReasonCode> {
        Self::authenticate(self, username, password, client_id, peer).await.map_err(Failure::reason_code)
    }

    fn refresh(&self, principal: &Principal, client_id: &str) -> Option<Arc<Principal>> {
        Self::refresh(self, principal, client_id)
    }

    fn revision(&self) -> watch::Receiver<u64> {
        Self::revision(self)
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
