//! The corpus of malformed packets and of unusual but valid ones, and the tests that check it.

use std::collections::HashSet;

use bytes::BytesMut;
use covey_codec::packet::Connect;
use covey_codec::{DecodeError, Decoder, MqttStr, Packet, ProtocolVersion, encode};

const LIMIT: usize = 1 << 20;

/// Position of a packet of the corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum On {
    /// First on the connection.
    New,
    /// From a connected client.
    Client,
    /// From a server.
    Server,
}

/// One line of the corpus.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) valid: bool,
    pub(crate) name: &'static str,
    pub(crate) version: ProtocolVersion,
    pub(crate) on: On,
    pub(crate) expected: &'static str,
    pub(crate) clause: &'static str,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn entries() -> Vec<Entry> {
    let text = include_str!("../corpus/packets.txt");
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(entry).collect()
}

fn entry(line: &'static str) -> Entry {
    let [kind, name, version, on, expected, clause, hex] = line.split('|').map(str::trim).collect::<Vec<_>>()[..]
    else {
        panic!("a line has seven columns: {line}");
    };
    Entry {
        valid: match kind {
            "good" => true,
            "bad" => false,
            other => panic!("{name}: {other}"),
        },
        name,
        version: match version {
            "5" => ProtocolVersion::V5,
            "3.1.1" => ProtocolVersion::V311,
            other => panic!("{name}: {other}"),
        },
        on: match on {
            "new" => On::New,
            "client" => On::Client,
            "server" => On::Server,
            other => panic!("{name}: {other}"),
        },
        expected,
        clause,
        bytes: unhex(hex),
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.chars().filter(|c| *c != ' ').map(|c| c.to_digit(16).unwrap().try_into().unwrap()).collect();
    assert!(digits.len().is_multiple_of(2), "{hex}");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Returns a decoder in the state in which it accepts a packet at this position.
pub(crate) fn decoder(version: ProtocolVersion, on: On) -> Decoder {
    match on {
        On::Server => Decoder::client(version, LIMIT),
        On::New => Decoder::new(LIMIT),
        On::Client => {
            let mut decoder = Decoder::new(LIMIT);
            let mut bytes = BytesMut::new();
            let connect = Connect::new(version, MqttStr::new("corpus").unwrap());
            encode(&Packet::Connect(Box::new(connect)), version, &mut bytes).unwrap();
            decoder.decode(&mut bytes).unwrap().unwrap();
            decoder
        }
    }
}

/// Decodes one packet that takes up all bytes.
pub(crate) fn read(version: ProtocolVersion, on: On, bytes: &[u8]) -> Result<Packet, DecodeError> {
    let mut buffer = BytesMut::from(bytes);
    let packet = decoder(version, on).decode(&mut buffer)?;
    assert!(buffer.is_empty(), "bytes are left after the packet: {bytes:02x?}");
    Ok(packet.expect("the packet is complete"))
}

#[test]
fn every_malformed_packet_is_refused_for_its_reason_and_clause() {
    let mut wrong = Vec::new();
    for entry in entries().into_iter().filter(|entry| !entry.valid) {
        match read(entry.version, entry.on, &entry.bytes) {
            Ok(packet) => wrong.push(format!("{}: accepted as {packet:?}", entry.name)),
            Err(error) => {
                let reason = format!("{:#04x}", u8::from(error.reason()));
                if reason != entry.expected || error.clause() != entry.clause {
                    wrong.push(format!("{}: expected {} [{}], was {error}", entry.name, entry.expected, entry.clause));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_unusual_packet_is_accepted_and_written_back_with_the_same_meaning() {
    for entry in entries().into_iter().filter(|entry| entry.valid) {
        let packet = read(entry.version, entry.on, &entry.bytes).unwrap_or_else(|e| panic!("{}: {e}", entry.name));
        let mut out = BytesMut::new();
        encode(&packet, entry.version, &mut out).unwrap_or_else(|e| panic!("{}: {e}", entry.name));
        assert_eq!(read(entry.version, entry.on, &out), Ok(packet), "{}", entry.name);
    }
}

#[test]
fn every_packet_cut_short_asks_for_more_and_every_error_comes_once_and_for_all() {
    for entry in entries() {
        let mut decoder = decoder(entry.version, entry.on);
        let mut buffer = BytesMut::new();
        let mut failed = None;
        for (index, byte) in entry.bytes.iter().enumerate() {
            buffer.extend_from_slice(&[*byte]);
            match (decoder.decode(&mut buffer), failed) {
                (Ok(None), None) => assert!(index + 1 < entry.bytes.len(), "{}", entry.name),
                (Ok(Some(_)), None) => assert_eq!(index + 1, entry.bytes.len(), "{}", entry.name),
                (Err(error), None) => failed = Some(error),
                (again, before) => assert_eq!(again.err(), before, "{}", entry.name),
            }
        }
        assert_eq!(failed.is_none(), entry.valid, "{}", entry.name);
    }
}

#[test]
fn corpus_is_as_large_as_promised_and_names_every_line_once() {
    let entries = entries();
    let valid = entries.iter().filter(|entry| entry.valid).count();
    assert!(entries.len() - valid >= 49, "{} malformed packets", entries.len() - valid);
    assert!(valid >= 24, "{valid} valid packets");
    let names: HashSet<_> = entries.iter().map(|entry| (entry.name, entry.version)).collect();
    assert_eq!(names.len(), entries.len());
    assert!(entries.iter().all(|entry| !entry.clause.is_empty() && entry.valid == (entry.expected == "ok")));
}
