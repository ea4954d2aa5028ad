//! Encoding: the fixed header and the dispatch to the encoder of each packet.
//!
//! The body of a packet is measured and written by the same function, so that the remaining length is right. Rules of
//! who may send which packet are up to the caller. A packet that the wire format cannot express is an [`EncodeError`].

use bytes::BytesMut;

use crate::decode::kind;
use crate::error::EncodeError;
use crate::packet::{Packet, ProtocolVersion};
use crate::varint;
use crate::wire::{Count, Sink};

mod connect;
mod delivery;
mod disconnect;
mod publish;
mod subscribe;

pub use delivery::{Delivery, EncodedPublish};

/// Appends one packet to `out`.
///
/// In MQTT 3.1.1 properties are omitted, a SUBACK error becomes 0x80 and a CONNACK code the nearest return code.
///
/// # Errors
/// Fails if the packet or its reason code does not exist in the version, if a field is too long, or if packet
/// identifier and QoS of a PUBLISH do not agree. `out` is unchanged then.
pub fn encode(packet: &Packet, version: ProtocolVersion, out: &mut BytesMut) -> Result<(), EncodeError> {
    let len = body_len(packet, version)?;
    out.reserve(len.saturating_add(5));
    out.u8(first_byte(packet));
    out.varint(u32::try_from(len).unwrap_or(varint::MAX));
    body(packet, version, out);
    Ok(())
}

impl Packet {
    /// Returns the number of bytes that [`encode`] appends for this packet, including the fixed header.
    ///
    /// # Errors
    /// Fails as [`encode`] does.
    pub fn encoded_len(&self, version: ProtocolVersion) -> Result<usize, EncodeError> {
        Ok(framed_len(body_len(self, version)?))
    }
}

/// Returns the length of a packet with this length of body.
fn framed_len(body: usize) -> usize {
    let (_, width) = varint::bytes(u32::try_from(body).unwrap_or(varint::MAX));
    1 + width + body
}

fn body_len(packet: &Packet, version: ProtocolVersion) -> Result<usize, EncodeError> {
    check(packet, version)?;
    let mut count = Count::default();
    body(packet, version, &mut count);
    checked_len(&count)
}

fn checked_len(count: &Count) -> Result<usize, EncodeError> {
    let fits = u32::try_from(count.len).is_ok_and(|len| len <= varint::MAX);
    if count.too_long || !fits {
        return Err(EncodeError::TooLong);
    }
    Ok(count.len)
}

fn check(packet: &Packet, version: ProtocolVersion) -> Result<(), EncodeError> {
    match packet {
        Packet::Connect(connect) if connect.protocol_version != version => Err(EncodeError::NotInVersion),
        Packet::Auth(_) if version == ProtocolVersion::V311 => Err(EncodeError::NotInVersion),
        Packet::ConnAck(ack) if version == ProtocolVersion::V311 && ack.reason.connect_return_code().is_none() => {
            Err(EncodeError::NotInVersion)
        }
        Packet::Publish(publish) => publish::check_packet_id(publish.qos, publish.packet_id),
        _ => Ok(()),
    }
}

fn first_byte(packet: &Packet) -> u8 {
    let (kind, flags) = match packet {
        Packet::Connect(_) => (kind::CONNECT, 0),
        Packet::ConnAck(_) => (kind::CONNACK, 0),
        Packet::Publish(publish) => (kind::PUBLISH, publish::flags(publish.dup, publish.qos, publish.retain)),
        Packet::PubAck(_) => (kind::PUBACK, 0),
        Packet::PubRec(_) => (kind::PUBREC, 0),
        Packet::PubRel(_) => (kind::PUBREL, 0b0010),
        Packet::PubComp(_) => (kind::PUBCOMP, 0),
        Packet::Subscribe(_) => (kind::SUBSCRIBE, 0b0010),
        Packet::SubAck(_) => (kind::SUBACK, 0),
        Packet::Unsubscribe(_) => (kind::UNSUBSCRIBE, 0b0010),
        Packet::UnsubAck(_) => (kind::UNSUBACK, 0),
        Packet::PingReq => (kind::PINGREQ, 0),
        Packet::PingResp => (kind::PINGRESP, 0),
        Packet::Disconnect(_) => (kind::DISCONNECT, 0),
        Packet::Auth(_) => (kind::AUTH, 0),
    };
    kind << 4 | flags
}

fn body<S: Sink>(packet: &Packet, version: ProtocolVersion, out: &mut S) {
    match packet {
        Packet::Connect(connect) => connect::connect(connect, out),
        Packet::ConnAck(ack) => connect::connack(ack, version, out),
        Packet::Publish(publish) => publish::publish(publish, version, out),
        Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubRel(ack) | Packet::PubComp(ack) => {
            publish::ack(ack, version, out);
        }
        Packet::Subscribe(subscribe) => subscribe::subscribe(subscribe, version, out),
        Packet::SubAck(ack) => subscribe::suback(ack, version, out),
        Packet::Unsubscribe(unsubscribe) => subscribe::unsubscribe(unsubscribe, version, out),
        Packet::UnsubAck(ack) => subscribe::unsuback(ack, version, out),
        Packet::PingReq | Packet::PingResp => {}
        Packet::Disconnect(disconnect) => disconnect::disconnect(disconnect, version, out),
        Packet::Auth(auth) => disconnect::auth(auth, out),
    }
}
