//! Comparison with two other codecs, mqtt-proto and rmqtt-codec, as oracles.
//!
//! An oracle decodes a packet and encodes it again. Our decoder must decode the result to the same packet. Every
//! disagreement is listed with its clause in `tests/corpus/disagreements.txt`; for the corpus, an entry of the list
//! that no longer occurs is an error too. The oracles know neither the sender of a packet nor the packets before it.

use std::collections::BTreeSet;
use std::panic::catch_unwind;

use bytes::BytesMut;
use covey_codec::packet::{ConnAckProperties, ConnectProperties, PayloadFormat, ProtocolVersion};
use covey_codec::{Packet, QoS, encode};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tokio_util::codec::{Decoder, Encoder};

use crate::corpus::{self, Entry, On};
use crate::{mutation, strategy};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Oracle {
    MqttProto,
    RmqttCodec,
}

const ORACLES: [Oracle; 2] = [Oracle::MqttProto, Oracle::RmqttCodec];

impl Oracle {
    fn name(self) -> &'static str {
        match self {
            Self::MqttProto => "mqtt-proto",
            Self::RmqttCodec => "rmqtt-codec",
        }
    }
}

/// Verdict of an oracle on one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// Accepts the packet and encodes it to these bytes.
    Accepts(Vec<u8>),
    Refuses,
    Panics,
}

fn ask(oracle: Oracle, version: ProtocolVersion, bytes: &[u8]) -> Verdict {
    let answer = catch_unwind(|| match (oracle, version) {
        (Oracle::MqttProto, ProtocolVersion::V5) => {
            let packet = mqtt_proto::v5::Packet::decode(bytes).ok().flatten()?;
            Some(packet.encode().unwrap().as_ref().to_vec())
        }
        (Oracle::MqttProto, ProtocolVersion::V311) => {
            let packet = mqtt_proto::v3::Packet::decode(bytes).ok().flatten()?;
            Some(packet.encode().unwrap().as_ref().to_vec())
        }
        (Oracle::RmqttCodec, ProtocolVersion::V5) => {
            through(bytes, &mut rmqtt_codec::v5::Codec::new(0, 0), &mut rmqtt_codec::v5::Codec::new(0, 0))
        }
        (Oracle::RmqttCodec, ProtocolVersion::V311) => {
            through(bytes, &mut rmqtt_codec::v3::Codec::new(0), &mut rmqtt_codec::v3::Codec::new(0))
        }
    });
    match answer {
        Ok(Some(bytes)) => Verdict::Accepts(bytes),
        Ok(None) => Verdict::Refuses,
        Err(_) => Verdict::Panics,
    }
}

fn through<P, D, E>(bytes: &[u8], decoder: &mut D, encoder: &mut E) -> Option<Vec<u8>>
where
    D: Decoder<Item = (P, u32)>,
    E: Encoder<P, Error: std::fmt::Debug>,
{
    let (packet, _) = decoder.decode(&mut BytesMut::from(bytes)).ok().flatten()?;
    let mut out = BytesMut::new();
    encoder.encode(packet, &mut out).unwrap();
    Some(out.to_vec())
}

/// Returns the lines of the list that begin with `kind`.
fn listed(kind: &str) -> BTreeSet<String> {
    let text = include_str!("../corpus/disagreements.txt");
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>().join(" | "))
        .filter(|line| line.starts_with(kind))
        .collect()
}

fn assert_listed(kind: &str, found: &BTreeSet<String>) {
    let listed = listed(kind);
    let new: Vec<_> = found.difference(&listed).cloned().collect();
    let gone: Vec<_> = listed.difference(found).cloned().collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "not listed:\n{}\nlisted but gone:\n{}",
        new.join("\n"),
        gone.join("\n")
    );
}

fn spell(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::V311 => "3.1.1",
        ProtocolVersion::V5 => "5",
    }
}

