//! The format on disk does not change by accident.

use crate::segment::format::{FrameBuffer, Header, decode_checkpoint, decode_records, frame_at};
use crate::segment::group::Mark;

use super::*;

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn every_record() -> Vec<Record> {
    vec![entries(1, 300, &["ab", ""]), truncate(2, 5), purge(3, 7), vote(4, "v"), committed(5, "c")]
}

#[test]
fn the_format_is_as_it_was_in_version_1() {
    let header = Header { seq: 0x0102, salt: 0x1112_1314_1516_1718 };
    assert_eq!(Header::decode(&header.encode()), Ok(header));
    assert_eq!(hex(&header.encode()), "434f5645594c4f47010000000201000000000000181716151413121179e7f7c8");
    let mut frame = FrameBuffer::default();
    frame.clear();
    for record in every_record() {
        frame.push(&record).unwrap();
    }
    assert_eq!(
        hex(frame.finish(header.salt, 32).unwrap()),
        "20000000c7c885c6105e154b0001ac0202026162000102050203070870757267656420370304017604050163"
    );
    frame.clear();
    let mark = Mark { next: 9, purged: Some((8, bytes("m"))), vote: Some(bytes("v")), committed: None };
    frame.push(&vec![(6_u16, mark.clone())]).unwrap();
    let bytes = frame.finish(header.salt, 32).unwrap().to_vec();
    assert_eq!(hex(&bytes), "0b0000009336c68532a2c18b0106090108016d01017600");
    let file = [header.encode(), bytes].concat();
    assert_eq!(decode_checkpoint(frame_at(&file, header.salt, 32).unwrap().0).unwrap(), [(6, mark)]);
}

#[test]
fn a_frame_is_valid_in_its_place_only() {
    let mut frame = FrameBuffer::default();
    frame.clear();
    for record in every_record() {
        frame.push(&record).unwrap();
    }
    let bytes = frame.finish(42, 7).unwrap().to_vec();
    let file = [vec![0; 7], bytes.clone()].concat();
    let (body, end) = frame_at(&file, 42, 7).unwrap();
    assert_eq!((decode_records(body).unwrap(), end), (every_record(), file.len()));
    assert_eq!(frame_at(&file, 43, 7), None);
    assert_eq!(frame_at(&[vec![0; 8], bytes].concat(), 42, 8), None);
}

#[test]
fn decoding_survives_any_bytes() {
    proptest::proptest!(|(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200))| {
        drop(decode_records(&bytes));
        drop(decode_checkpoint(&bytes));
        assert!(Header::decode(&bytes).is_err());
    });
}
