//! What MQTT says: one type per control packet, the same for both versions.
//!
//! The fields of a packet are what its sender meant; a property that was absent is `None` or empty, and a 3.1.1 packet
//! has default properties and the reason codes of MQTT 5. The decoder makes them, the encoder writes them.

use std::num::NonZeroU16;

mod ack;
mod connect;
mod publish;
mod session;
mod subscribe;

pub use ack::{Ack, AckProperties};
pub use connect::{ConnAck, ConnAckProperties, Connect, ConnectProperties, Will, WillProperties};
pub use publish::{PayloadFormat, Publish, PublishProperties};
pub use session::{Auth, AuthProperties, Disconnect, DisconnectProperties};
pub use subscribe::{
    RetainHandling, SubAck, Subscribe, SubscribeProperties, Subscription, SubscriptionOptions, UnsubAck, Unsubscribe,
    UnsubscribeProperties,
};

use crate::text::MqttStr;

/// A list of user properties, in the order of the wire (1.5.7); keys may repeat.
pub type UserProperties = Vec<(MqttStr, MqttStr)>;

/// The version of MQTT that a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProtocolVersion {
    /// MQTT 3.1.1, protocol level 4.
    V311,
    /// MQTT 5, protocol level 5.
    V5,
}

/// How surely a message is delivered (4.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// The QoS of a two-bit field; `None` for the forbidden 3.
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

/// The identifier of an unfinished exchange; never zero ([MQTT-2.2.1-3], in 3.1.1 [MQTT-2.3.1-1]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketId(pub NonZeroU16);

impl PacketId {
    /// The identifier of this value; `None` for zero.
    pub fn new(value: u16) -> Option<Self> {
        NonZeroU16::new(value).map(Self)
    }

    /// The value on the wire.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

/// One control packet of either version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// A client asks to connect (3.1).
    Connect(Box<Connect>),
    /// The server answers a CONNECT (3.2).
    ConnAck(Box<ConnAck>),
    /// A message (3.3).
    Publish(Publish),
    /// The answer to a QoS 1 message (3.4).
    PubAck(Ack),
    /// The first answer to a QoS 2 message (3.5).
    PubRec(Ack),
    /// The release of a QoS 2 message (3.6).
    PubRel(Ack),
    /// The end of a QoS 2 exchange (3.7).
    PubComp(Ack),
    /// A client asks for subscriptions (3.8).
    Subscribe(Subscribe),
    /// The answer to a SUBSCRIBE (3.9).
    SubAck(SubAck),
    /// A client drops subscriptions (3.10).
    Unsubscribe(Unsubscribe),
    /// The answer to an UNSUBSCRIBE (3.11).
    UnsubAck(UnsubAck),
    /// A client shows that it lives (3.12).
    PingReq,
    /// The answer to a PINGREQ (3.13).
    PingResp,
    /// The last packet of a connection (3.14); from a server only in MQTT 5.
    Disconnect(Disconnect),
    /// One step of an extended authentication (3.15); MQTT 5 only.
    Auth(Auth),
}
