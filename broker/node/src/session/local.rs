//! A session whose connection is on this node.

use std::sync::Arc;

use covey_core::topic::Name;
use covey_mqtt::session::{Close, Delivery, Event};
use covey_types::{ConnectionId, NodeEpoch, OwnerEpoch};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::inflight::{Full, Inflight};
use crate::transient::TransientSession;

/// Most QoS 0 messages that wait for a connection, as many as a transient queue holds. Further ones are dropped and
/// counted.
const MAX_QOS0_QUEUED: usize = 1000;
/// Slots of a connection's event channel that QoS 0 does not use: for a window of deliveries with their PUBRELs, and
/// for `Close`.
const RESERVED_SLOTS: usize = 300;
/// Capacity of a connection's event channel.
pub(super) const EVENT_CAPACITY: usize = MAX_QOS0_QUEUED + RESERVED_SLOTS;

/// A session that a connection of this node holds.
#[derive(Debug)]
pub(super) struct LocalSession {
    /// Client id.
    pub(super) client: Box<str>,
    /// User name.
    pub(super) principal: Arc<str>,
    /// Owner epoch from the claim.
    pub(super) owner: OwnerEpoch,
    /// Node epoch under which the claim was made.
    pub(super) epoch: NodeEpoch,
    /// The connection, as in the claim.
    pub(super) connection: ConnectionId,
    /// Events for the connection; `None` once `Close` was sent, after which the channel ends.
    pub(super) events: Mutex<Option<mpsc::Sender<Event>>>,
    /// Deliveries to the client, and all else of a transient session.
    pub(super) state: Mutex<SessionState>,
}

/// State of a session on this node.
#[derive(Debug)]
pub(super) enum SessionState {
    /// Queue and subscriptions are in the shard; here is what was sent and not acknowledged.
    Durable(Inflight),
    /// All state is here.
    Transient(TransientSession),
}

impl LocalSession {
    /// Returns whether the session is durable.
    pub(super) fn is_durable(&self) -> bool {
        matches!(&*self.state.lock(), SessionState::Durable(_))
    }

    /// Notes a live copy of a retained message, for subscriptions that still await their retained messages.
    pub(super) fn note_live_copy(&self, name: &Name, index: u64) {
        if let SessionState::Transient(session) = &mut *self.state.lock() {
            session.note_live_copy(name, index);
        }
    }

    /// Sends events that must not be dropped. A connection without room for them is closed. Its session stays
    /// registered until the connection has ended, because only that ends the claim and publishes the will.
    pub(super) fn send(&self, events: Vec<Event>) {
        for event in events {
            if !self.offer(event, 0) {
                self.close(Close::QueueFull);
                return;
            }
        }
    }

    /// Sends a QoS 0 message if there is room; returns whether there was.
    pub(super) fn send_qos0(&self, delivery: Delivery) -> bool {
        self.offer(Event::Deliver(Box::new(delivery)), RESERVED_SLOTS)
    }

    /// Queues a QoS 1 or 2 delivery for a transient session; a full queue closes the session (0x97).
    pub(super) fn queue(&self, delivery: Delivery) {
        if let SessionState::Transient(session) = &mut *self.state.lock() {
            self.push(session, delivery);
        }
    }

    /// Queues a delivery for the transient session, which is that of the locked state.
    pub(super) fn push(&self, session: &mut TransientSession, delivery: Delivery) {
        match session.push(delivery) {
            Ok(events) => self.send(events),
            Err(Full) => self.close(Close::QueueFull),
        }
    }

    /// Queues `event` if at least `left` slots stay free afterwards; returns whether it was queued. One slot is always
    /// reserved for `Close`.
    fn offer(&self, event: Event, left: usize) -> bool {
        let events = self.events.lock();
        events.as_ref().is_some_and(|events| events.capacity() > left.max(1) && events.try_send(event).is_ok())
    }

    /// Asks the connection to close; only the first call has an effect.
    pub(super) fn close(&self, why: Close) {
        if let Some(events) = self.events.lock().take() {
            // Fails if the connection has already ended.
            drop(events.try_send(Event::Close(why)));
        }
    }
}
