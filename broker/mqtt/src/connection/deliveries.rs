//! The deliveries that wait for the client, and the acknowledgement that each takes (4.3).
//!
//! ```text
//! qos 1: Sent --PUBACK--> done
//! qos 2: Sent --PUBREC--> Received --PUBCOMP--> done
//! ```

use std::collections::BTreeMap;

use covey_codec::{PacketId, QoS};

use super::close::Ending;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Sent(QoS),
    Received,
}

/// Deliveries above QoS 0 without their last acknowledgement: at most as many as the client's receive maximum.
#[derive(Debug, Default)]
pub(super) struct Deliveries(BTreeMap<PacketId, Stage>);

impl Deliveries {
    /// A PUBLISH above QoS 0 was sent.
    pub(super) fn sent(&mut self, id: PacketId, qos: QoS) {
        self.0.insert(id, Stage::Sent(qos));
    }

    /// A PUBREL was sent for a PUBREC of an earlier connection.
    pub(super) fn released(&mut self, id: PacketId) {
        self.0.insert(id, Stage::Received);
    }

    /// PUBACK came. An identifier that is not known may be of a delivery that the client acknowledged already.
    ///
    /// # Errors
    /// The delivery is one of QoS 2.
    pub(super) fn acknowledged(&mut self, id: PacketId) -> Result<(), Ending> {
        match self.0.get(&id) {
            Some(Stage::Sent(QoS::AtLeastOnce)) => drop(self.0.remove(&id)),
            None => {}
            Some(_) => return Err(Ending::protocol_error("puback for a delivery of qos 2 [MQTT-4.3.3-6]")),
        }
        Ok(())
    }

    /// PUBREC came, with an error or without.
    ///
    /// # Errors
    /// The delivery is one of QoS 1.
    pub(super) fn received(&mut self, id: PacketId, refused: bool) -> Result<(), Ending> {
        match self.0.get_mut(&id) {
            Some(Stage::Sent(QoS::ExactlyOnce) | Stage::Received) if refused => drop(self.0.remove(&id)),
            Some(stage @ (Stage::Sent(QoS::ExactlyOnce) | Stage::Received)) => *stage = Stage::Received,
            None => {}
            Some(Stage::Sent(_)) => {
                return Err(Ending::protocol_error("pubrec for a delivery of qos 1 [MQTT-4.3.2-2]"));
            }
        }
        Ok(())
    }

    /// PUBCOMP came.
    ///
    /// # Errors
    /// The delivery is one of QoS 1, or its PUBREC did not come.
    pub(super) fn completed(&mut self, id: PacketId) -> Result<(), Ending> {
        match self.0.get(&id) {
            Some(Stage::Received) => drop(self.0.remove(&id)),
            None => {}
            Some(Stage::Sent(_)) => return Err(Ending::protocol_error("pubcomp before pubrec [MQTT-4.3.3-4]")),
        }
        Ok(())
    }
}
