//! Read access for the shard's leader: sessions, routes, wills and bodies.

use covey_codec::QoS;
use covey_types::{NodeEpoch, NodeId, OwnerEpoch};

use super::bodies::Body;
use super::command::Will;
use super::session::{Session, SessionId};
use super::state::{Effect, ShardState};
use crate::rows;

impl ShardState {
    /// Returns shard time as of the last entry, in milliseconds.
    pub fn time(&self) -> u64 {
        self.header.time
    }

    /// Returns the effects since the last call, in the order in which they occurred.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Returns the session with that number.
    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id)
    }

    /// Returns the number and the state of the session with that client id.
    pub fn session_of(&self, client: &str) -> Option<(SessionId, &Session)> {
        let id = self.clients.get(client)?;
        Some((*id, self.sessions.get(id)?))
    }

    /// All sessions, transient ones included, in the order of their numbers.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.sessions.iter().map(|(id, session)| (*id, session))
    }

    /// Returns the highest QoS of the subscriptions with exactly this filter; `None` if there is no subscription.
    pub fn route_qos(&self, filter: &str) -> Option<QoS> {
        self.filters.get(filter)?.highest()
    }

    /// All filters that have a subscription, each with its highest QoS.
    pub fn routes(&self) -> impl Iterator<Item = (&str, QoS)> {
        self.filters.iter().filter_map(|(filter, counts)| Some((&**filter, counts.highest()?)))
    }

    /// Returns the filters whose retained messages the session still awaits; empty if `owner` does not hold the
    /// session.
    pub fn awaiting(&self, client: &str, owner: OwnerEpoch) -> Vec<Box<str>> {
        let session = self.session_of(client).map(|(_, session)| session);
        let held = session.filter(|session| session.profile.owner == owner && session.profile.holder.is_some());
        held.map(|session| session.awaiting.keys().cloned().collect()).unwrap_or_default()
    }

    /// Wills that wait to be published, by number.
    pub fn wills(&self) -> impl Iterator<Item = (u64, &Will)> {
        self.wills.iter().map(|(number, will)| (*number, will))
    }

    /// Returns the highest epoch of the node that has ended as far as this shard knows.
    pub fn ended_epoch(&self, node: NodeId) -> Option<NodeEpoch> {
        self.senders.get(&node)?.ended
    }

    /// Returns a message that is cached in memory. Any other one is in the row [`body_key`](Self::body_key).
    pub fn cached_body(&self, body: u64) -> Option<&Body> {
        self.bodies.cached(body)
    }

    /// Returns the key of the row that stores a message.
    pub fn body_key(body: u64) -> Vec<u8> {
        rows::key(b'b', &[body])
    }
}
