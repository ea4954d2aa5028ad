//! Codec for MQTT 5 and MQTT 3.1.1 packets; no I/O, no clock, no runtime.
//!
//! Connections decode what they read with [`Decoder`] and encode what they send with [`encode`]. Invariant: a packet
//! that [`Decoder::decode`] returns is well-formed by the standard of its version, so that no caller checks the wire
//! format again. Checks that depend on the state of a session (whether a packet identifier is in use, whether a topic
//! alias is known) are left to the caller.
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
