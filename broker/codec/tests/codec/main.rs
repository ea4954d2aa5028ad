//! Tests of the codec: a corpus, round trips, other codecs, mutated packets.

#![cfg(test)]

mod corpus;
mod delivery;
mod framing;
mod mutation;
mod oracle;
mod roundtrip;
mod strategy;
