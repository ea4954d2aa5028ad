//! Bytes to MQTT 5 and MQTT 3.1.1 packets and back; no I/O, no clock, no runtime.
//!
//! The broker's listener calls [`Decoder`] on what it read and [`encode`] on what it sends; `core` uses the packet types
//! and [`topic`]. Invariant: a packet that [`Decoder::decode`] returns is well formed by the standard of its version,
//! so that nobody behind it checks the wire format again. What depends on the state of a session (who owns a packet
//! identifier, whether a topic alias is known) is not decided here.
//!
//! ```text
//! BytesMut -> Decoder -> frame -> Reader -> packet::*      (zero-copy: text and payload share the read buffer)
//! packet::* -> encode -> BytesMut                          (one packet for one receiver)
//! Publish -> EncodedPublish -> write(Delivery) -> BytesMut (one message for many receivers)
//! ```

mod decode;
mod encode;
mod error;
pub mod packet;
mod property;
mod reason;
mod text;
pub mod topic;
mod varint;
mod wire;

pub use decode::Decoder;
pub use encode::{Delivery, EncodedPublish, encode};
pub use error::{DecodeError, EncodeError};
pub use packet::{Packet, PacketId, ProtocolVersion, QoS};
pub use reason::{InvalidReasonCode, ReasonCode};
pub use text::{MqttStr, TextError};