#[test]
fn disagreements_over_the_corpus_are_those_that_are_listed() {
    let mut found = BTreeSet::new();
    for oracle in ORACLES {
        let (mut refused, mut accepted) = (0, 0);
        for Entry { valid, name, version, clause, bytes, .. } in corpus::entries() {
            let verdict = ask(oracle, version, &bytes);
            assert_ne!(verdict, Verdict::Panics, "{} {name}", oracle.name());
            let kind = match (valid, verdict != Verdict::Refuses) {
                (true, true) => {
                    accepted += 1;
                    continue;
                }
                (false, false) => {
                    refused += 1;
                    continue;
                }
                (true, false) => "refuses",
                (false, true) => "accepts",
            };
            found.insert(format!("corpus | {} | {kind} | {} | {name} | {clause}", oracle.name(), spell(version)));
        }
        println!("{}: {refused} malformed packets refused, {accepted} valid ones accepted", oracle.name());
    }
    assert_listed("corpus", &found);
}

/// Returns the known difference between the oracle and our codec for a packet that we accept.
fn excuse(oracle: Oracle, version: ProtocolVersion, packet: &Packet) -> Option<&'static str> {
    match (oracle, packet) {
        (Oracle::MqttProto, Packet::Publish(publish)) => {
            let claims = publish.properties.payload_format_indicator == Some(PayloadFormat::Utf8);
            if claims && std::str::from_utf8(&publish.payload).is_err() {
                return Some("payload is checked against its format | 3.3.2.3.2");
            }
            (publish.properties.subscription_identifiers.len() > 1)
                .then_some("one subscription identifier at most | MQTT-3.3.4-4")
        }
        (Oracle::MqttProto, Packet::Connect(connect)) => {
            let will = connect.will.as_ref()?;
            let claims = will.properties.payload_format_indicator == Some(PayloadFormat::Utf8);
            (claims && std::str::from_utf8(&will.payload).is_err())
                .then_some("payload is checked against its format | 3.3.2.3.2")
        }
        (Oracle::MqttProto, Packet::SubAck(ack)) if version == ProtocolVersion::V311 => {
            ack.reasons.iter().any(|reason| reason.is_error()).then_some("failure is written as 0x03 | 3.1.1: 3.9.3")
        }
        (Oracle::RmqttCodec, Packet::Connect(connect)) => {
            if connect.client_id.is_empty() && !connect.clean_start {
                return Some("empty client id needs clean start | MQTT-3.1.3-6");
            }
            let expiry = connect.will.as_ref()?.properties.message_expiry_interval;
            (expiry == Some(0)).then_some("message expiry of zero | 3.3.2.3.3")
        }
        (Oracle::RmqttCodec, Packet::Publish(publish)) => {
            let expired = publish.properties.message_expiry_interval == Some(0);
            expired.then_some("message expiry of zero | 3.3.2.3.3")
        }
        (Oracle::RmqttCodec, Packet::Auth(auth)) => {
            let bare = auth.properties.authentication_method.is_none();
            bare.then_some("auth without body is written with one | 3.15.2.1")
        }
        _ => None,
    }
}

/// Removes the properties whose value equals the default, which rmqtt-codec does not keep.
fn plain(mut packet: Packet) -> Packet {
    match &mut packet {
        Packet::Connect(connect) => {
            plain_connect(&mut connect.properties);
            if let Some(will) = &mut connect.will {
                drop_default(&mut will.properties.payload_format_indicator, PayloadFormat::Bytes);
                drop_default(&mut will.properties.will_delay_interval, 0);
            }
        }
        Packet::ConnAck(ack) => plain_connack(&mut ack.properties),
        Packet::Publish(publish) => {
            drop_default(&mut publish.properties.payload_format_indicator, PayloadFormat::Bytes);
        }
        _ => {}
    }
    packet
}

fn drop_default<T: Copy + PartialEq>(slot: &mut Option<T>, default: T) {
    *slot = slot.filter(|value| *value != default);
}

