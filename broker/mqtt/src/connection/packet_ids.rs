//! The packet identifiers that a client has in use on its connection (MQTT 5, 2.2.1).
//!
//! [MQTT-2.2.1-3] requires an unused identifier for every new PUBLISH above QoS 0, SUBSCRIBE and UNSUBSCRIBE, and
//! [MQTT-4.4.0-1] lets MQTT 5 clients resend a PUBLISH only after a reconnect. Invariant: an identifier has at most one
//! exchange at a time, so the number of identifiers bounds what a client has unacknowledged.
//!
//! ```text
//! PUBLISH qos 1: Published --PUBACK--> free
//! PUBLISH qos 2: Published --PUBREC--> Received --PUBREL came--> Released --PUBCOMP--> free
//! (UN)SUBSCRIBE: Requested --SUBACK, UNSUBACK--> free
//! ```

use std::collections::BTreeMap;

use covey_codec::{PacketId, ProtocolVersion, QoS};

use super::close::Ending;

/// Exchange that an identifier is in use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// A PUBLISH at this QoS whose PUBACK or PUBREC has not been sent.
    Published(QoS),
    /// A PUBLISH at QoS 2 whose PUBREC has been sent.
    Received,
    /// A PUBLISH at QoS 2 whose PUBREL has been received.
    Released,
    /// A SUBSCRIBE or an UNSUBSCRIBE.
    Requested,
}

/// How a PUBLISH has to be handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is new; its exchange begins.
    Begin,
    /// It is a duplicate of a PUBLISH that is still being processed and will be acknowledged.
    Ignore,
    /// It is a duplicate of a QoS 2 message that was received: PUBREC has to be sent again ([MQTT-4.3.3-10]).
    Repeat,
}

/// Identifiers in use. At most one entry per identifier: 65,535 of a few bytes each.
#[derive(Debug, Default)]
pub(super) struct PacketIds {
    /// Exchange of each identifier in use.
    uses: BTreeMap<PacketId, Use>,
    /// Number of entries that are [`Use::Requested`].
    requests: usize,
}

impl PacketIds {
    /// Returns the number of publishes that are not completely acknowledged, which the receive maximum bounds (4.9).
    pub(super) fn publishes(&self) -> usize {
        self.uses.len() - self.requests
    }

    /// Handles a PUBLISH above QoS 0.
    ///
    /// # Errors
    /// Fails if the identifier is in use for another exchange.
    pub(super) fn publish(
        &mut self,
        id: PacketId,
        qos: QoS,
        dup: bool,
        version: ProtocolVersion,
    ) -> Result<Admission, Ending> {
        match self.uses.get(&id) {
            None => {
                self.uses.insert(id, Use::Published(qos));
                Ok(Admission::Begin)
            }
            Some(Use::Received) if dup && qos == QoS::ExactlyOnce => Ok(Admission::Repeat),
            // MQTT 3.1.1 allows a client to resend a PUBLISH on the same connection.
            Some(Use::Published(first)) if dup && *first == qos && version == ProtocolVersion::V311 => {
                Ok(Admission::Ignore)
            }
            Some(_) => Err(in_use()),
        }
    }

    /// Handles a SUBSCRIBE or UNSUBSCRIBE.
    ///
    /// # Errors
    /// Fails if the identifier is in use.
    pub(super) fn request(&mut self, id: PacketId) -> Result<(), Ending> {
        if self.uses.contains_key(&id) {
            return Err(in_use());
        }
        self.uses.insert(id, Use::Requested);
        self.requests += 1;
        Ok(())
    }

    /// Records a sent PUBREC without error.
    pub(super) fn received(&mut self, id: PacketId) {
        self.uses.insert(id, Use::Received);
    }

    /// Handles PUBREL. An identifier that is not in use is accepted: it may be from an earlier connection of the
    /// session.
    ///
    /// # Errors
    /// Fails if PUBREC has not been sent: the exchange would end while its PUBLISH is still being processed.
    pub(super) fn release(&mut self, id: PacketId) -> Result<(), Ending> {
        match self.uses.get_mut(&id) {
            Some(known @ (Use::Received | Use::Released)) => *known = Use::Released,
            None => {}
            Some(Use::Published(_) | Use::Requested) => {
                return Err(Ending::protocol_error("pubrel before pubrec [MQTT-4.3.3-4]"));
            }
        }
        Ok(())
    }

    /// Frees an identifier whose last acknowledgement was sent.
    pub(super) fn free(&mut self, id: PacketId) {
        if self.uses.remove(&id) == Some(Use::Requested) {
            self.requests -= 1;
        }
    }
}

fn in_use() -> Ending {
    Ending::protocol_error("packet identifier is in use [MQTT-2.2.1-3]")
}
