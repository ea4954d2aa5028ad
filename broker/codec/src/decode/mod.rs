//! Decoding: framing, the rules of who may send which packet when, and the dispatch to the decoder of each packet.
//!
//! A connection has one [`Decoder`] and passes its read buffer to it. Invariants: memory is allocated only in
//! proportion to bytes that have arrived, and a decoder that failed once keeps failing.
//!
//! ```text
//! AwaitConnect --CONNECT--> Open(version) --any error--> Failed(error)
//! ```

use bytes::{Buf, Bytes, BytesMut};

use crate::error::{DecodeError, malformed, protocol};
use crate::packet::{Packet, ProtocolVersion};
use crate::varint;
use crate::wire::{Reader, UserPropertyPolicy};

mod ack;
mod connack;
mod connect;
mod disconnect;
mod publish;
mod subscribe;

/// The control packet types (2.1.2).
pub(crate) mod kind {
    pub(crate) const CONNECT: u8 = 1;
    pub(crate) const CONNACK: u8 = 2;
    pub(crate) const PUBLISH: u8 = 3;
    pub(crate) const PUBACK: u8 = 4;
    pub(crate) const PUBREC: u8 = 5;
    pub(crate) const PUBREL: u8 = 6;
    pub(crate) const PUBCOMP: u8 = 7;
    pub(crate) const SUBSCRIBE: u8 = 8;
    pub(crate) const SUBACK: u8 = 9;
    pub(crate) const UNSUBSCRIBE: u8 = 10;
    pub(crate) const UNSUBACK: u8 = 11;
    pub(crate) const PINGREQ: u8 = 12;
    pub(crate) const PINGRESP: u8 = 13;
    pub(crate) const DISCONNECT: u8 = 14;
    pub(crate) const AUTH: u8 = 15;
}

/// Sender of the packets that are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    Client,
    Server,
}

/// Context of a packet that its decoder needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context {
    pub(crate) version: ProtocolVersion,
    pub(crate) sender: Sender,
}

#[derive(Debug, Clone, Copy)]
enum State {
    AwaitConnect,
    Open(ProtocolVersion),
    Failed(DecodeError),
}

/// Decoder of one connection.
#[derive(Debug)]
pub struct Decoder {
    /// The peer.
    sender: Sender,
    state: State,
    /// Version of the CONNECT, even if the CONNECT was refused.
    version: Option<ProtocolVersion>,
    /// Largest packet in bytes, including the fixed header.
    limit: usize,
    /// Largest CONNECT in bytes, including the fixed header.
    connect_limit: usize,
    users: UserPropertyPolicy,
}

/// Length of protocol name and level in bytes: the beginning of every CONNECT after its fixed header.
const VERSION_LEN: usize = 7;

impl Decoder {
    /// Creates the decoder of a server: the first packet must be CONNECT, which determines the version.
    ///
    /// `max_packet_size` is in bytes and includes the fixed header. A larger packet is refused as soon as its length is
    /// known.
    pub fn new(max_packet_size: usize) -> Self {
        Self {
            sender: Sender::Client,
            state: State::AwaitConnect,
            version: None,
            limit: max_packet_size,
            connect_limit: max_packet_size,
            users: UserPropertyPolicy::Keep,
        }
    }

    /// Refuses a CONNECT of more than `max_size` bytes. It is bounded separately, because its sender is not
    /// authenticated yet.
    #[must_use]
    pub fn with_connect_limit(mut self, max_size: usize) -> Self {
        self.connect_limit = self.limit.min(max_size);
        self
    }

    /// Keeps only the user properties of PUBLISH and wills, which are forwarded, and refuses a message with more than
    /// `max` of them. The shortest user property has 5 bytes on the wire and takes 64 in memory, so without this bound
    /// a packet can take 13 times its size.
    #[must_use]
    pub fn with_forwarded_user_properties(mut self, max: usize) -> Self {
        self.users = UserPropertyPolicy::Forwarded { max };
        self
    }

    /// Creates the decoder of a client.
    pub fn client(version: ProtocolVersion, max_packet_size: usize) -> Self {
        Self {
            sender: Sender::Server,
            state: State::Open(version),
            version: Some(version),
            limit: max_packet_size,
            connect_limit: max_packet_size,
            users: UserPropertyPolicy::Keep,
        }
    }