fn plain_connect(properties: &mut ConnectProperties) {
    drop_default(&mut properties.session_expiry_interval, 0);
    drop_default(&mut properties.receive_maximum, u16::MAX);
    drop_default(&mut properties.topic_alias_maximum, 0);
    drop_default(&mut properties.request_response_information, false);
    drop_default(&mut properties.request_problem_information, true);
}

fn plain_connack(properties: &mut ConnAckProperties) {
    drop_default(&mut properties.receive_maximum, u16::MAX);
    drop_default(&mut properties.maximum_qos, QoS::ExactlyOnce);
    drop_default(&mut properties.topic_alias_maximum, 0);
    drop_default(&mut properties.retain_available, true);
    drop_default(&mut properties.wildcard_subscription_available, true);
    drop_default(&mut properties.subscription_identifiers_available, true);
    drop_default(&mut properties.shared_subscription_available, true);
}

/// Compares the oracle with our decoder for a packet that we accept. Returns the known difference, or `None` if the
/// oracle accepts the packet with the same meaning; panics on an unknown difference.
fn compare(oracle: Oracle, version: ProtocolVersion, on: On, bytes: &[u8], packet: &Packet) -> Option<String> {
    let same = match ask(oracle, version, bytes) {
        Verdict::Accepts(again) => {
            corpus::read(version, on, &again).is_ok_and(|read| plain(read) == plain(packet.clone()))
        }
        Verdict::Refuses | Verdict::Panics => false,
    };
    if same {
        return None;
    }
    let excuse = excuse(oracle, version, packet);
    assert!(excuse.is_some(), "{} {version:?} {on:?} {bytes:02x?}: we read {packet:?}", oracle.name());
    excuse.map(|excuse| format!("differs | {} | {excuse}", oracle.name()))
}

#[test]
fn generated_packets_mean_the_same_to_the_oracles() {
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    for _ in 0..5_000 {
        let sample = strategy::sample().new_tree(&mut runner).unwrap().current();
        let mut out = BytesMut::new();
        encode(&sample.packet, sample.version, &mut out).unwrap();
        for oracle in ORACLES {
            if let Some(line) = compare(oracle, sample.version, sample.on, &out, &sample.packet) {
                assert!(listed("differs").contains(&line), "not listed: {line}");
            }
        }
    }
}

#[test]
fn oracles_are_laxer_about_mutated_packets_where_it_is_listed_and_stricter_nowhere_else() {
    let seeds = mutation::seeds();
    let (mut laxer, mut differs) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..60_000 {
        let mut random = mutation::Random(seed);
        let (version, on, bytes) = &seeds[random.below(seeds.len())];
        let mutated = mutation::mutate(bytes, &mut random);
        let mut buffer = BytesMut::from(&mutated[..]);
        let ours = corpus::decoder(*version, *on).decode(&mut buffer);
        for oracle in ORACLES {
            match &ours {
                // An oracle decodes one complete packet of a known version.
                Ok(Some(Packet::Connect(connect))) if connect.protocol_version != *version => {}
                Ok(Some(packet)) if buffer.is_empty() => {
                    differs.extend(compare(oracle, *version, *on, &mutated, packet));
                }
                Ok(_) => {}
                Err(error) => match ask(oracle, *version, &mutated) {
                    Verdict::Accepts(_) => {
                        laxer.extend([format!("laxer | {} | {}", oracle.name(), error.clause())]);
                    }
                    Verdict::Refuses => {}
                    Verdict::Panics => panic!("{} panics on {mutated:02x?}", oracle.name()),
                },
            }
        }
    }
    // Which of the listed disagreements occur depends on the mutations.
    laxer.append(&mut differs);
    laxer.extend(listed("laxer").union(&listed("differs")).cloned());
    assert_listed("", &laxer.union(&listed("corpus")).cloned().collect());
}
