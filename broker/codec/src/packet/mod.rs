//! The control packets: one type per packet, the same for both versions.
//!
//! A property that is absent on the wire is `None` or empty. A packet of 3.1.1 has default properties and the reason
//! codes of MQTT 5.

use std::num::NonZeroU16;

mod ack;
mod connect;
mod disconnect;
mod publish;
mod subscribe;

pub use ack::{Ack, AckProperties};
pub use connect::{ConnAck, ConnAckProperties, Connect, ConnectProperties, Will, WillProperties};
pub use disconnect::{Auth, AuthProperties, Disconnect, DisconnectProperties};
pub use publish::{PayloadFormat, Publish, PublishProperties};
pub use subscribe::{
    RetainHandling, SubAck, Subscribe, SubscribeProperties, Subscription, SubscriptionOptions, UnsubAck, Unsubscribe,
    UnsubscribeProperties,
};

use crate::text::MqttStr;

/// Names and values of user properties, in the order of the wire (1.5.7). Names may repeat.
pub type UserProperties = Vec<(MqttStr, MqttStr)>;

/// Protocol version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProtocolVersion {
    /// MQTT 3.1.1, protocol level 4.
    V311,
    /// MQTT 5, protocol level 5.
    V5,
}

/// Quality of service of a message (4.3). Stored as its number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "u8", into = "u8")]
#[repr(u8)]
pub enum QoS {
    /// QoS 0.
    #[default]
    AtMostOnce = 0,
    /// QoS 1.
    AtLeastOnce = 1,
    /// QoS 2.
    ExactlyOnce = 2,
}

impl QoS {
    /// Returns the QoS of a two-bit field; `None` for 3 and above.
    pub fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

impl From<QoS> for u8 {
    fn from(qos: QoS) -> Self {
        qos as Self
    }
}

/// A number that is no QoS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no QoS")]
pub struct NotQoS(pub u8);

impl TryFrom<u8> for QoS {
    type Error = NotQoS;

    fn try_from(bits: u8) -> Result<Self, NotQoS> {
        Self::from_bits(bits).ok_or(NotQoS(bits))
    }
}

/// Packet identifier of an exchange; never zero ([MQTT-2.2.1-3], in 3.1.1 [MQTT-2.3.1-1]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketId(pub NonZeroU16);

impl PacketId {
    /// Returns the identifier with this value; `None` for zero.
    pub fn new(value: u16) -> Option<Self> {
        NonZeroU16::new(value).map(Self)
    }

    /// Returns the value on the wire.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

/// One control packet of either version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// Connection request of a client (3.1).
    Connect(Box<Connect>),
    /// Reply to a CONNECT (3.2).
    ConnAck(Box<ConnAck>),
    /// Application message (3.3).
    Publish(Publish),
    /// Acknowledgement of a QoS 1 message (3.4).
    PubAck(Ack),
    /// First acknowledgement of a QoS 2 message (3.5).
    PubRec(Ack),
    /// Release of a QoS 2 message (3.6).
    PubRel(Ack),
    /// Completion of a QoS 2 exchange (3.7).
    PubComp(Ack),
    /// Request for subscriptions (3.8).
    Subscribe(Subscribe),
    /// Reply to a SUBSCRIBE (3.9).
    SubAck(SubAck),
    /// Request to remove subscriptions (3.10).
    Unsubscribe(Unsubscribe),
    /// Reply to an UNSUBSCRIBE (3.11).
    UnsubAck(UnsubAck),
    /// Keep alive request of a client (3.12).
    PingReq,
    /// Reply to a PINGREQ (3.13).
    PingResp,
    /// Last packet of a connection (3.14); from a server only in MQTT 5.
    Disconnect(Disconnect),
    /// Step of an extended authentication (3.15); MQTT 5 only.
    Auth(Auth),
}
