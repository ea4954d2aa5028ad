//! Packets with a few changed bytes: the decoder never panics, and a packet that it accepts survives a round trip.
//!
//! `COVEY_MUTATIONS` sets the number of mutations (default 200,000), `COVEY_SEED` the first seed. A failure prints its
//! seed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::BytesMut;
use covey_codec::{Packet, ProtocolVersion, encode};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::corpus::{self, On, decoder};
use crate::strategy;

/// SplitMix64, a small reproducible generator.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `bound`, which must not be zero.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// Returns the packets to mutate: the whole corpus and a fixed set of generated packets.
pub(crate) fn seeds() -> Vec<(ProtocolVersion, On, Vec<u8>)> {
    let mut seeds: Vec<_> = corpus::entries().into_iter().map(|e| (e.version, e.on, e.bytes)).collect();
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    for _ in 0..1_000 {
        let sample = strategy::sample().new_tree(&mut runner).unwrap().current();
        let mut out = BytesMut::new();
        encode(&sample.packet, sample.version, &mut out).unwrap();
        seeds.push((sample.version, sample.on, out.to_vec()));
    }
    seeds
}

/// Changes, adds, removes or repeats up to four pieces. Mostly corrects the remaining length, so that the body is
/// decoded.
pub(crate) fn mutate(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(out.len() + 1);
        match random.below(6) {
            0 if at < out.len() => out[at] = random.byte(),
            1 if at < out.len() => out[at] ^= 1 << random.below(8),
            2 if at < out.len() => out[at] = [0x00, 0x01, 0x7f, 0x80, 0xff][random.below(5)],
            3 if at < out.len() => drop(out.remove(at)),
            4 => out.insert(at, random.byte()),
            _ => {
                let len = random.below(out.len() - at + 1).min(16);
                let piece = out[at..at + len].to_vec();
                out.splice(at..at, piece);
            }
        }
        if out.is_empty() {
            out.push(random.byte());
        }
    }
    if random.below(4) > 0 { with_right_length(&out) } else { out }
}

/// Replaces the remaining length by the correct one. The first byte below 0x80 is taken as its end.
fn with_right_length(bytes: &[u8]) -> Vec<u8> {
    let width = bytes.iter().skip(1).take(4).take_while(|byte| **byte >= 0x80).count() + 1;
    let body = bytes.get(1 + width..).unwrap_or_default();
    let mut out = vec![bytes[0]];
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

/// Returns a number from the environment, or the default.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::vars().find(|(key, _)| key == name).map_or(default, |(_, value)| value.parse().unwrap())
}

#[derive(Debug, Default)]
struct Tally {
    accepted: usize,
    refused: usize,
    unfinished: usize,
}

fn judge(version: ProtocolVersion, on: On, bytes: &[u8], tally: &mut Tally) {
    let mut buffer = BytesMut::from(bytes);
    match decoder(version, on).decode(&mut buffer) {
        Ok(Some(packet)) => {
            tally.accepted += 1;
            let used = bytes.len() - buffer.len();
            // A mutation may have changed the version of a CONNECT.
            let version = if let Packet::Connect(connect) = &packet { connect.protocol_version } else { version };
            let mut again = BytesMut::new();
            encode(&packet, version, &mut again).unwrap();
            assert!(again.len() <= used, "{used} bytes were rewritten as {}", again.len());
            assert_eq!(corpus::read(version, on, &again).as_ref(), Ok(&packet));
        }
        Ok(None) => tally.unfinished += 1,
        Err(error) => {
            tally.refused += 1;
            assert!(error.reason().is_error() && !error.clause().is_empty());
        }
    }
}

#[test]
fn every_byte_of_the_corpus_may_have_every_value() {
    let mut tally = Tally::default();
    for corpus::Entry { version, on, bytes, name, .. } in corpus::entries() {
        for at in 0..bytes.len() {
            for value in 0..=u8::MAX {
                let mut changed = bytes.clone();
                changed[at] = value;
                let verdict = catch_unwind(AssertUnwindSafe(|| judge(version, on, &changed, &mut tally)));
                assert!(verdict.is_ok(), "{name} with {value:#04x} at {at}: {changed:02x?}");
            }
        }
    }
    println!("{tally:?}");
}

#[test]
fn mutated_packets_neither_panic_nor_mean_two_things() {
    let seeds = seeds();
    let (count, start) = (setting("COVEY_MUTATIONS", 200_000), setting("COVEY_SEED", 1));
    let mut tally = Tally::default();
    for seed in start..start + count {
        let mut random = Random(seed);
        let (version, on, bytes) = &seeds[random.below(seeds.len())];
        let mutated = mutate(bytes, &mut random);
        let verdict = catch_unwind(AssertUnwindSafe(|| judge(*version, *on, &mutated, &mut tally)));
        assert!(verdict.is_ok(), "COVEY_SEED={seed} COVEY_MUTATIONS=1: {version:?} {on:?} {mutated:02x?}");
    }
    println!("{tally:?}");
    let tenth = usize::try_from(count / 10).unwrap();
    assert!(count < 1_000 || (tally.accepted > tenth && tally.refused > tenth), "mutations are one-sided: {tally:?}");
}
