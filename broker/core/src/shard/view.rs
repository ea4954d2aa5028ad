//! What a leader reads of the state: sessions, routes, wills, bodies.

use super::bodies::Body;
use super::command::{NodeId, Will};
use super::machine::{Effect, Machine};
use super::session::{Session, SessionId};
use crate::rows;

impl Machine {
    /// Shard time of the last entry, milliseconds.
    pub fn time(&self) -> u64 {
        self.header.time
    }

    /// What the leader must do; empty afterwards.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id)
    }

    pub fn session_of(&self, client: &str) -> Option<(SessionId, &Session)> {
        let id = self.clients.get(client)?;
        Some((*id, self.sessions.get(id)?))
    }

    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.sessions.iter().map(|(id, session)| (*id, session))
    }

    /// Highest QoS subscribed with the filter here; `None` when nobody did.
    pub fn route(&self, filter: &str) -> Option<u8> {
        highest(self.filters.get(filter)?)
    }

    /// Every filter with its highest QoS.
    pub fn routes(&self) -> impl Iterator<Item = (&str, u8)> {
        self.filters.iter().filter_map(|(filter, counts)| Some((&**filter, highest(counts)?)))
    }

    /// Filters whose retained messages the session still awaits, if `owner` holds it.
    pub fn awaiting(&self, client: &str, owner: u64) -> Vec<Box<str>> {
        let session = self.session_of(client).map(|(_, session)| session);
        let held = session.filter(|session| session.profile.owner == owner && session.profile.holder.is_some());
        held.map(|session| session.awaiting.keys().cloned().collect()).unwrap_or_default()
    }

    /// Wills that wait to be published.
    pub fn wills(&self) -> impl Iterator<Item = (u64, &Will)> {
        self.wills.iter().map(|(number, will)| (*number, will))
    }

    /// The highest epoch of a node that this shard knows to be over.
    pub fn ended_epoch(&self, node: NodeId) -> u64 {
        self.senders.get(&node).map_or(0, |sender| sender.ended)
    }

    /// A message, if it is still in memory; else its row is under [`body_key`](Self::body_key).
    pub fn cached_body(&self, body: u64) -> Option<&Body> {
        self.bodies.cached(body)
    }

    pub fn body_key(body: u64) -> Vec<u8> {
        rows::key(b'b', &[body])
    }
}

/// The highest QoS of which there is at least one.
pub fn highest(counts: &[u32; 3]) -> Option<u8> {
    (0_u8..).zip(counts).filter(|(_, count)| **count > 0).map(|(qos, _)| qos).max()
}
