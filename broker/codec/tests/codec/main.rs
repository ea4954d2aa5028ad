//! The codec against its corpus, against itself, against other codecs and against mutations.

#![cfg(test)]

mod corpus;
mod delivery;
mod framing;
mod mutation;
mod oracle;
mod roundtrip;
mod strategy;
