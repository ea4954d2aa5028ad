//! The variable byte integer (MQTT 5, 1.5.5): seven bits per byte, least significant first, at most four bytes.
//!
//! It encodes the remaining length, property lengths and subscription identifiers.

use crate::error::{DecodeError, malformed};

/// Largest value.
pub(crate) const MAX: u32 = 268_435_455;

/// Reads a value from the front of `bytes` and returns it with its encoded length; `None` if it is incomplete.
///
/// # Errors
/// Fails if the encoding is longer than necessary or than four bytes. MQTT 3.1.1 has the same table of lengths, so
/// [MQTT-1.5.5-1] is applied to both versions.
pub(crate) fn read(bytes: &[u8]) -> Result<Option<(u32, usize)>, DecodeError> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            if *byte == 0 && index > 0 {
                return Err(malformed("MQTT-1.5.5-1", "variable byte integer is longer than needed"));
            }
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() >= 4 {
        return Err(malformed("1.5.5", "variable byte integer has more than four bytes"));
    }
    Ok(None)
}

/// Encodes a value and returns the bytes and how many of them are used. `value` must not exceed [`MAX`].
pub(crate) fn bytes(value: u32) -> ([u8; 4], usize) {
    let mut out = [0; 4];
    let mut rest = value.min(MAX);
    let mut len = 0;
    for slot in &mut out {
        let [low, ..] = (rest & 0x7f).to_le_bytes();
        rest >>= 7;
        *slot = if rest > 0 { low | 0x80 } else { low };
        len += 1;
        if rest == 0 {
            break;
        }
    }
    (out, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_boundary_is_written_minimal_and_read_back() {
        for (value, len) in
            [(0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (2_097_151, 3), (2_097_152, 4), (MAX, 4)]
        {
            let (out, written) = bytes(value);
            assert_eq!(written, len);
            assert_eq!(read(&out[..written]), Ok(Some((value, len))));
            assert_eq!(read(&out[..written - 1]), Ok(None));
        }
    }

    #[test]
    fn overlong_and_five_byte_forms_are_refused() {
        for bytes in
            [&[0x80, 0x00][..], &[0x81, 0x80, 0x00], &[0xff, 0xff, 0xff, 0x80], &[0x80, 0x80, 0x80, 0x80, 0x01]]
        {
            assert!(read(bytes).is_err(), "{bytes:02x?}");
        }
    }
}
