//! The memory that decoding allocates is bounded by the bytes that have arrived.

#![cfg(test)]

use allocation_counter::measure;
use bytes::BytesMut;
use covey_codec::{Decoder, ProtocolVersion};

const LIMIT: usize = 16 << 20;
/// Most bytes of memory per byte of a packet: the shortest user property has 5 bytes on the wire and takes 64 in
/// memory, and a growing list temporarily holds up to three times that.
const BYTES_PER_BYTE: u64 = 40;
const BASE: u64 = 2_048;

fn client_packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut rest = body.len();
    loop {
        let low = u8::try_from(rest & 0x7f).unwrap();
        rest >>= 7;
        out.push(if rest > 0 { low | 0x80 } else { low });
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

fn cost(from_server: bool, bytes: &[u8]) -> u64 {
    let mut buffer = BytesMut::from(bytes);
    let mut decoder = if from_server { Decoder::client(ProtocolVersion::V5, LIMIT) } else { Decoder::new(LIMIT) };
    if !from_server {
        let mut connect = BytesMut::from(&b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01c"[..]);
        decoder.decode(&mut connect).unwrap().unwrap();
    }
    let mut outcome = None;
    let info = measure(|| outcome = Some(decoder.decode(&mut buffer)));
    drop(outcome);
    info.bytes_max
}

#[test]
fn length_that_is_only_announced_costs_nothing() {
    for bytes in [
        // A PUBLISH of 16 MB of which only the header has arrived; one whose topic is longer than what has arrived.
        &[0x30, 0xf0, 0xff, 0xff, 0x07][..],
        &[0x30, 0xf0, 0xff, 0xff, 0x07, 0xff, 0xff, b'a'],
        // Property lists and texts that are longer than the packet.
        &[0x30, 0x07, 0x00, 0x01, b'a', 0xff, 0xff, 0xff, 0x7f],
        &[0x30, 0x07, 0x00, 0x01, b'a', 0x03, 0x03, 0xff, 0xff],
        &[0x82, 0x05, 0x00, 0x01, 0x00, 0xff, 0xff],
    ] {
        let cost = cost(false, bytes);
        assert!(cost < 256, "{bytes:02x?} cost {cost} bytes");
    }
}

#[test]
fn densest_packets_cost_a_bounded_multiple_of_their_bytes() {
    let user_properties = [0x26, 0, 0, 0, 0].repeat(40_000);
    let mut publish = vec![0, 1, b'a', 0xc0, 0x9a, 0x0c];
    publish.extend_from_slice(&user_properties);
    let mut subscribe = vec![0, 1, 0];
    subscribe.extend_from_slice(&[0, 1, b'a', 0].repeat(50_000));
    let mut identifiers = vec![0, 1, b'a', 0xc0, 0x9a, 0x0c];
    identifiers.extend_from_slice(&[0x0b, 0x01].repeat(100_000));
    let mut suback = vec![0, 1, 0];
    suback.resize(200_000, 0);
    for (name, from_server, packet) in [
        ("publish of user properties", false, client_packet(0x30, &publish)),
        ("subscribe", false, client_packet(0x82, &subscribe)),
        ("publish of subscription identifiers", true, client_packet(0x30, &identifiers)),
        ("suback", true, client_packet(0x90, &suback)),
        ("publish of payload", false, client_packet(0x30, &[&[0, 1, b'a', 0][..], &vec![0; 200_000]].concat())),
    ] {
        let cost = cost(from_server, &packet);
        let bound = u64::try_from(packet.len()).unwrap() * BYTES_PER_BYTE + BASE;
        println!("{name}: {} bytes cost {cost}", packet.len());
        assert!(cost > 0 && cost <= bound, "{name}: {} bytes cost {cost}", packet.len());
    }
}

#[test]
fn user_properties_that_are_not_forwarded_cost_nothing() {
    let mut connect = b"\x00\x04MQTT\x05\x02\x00\x3c\xc0\x9a\x0c".to_vec();
    connect.extend_from_slice(&[0x26, 0, 0, 0, 0].repeat(40_000));
    connect.extend_from_slice(b"\x00\x01c");
    let packet = client_packet(0x10, &connect);
    let mut buffer = BytesMut::from(&packet[..]);
    let mut decoder = Decoder::new(LIMIT).with_forwarded_user_properties(256);
    let mut outcome = None;
    let info = measure(|| outcome = Some(decoder.decode(&mut buffer)));
    assert!(outcome.unwrap().unwrap().is_some());
    assert!(info.bytes_max < BASE, "{} bytes cost {}", packet.len(), info.bytes_max);
}
