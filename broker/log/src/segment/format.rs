//! Format of a segment: a header, then frames. Pure functions, used by recovery and the writer.
//!
//! ```text
//! header  magic 8 | format version u32 | segment number u64 | salt u64 | crc32c of the 28 bytes before, u32
//! frame   body length u32 | crc of the length u32 | crc of length and body u32 | body
//! body    first frame: Vec<Mark> (the checkpoint); all others: Record, Record, …   (postcard)
//! ```
//! Integers are little-endian. Both checksums of a frame start from the segment's random salt and the frame's offset,
//! so neither bytes that a client chose nor an old block of the disk can pass for a frame at this place. This makes
//! the search for a valid frame after a bad one sound; the checksum of the length makes it fast.

use serde::Serialize;

use super::group::{Mark, Misuse};
use super::{Error, Record};

pub(super) const HEADER_BYTES: usize = 32;
const FRAME_HEAD_BYTES: usize = 12;
const MAGIC: &[u8; 8] = b"COVEYLOG";
pub(super) const FORMAT_VERSION: u32 = 1;
/// Most bytes of one submission: far above any entry, far below the range of the length field.
const MAX_SUBMISSION_BYTES: usize = 1 << 30;

/// Header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Number of the segment.
    pub(super) seq: u64,
    /// Random number that all checksums of the segment include.
    pub(super) salt: u64,
}

/// Reason why a header is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// It does not match its checksum, or is too short.
    Damaged,
    /// It has another format version.
    Version(u32),
}

impl Header {
    /// Encodes the header.
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.seq.to_le_bytes());
        bytes.extend_from_slice(&self.salt.to_le_bytes());
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes the header at the beginning of a segment.
    pub(super) fn decode(file: &[u8]) -> Result<Self, BadHeader> {
        let fields = || {
            let covered = file.get(..HEADER_BYTES - 4)?;
            let (magic, rest) = covered.split_first_chunk::<8>()?;
            let (version, rest) = rest.split_first_chunk::<4>()?;
            let (seq, rest) = rest.split_first_chunk::<8>()?;
            let (salt, _) = rest.split_first_chunk::<8>()?;
            let intact = magic == MAGIC && read_u32(file, HEADER_BYTES - 4)? == crc32c::crc32c(covered);
            intact.then(|| (u32::from_le_bytes(*version), u64::from_le_bytes(*seq), u64::from_le_bytes(*salt)))
        };
        match fields() {
            Some((FORMAT_VERSION, seq, salt)) => Ok(Self { seq, salt }),
            Some((version, ..)) => Err(BadHeader::Version(version)),
            None => Err(BadHeader::Damaged),
        }
    }
}

fn read_u32(file: &[u8], offset: usize) -> Option<u32> {
    file.get(offset..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn length_crc(salt: u64, offset: u64, length: u32) -> u32 {
    let place = crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &offset.to_le_bytes());
    crc32c::crc32c_append(place, &length.to_le_bytes())
}

/// Returns an error if the records exceed [`MAX_SUBMISSION_BYTES`].
pub(super) fn check_size(records: &[Record]) -> Result<(), Error> {
    let bytes: usize = records.iter().map(Record::payload_bytes).sum();
    if bytes > MAX_SUBMISSION_BYTES { Err(Misuse::TooLarge { bytes }.into()) } else { Ok(()) }
}

/// A frame in construction, in a buffer that is reused.
#[derive(Debug, Default)]
pub(super) struct FrameBuffer(Vec<u8>);

impl FrameBuffer {
    /// Starts a new frame.
    pub(super) fn clear(&mut self) {
        self.0.clear();
        self.0.resize(FRAME_HEAD_BYTES, 0);
    }

    /// Appends a value to the body. Does not fail for our types, since writing to memory does not.
    pub(super) fn push<T: Serialize>(&mut self, value: &T) -> Result<(), postcard::Error> {
        postcard::to_io(value, &mut self.0).map(|_| ())
    }

    /// Completes the frame for its offset in a segment; `None` if the body is too long for the length field.
    pub(super) fn finish(&mut self, salt: u64, offset: u64) -> Option<&[u8]> {
        let (head, body) = self.0.split_at_mut_checked(FRAME_HEAD_BYTES)?;
        let length = u32::try_from(body.len()).ok()?;
        let length_crc = length_crc(salt, offset, length);
        let crc = crc32c::crc32c_append(length_crc, body);
        for (field, value) in head.chunks_exact_mut(4).zip([length, length_crc, crc]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        Some(&self.0)
    }

    /// Releases memory after an unusually large frame.
    pub(super) fn shrink(&mut self, capacity: usize) {
        if self.0.capacity() > capacity {
            self.0.clear();
            self.0.shrink_to(capacity);
        }
    }
}

/// Returns the body of the frame at `offset` and the offset after it; `None` if there is no valid frame.
pub(super) fn frame_at(file: &[u8], salt: u64, offset: usize) -> Option<(&[u8], usize)> {
    let length = read_u32(file, offset)?;
    let start = offset.checked_add(FRAME_HEAD_BYTES)?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    // Cheap checks first: the search after a bad frame calls this for every byte of the tail.
    if length == 0 || end > file.len() {
        return None;
    }
    let length_crc = length_crc(salt, u64::try_from(offset).ok()?, length);
    if read_u32(file, offset.checked_add(4)?)? != length_crc {
        return None;
    }
    let body = file.get(start..end)?;
    let intact = read_u32(file, offset.checked_add(8)?)? == crc32c::crc32c_append(length_crc, body);
    intact.then_some((body, end))
}

/// Returns the offset of the first valid frame at or after `from`.
pub(super) fn find_frame(file: &[u8], salt: u64, from: usize) -> Option<usize> {
    (from..file.len()).find(|offset| frame_at(file, salt, *offset).is_some())
}

/// Decodes the records of a frame.
pub(super) fn decode_records(mut body: &[u8]) -> Result<Vec<Record>, postcard::Error> {
    let mut records = Vec::new();
    while !body.is_empty() {
        let (record, rest) = postcard::take_from_bytes(body)?;
        records.push(record);
        body = rest;
    }
    Ok(records)
}

/// Decodes the checkpoint at the beginning of a segment.
pub(super) fn decode_checkpoint(body: &[u8]) -> Result<Vec<(u16, Mark)>, postcard::Error> {
    match postcard::take_from_bytes(body)? {
        (marks, []) => Ok(marks),
        _ => Err(postcard::Error::DeserializeBadEncoding),
    }
}
