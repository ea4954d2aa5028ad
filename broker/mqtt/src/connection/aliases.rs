//! The topic aliases that a client has set on its connection (MQTT 5, 3.3.2.3.4).

use covey_codec::{MqttStr, ReasonCode};

use super::close::{Closed, Ending};

/// Topic names by alias, for one direction of one connection ([MQTT-3.3.2-7]).
#[derive(Debug)]
pub(super) struct Aliases {
    /// Topic name of alias `i + 1` at index `i`; `None` if the alias is not set. At most `maximum` entries.
    topics: Vec<Option<MqttStr>>,
    /// Topic Alias Maximum of CONNACK.
    maximum: u16,
}

impl Aliases {
    /// Creates an empty mapping for aliases from 1 to `maximum`.
    pub(super) fn new(maximum: u16) -> Self {
        Self { topics: Vec::new(), maximum }
    }

    /// Returns the topic of a PUBLISH. A PUBLISH with both a topic and an alias sets the alias.
    ///
    /// # Errors
    /// Fails if the alias is 0, exceeds the maximum, or is used without having been set.
    pub(super) fn resolve(&mut self, topic: MqttStr, alias: Option<u16>) -> Result<MqttStr, Ending> {
        let Some(alias) = alias else {
            return Ok(topic);
        };
        let invalid =
            || Ending::told(Closed::ProtocolError, ReasonCode::TopicAliasInvalid, "topic alias is out of range");
        if alias > self.maximum {
            return Err(invalid());
        }
        let index = usize::from(alias).checked_sub(1).ok_or_else(invalid)?;
        if topic.is_empty() {
            let known = self.topics.get(index).and_then(Option::as_ref);
            return known.cloned().ok_or_else(|| Ending::protocol_error("topic alias is not set"));
        }
        if self.topics.len() <= index {
            self.topics.resize(index + 1, None);
        }
        if let Some(slot) = self.topics.get_mut(index) {
            *slot = Some(topic.detached());
        }
        Ok(topic)
    }
}
