//! The packet identifiers that a client has in use on its connection, and what a packet under one of them means (2.2.1).
//!
//! [MQTT-2.2.1-3] demands an unused identifier for every new PUBLISH above QoS 0, SUBSCRIBE and UNSUBSCRIBE, and
//! [MQTT-4.4.0-1] lets MQTT 5 clients send a PUBLISH again only after they have reconnected. Invariant: no identifier has
//! two exchanges at once, so that what a client has unacknowledged is bounded by the number of identifiers in use.
//!
//! ```text
//! PUBLISH qos 1: Published --PUBACK--> free
//! PUBLISH qos 2: Published --PUBREC--> Received --PUBREL came--> Released --PUBCOMP--> free
//! (UN)SUBSCRIBE: Requested --SUBACK, UNSUBACK--> free
//! ```

use std::collections::BTreeMap;

use covey_codec::{PacketId, ProtocolVersion, QoS};

use super::close::Ending;

/// What an identifier is in use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// A PUBLISH at this QoS whose PUBACK or PUBREC was not sent.
    Published(QoS),
    /// A PUBLISH at QoS 2 whose PUBREC was sent.
    Received,
    /// A PUBLISH at QoS 2 whose PUBREL came.
    Released,
    /// A SUBSCRIBE or an UNSUBSCRIBE.
    Requested,
}

/// What has to be done with a PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Its exchange begins.
    Begin,
    /// It is a repetition whose first acknowledgement is on its way.
    Ignore,
    /// It is a repetition of a QoS 2 message that was received: PUBREC has to be sent again ([MQTT-4.3.3-10]).
    Repeat,
}

/// See the module. At most one entry per identifier: 65,535 of a few bytes each.
#[derive(Debug, Default)]
pub(super) struct PacketIds {
    uses: BTreeMap<PacketId, Use>,
    requests: usize,
}

impl PacketIds {
    /// Publishes of the client that are not completely acknowledged: what counts towards the receive maximum (4.9).
    pub(super) fn publishes(&self) -> usize {
        self.uses.len() - self.requests
    }

    /// A PUBLISH came.
    ///
    /// # Errors
    /// The identifier is in use for something else.
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
            // MQTT 3.1.1 does not forbid to send a PUBLISH again on the same connection.
            Some(Use::Published(first)) if dup && *first == qos && version == ProtocolVersion::V311 => {
                Ok(Admission::Ignore)
            }
            Some(_) => Err(in_use()),
        }
    }

    /// A SUBSCRIBE or UNSUBSCRIBE came.
    ///
    /// # Errors
    /// The identifier is in use.
    pub(super) fn request(&mut self, id: PacketId) -> Result<(), Ending> {
        if self.uses.contains_key(&id) {
            return Err(in_use());
        }
        self.uses.insert(id, Use::Requested);
        self.requests += 1;
        Ok(())
    }

    /// PUBREC without an error is sent.
    pub(super) fn received(&mut self, id: PacketId) {
        self.uses.insert(id, Use::Received);
    }

    /// PUBREL came. An identifier that is not in use may be one of an earlier connection of the session.
    ///
    /// # Errors
    /// PUBREC was not sent: the exchange would end while its PUBLISH is still under way.
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

    /// The last acknowledgement is sent: the identifier is free.
    pub(super) fn free(&mut self, id: PacketId) {
        if self.uses.remove(&id) == Some(Use::Requested) {
            self.requests -= 1;
        }
    }
}

fn in_use() -> Ending {
    Ending::protocol_error("packet identifier is in use [MQTT-2.2.1-3]")
}