    /// Returns the version of the connection. It is known as soon as the version of the CONNECT was decoded, even if
    /// the rest of the CONNECT is refused.
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.version
    }

    /// Decodes and removes one packet from the front of `bytes`. Returns `None` if the packet is incomplete.
    ///
    /// Text and payload of the packet share memory with `bytes`.
    ///
    /// # Errors
    /// Fails if the packet is malformed, too large, or not allowed here. Every further call returns the same error, and
    /// the content of `bytes` is unspecified.
    pub fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        if let State::Failed(error) = self.state {
            return Err(error);
        }
        self.next(bytes).inspect_err(|error| self.state = State::Failed(*error))
    }

    /// Returns the size in bytes of the packet at the front of `bytes`, including the fixed header; `None` if the fixed
    /// header is incomplete or malformed.
    pub fn announced(bytes: &[u8]) -> Option<usize> {
        announced(bytes).ok().flatten().map(|(size, _)| size)
    }

    fn next(&mut self, bytes: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        self.check_first_byte(first)?;
        let Some((size, header)) = announced(bytes)? else { return Ok(None) };
        if matches!(self.state, State::AwaitConnect) && size > self.connect_limit {
            return self.refuse_connect(bytes, size, header);
        }
        if size > self.limit {
            return Err(DecodeError::TooLarge { size, limit: self.limit });
        }
        if bytes.len() < size {
            return Ok(None);
        }
        let mut frame = bytes.split_to(size).freeze();
        frame.advance(header);
        let mut body = Reader::new(frame, self.users);
        let packet = self.packet(first, &mut body)?;
        body.finish()?;
        Ok(Some(packet))
    }

    /// Refuses a CONNECT that is too large, but only once its version is known, which the CONNACK depends on.
    fn refuse_connect(&mut self, bytes: &BytesMut, size: usize, header: usize) -> Result<Option<Packet>, DecodeError> {
        let begin = bytes.get(header..size.min(header + VERSION_LEN)).unwrap_or_default();
        if begin.len() < VERSION_LEN.min(size - header) {
            return Ok(None);
        }
        let mut begin = Reader::new(Bytes::copy_from_slice(begin), self.users);
        self.version = Some(connect::version(&mut begin)?);
        Err(DecodeError::TooLarge { size, limit: self.connect_limit })
    }

    fn check_first_byte(&self, first: u8) -> Result<(), DecodeError> {
        let (kind, flags) = (first >> 4, first & 0x0f);
        match self.state {
            State::AwaitConnect if kind != kind::CONNECT => {
                return Err(protocol("MQTT-3.1.0-1", "first packet is not connect"));
            }
            State::Open(version) => self.check_sender(kind, version)?,
            _ => {}
        }
        let reserved = match kind {
            kind::PUBLISH => return Ok(()),
            kind::PUBREL | kind::SUBSCRIBE | kind::UNSUBSCRIBE => 0b0010,
            _ => 0,
        };
        if flags != reserved {
            return Err(malformed("MQTT-2.1.3-1", "reserved flags of the fixed header are wrong"));
        }
        Ok(())
    }

    fn check_sender(&self, kind: u8, version: ProtocolVersion) -> Result<(), DecodeError> {
        let from_client = self.sender == Sender::Client;
        match kind {
            0 => Err(malformed("2.1.2", "packet type 0 is reserved")),
            kind::AUTH if version == ProtocolVersion::V311 => {
                Err(malformed("3.1.1: 2.2.1", "packet type 15 is reserved in mqtt 3.1.1"))
            }
            kind::CONNECT if from_client => Err(protocol("MQTT-3.1.0-2", "second connect on a connection")),
            kind::CONNACK | kind::SUBACK | kind::UNSUBACK | kind::PINGRESP if from_client => {
                Err(protocol("2.1.2", "clients may not send this packet type"))
            }
            kind::CONNECT | kind::SUBSCRIBE | kind::UNSUBSCRIBE | kind::PINGREQ if !from_client => {
                Err(protocol("2.1.2", "servers may not send this packet type"))
            }
            kind::DISCONNECT if !from_client && version == ProtocolVersion::V311 => {
                Err(protocol("3.1.1: 3.14", "servers may not send disconnect in mqtt 3.1.1"))
            }
            _ => Ok(()),
        }
    }

    fn packet(&mut self, first: u8, body: &mut Reader) -> Result<Packet, DecodeError> {
        let State::Open(version) = self.state else {
            let version = connect::version(body)?;
            self.version = Some(version);
            let connect = connect::decode(body, version)?;
            self.state = State::Open(version);
            return Ok(Packet::Connect(Box::new(connect)));
        };
        let context = Context { version, sender: self.sender };
        let packet = match first >> 4 {
            kind::CONNACK => Packet::ConnAck(Box::new(connack::decode(body, version)?)),
            kind::PUBLISH => Packet::Publish(publish::decode(body, first & 0x0f, context)?),
            kind::PUBACK => Packet::PubAck(ack::decode(body, kind::PUBACK, context)?),
            kind::PUBREC => Packet::PubRec(ack::decode(body, kind::PUBREC, context)?),
            kind::PUBREL => Packet::PubRel(ack::decode(body, kind::PUBREL, context)?),
            kind::PUBCOMP => Packet::PubComp(ack::decode(body, kind::PUBCOMP, context)?),
            kind::SUBSCRIBE => Packet::Subscribe(subscribe::subscribe(body, version)?),
            kind::SUBACK => Packet::SubAck(subscribe::suback(body, version)?),
            kind::UNSUBSCRIBE => Packet::Unsubscribe(subscribe::unsubscribe(body, version)?),
            kind::UNSUBACK => Packet::UnsubAck(subscribe::unsuback(body, version)?),
            kind::PINGREQ => Packet::PingReq,
            kind::PINGRESP => Packet::PingResp,
            kind::DISCONNECT => Packet::Disconnect(disconnect::disconnect(body, context)?),
            kind::AUTH => Packet::Auth(disconnect::auth(body, self.sender)?),
            _ => return Err(malformed("2.1.2", "packet type is reserved")),
        };
        Ok(packet)
    }
}

/// Returns the sizes in bytes of the packet at the front of `bytes` and of its fixed header; `None` if the fixed header
/// is incomplete.
fn announced(bytes: &[u8]) -> Result<Option<(usize, usize)>, DecodeError> {
    let Some((remaining, width)) = varint::read(bytes.get(1..).unwrap_or_default())? else { return Ok(None) };
    let header = 1 + width;
    Ok(Some((header.saturating_add(usize::try_from(remaining).unwrap_or(usize::MAX)), header)))
}
