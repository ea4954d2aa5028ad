//! The deliveries in flight to the client, and the acknowledgement that each expects next (MQTT 5, 4.3).
//!
//! ```text
//! qos 1: Sent --PUBACK--> done
//! qos 2: Sent --PUBREC--> Received --PUBCOMP--> done
//! ```

use std::collections::BTreeMap;

use covey_codec::{PacketId, QoS};

use super::close::Ending;

/// Progress of one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// PUBLISH was sent; PUBACK or PUBREC is expected.
    Sent(QoS),
    /// PUBREC was received or PUBREL was resent; PUBCOMP is expected.
    Received,
}

/// Deliveries above QoS 0 whose last acknowledgement is missing; at most as many as the client's receive maximum.
#[derive(Debug, Default)]
pub(super) struct Deliveries(BTreeMap<PacketId, Stage>);

impl Deliveries {
    /// Records a sent PUBLISH above QoS 0.
    pub(super) fn sent(&mut self, id: PacketId, qos: QoS) {
        self.0.insert(id, Stage::Sent(qos));
    }

    /// Records a PUBREL that was sent for a PUBREC of an earlier connection.
    pub(super) fn released(&mut self, id: PacketId) {
        self.0.insert(id, Stage::Received);
    }

    /// Handles PUBACK. An unknown identifier is accepted: its delivery may already have been acknowledged.
    ///
    /// # Errors
    /// Fails if the delivery is of QoS 2.
    pub(super) fn acknowledged(&mut self, id: PacketId) -> Result<(), Ending> {
        match self.0.get(&id) {
            Some(Stage::Sent(QoS::AtLeastOnce)) => drop(self.0.remove(&id)),
            None => {}
            Some(_) => return Err(Ending::protocol_error("puback for a delivery of qos 2 [MQTT-4.3.3-3]")),
        }
        Ok(())
    }

    /// Handles PUBREC. `refused` says whether its reason code is an error, which ends the delivery.
    ///
    /// # Errors
    /// Fails if the delivery is of QoS 1.
    pub(super) fn received(&mut self, id: PacketId, refused: bool) -> Result<(), Ending> {
        match self.0.get_mut(&id) {
            Some(Stage::Sent(QoS::ExactlyOnce) | Stage::Received) if refused => drop(self.0.remove(&id)),
            Some(stage @ (Stage::Sent(QoS::ExactlyOnce) | Stage::Received)) => *stage = Stage::Received,
            None => {}
            Some(Stage::Sent(_)) => {
                return Err(Ending::protocol_error("pubrec for a delivery of qos 1 [MQTT-4.3.2-3]"));
            }
        }
        Ok(())
    }

    /// Handles PUBCOMP.
    ///
    /// # Errors
    /// Fails if the delivery is of QoS 1 or its PUBREC is missing.
    pub(super) fn completed(&mut self, id: PacketId) -> Result<(), Ending> {
        match self.0.get(&id) {
            Some(Stage::Received) => drop(self.0.remove(&id)),
            None => {}
            Some(Stage::Sent(_)) => return Err(Ending::protocol_error("pubcomp before pubrec [MQTT-4.3.3-4]")),
        }
        Ok(())
    }
}
