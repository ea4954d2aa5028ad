//! Reading and writing of MQTT's data types (MQTT 5, 1.5).
//!
//! [`Reader`] takes fields from the front of one packet and never reads beyond it. A packet is written to a [`Sink`]: a
//! buffer, or [`Count`], which only measures. Lengths and bytes come from the same code and therefore agree.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::{DecodeError, malformed, protocol};
use crate::packet::PacketId;
use crate::text::MqttStr;
use crate::varint;

/// Reader of one packet or one property list.
#[derive(Debug)]
pub(crate) struct Reader {
    bytes: Bytes,
    /// How user properties are decoded.
    pub(crate) policy: UserPropertyPolicy,
}

/// User properties that a decoder keeps. All of them are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UserPropertyPolicy {
    /// Keeps all.
    Keep,
    /// Keeps those of PUBLISH and wills, which are forwarded, and refuses a message with more than `max` of them.
    Forwarded { max: usize },
}

impl Reader {
    pub(crate) fn new(bytes: Bytes, policy: UserPropertyPolicy) -> Self {
        Self { bytes, policy }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns a reader of the next `len` bytes.
    pub(crate) fn part(&mut self, len: usize) -> Result<Self, DecodeError> {
        Ok(Self { bytes: self.take(len)?, policy: self.policy })
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.bytes.try_get_u8().map_err(|_| ends_early())
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.bytes.try_get_u16().map_err(|_| ends_early())
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.bytes.try_get_u32().map_err(|_| ends_early())
    }

    pub(crate) fn varint(&mut self) -> Result<u32, DecodeError> {
        let (value, len) = varint::read(&self.bytes)?.ok_or_else(ends_early)?;
        self.bytes.advance(len);
        Ok(value)
    }

    /// Returns the next `len` bytes without a copy.
    pub(crate) fn take(&mut self, len: usize) -> Result<Bytes, DecodeError> {
        if len > self.bytes.len() {
            return Err(ends_early());
        }
        Ok(self.bytes.split_to(len))
    }

    /// Reads binary data (1.5.6).
    pub(crate) fn binary(&mut self) -> Result<Bytes, DecodeError> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// Reads a UTF-8 encoded string (1.5.4).
    pub(crate) fn text(&mut self) -> Result<MqttStr, DecodeError> {
        Ok(MqttStr::from_utf8(self.binary()?)?)
    }

    pub(crate) fn packet_id(&mut self) -> Result<PacketId, DecodeError> {
        let value = self.u16()?;
        PacketId::new(value).ok_or_else(|| protocol("MQTT-2.2.1-3", "packet identifier is zero"))
    }

    /// Returns all remaining bytes.
    pub(crate) fn rest(&mut self) -> Bytes {
        self.bytes.split_off(0)
    }

    /// Fails if bytes follow the last field.
    pub(crate) fn finish(&self) -> Result<(), DecodeError> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(malformed("2.1.4", "bytes follow the last field of the packet"))
        }
    }
}

fn ends_early() -> DecodeError {
    malformed("2.1.4", "packet ends inside a field")
}

/// Destination of an encoded packet.
pub(crate) trait Sink {
    fn raw(&mut self, bytes: &[u8]);

    /// Writes binary data or text with its two-byte length. [`Count`] records data that is too long.
    fn binary(&mut self, bytes: &[u8]) {
        self.u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
        self.raw(bytes);
    }

    fn u8(&mut self, value: u8) {
        self.raw(&[value]);
    }

    fn u16(&mut self, value: u16) {
        self.raw(&value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.raw(&value.to_be_bytes());
    }

    fn varint(&mut self, value: u32) {
        let (bytes, len) = varint::bytes(value);
        self.raw(bytes.get(..len).unwrap_or_default());
    }

    fn text(&mut self, text: &MqttStr) {
        self.binary(text.as_bytes());
    }
}

impl Sink for BytesMut {
    fn raw(&mut self, bytes: &[u8]) {
        self.put_slice(bytes);
    }
}

/// A sink that measures.
#[derive(Debug, Default)]
pub(crate) struct Count {
    /// Bytes written so far.
    pub(crate) len: usize,
    /// Whether a field was longer than 65,535 bytes.
    pub(crate) too_long: bool,
}

impl Sink for Count {
    fn raw(&mut self, bytes: &[u8]) {
        self.len = self.len.saturating_add(bytes.len());
    }

    fn binary(&mut self, bytes: &[u8]) {
        self.too_long |= bytes.len() > usize::from(u16::MAX);
        self.len = self.len.saturating_add(2).saturating_add(bytes.len());
    }
}
