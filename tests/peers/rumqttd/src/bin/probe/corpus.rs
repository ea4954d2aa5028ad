//! The project's corpus of malformed and unusual packets, each sent to a broker of its own.
//!
//! Refused means that the broker closes the connection, sends DISCONNECT or answers CONNECT with an error; accepted means
//! that it answers a PINGREQ behind the packet; for a DISCONNECT, that another client is served after it.

use covey_codec::{Packet, ProtocolVersion};

use crate::Failure;
use crate::broker::Broker;
use crate::client::{Client, Event};

const CORPUS: &str = include_str!("../../../../../../broker/codec/tests/corpus/packets.txt");

/// Valid packets to which a broker may well object on a connection where nothing preceded them.
const NEEDS_A_PAST: [&str; 6] = [
    "client_id_empty_without_clean_session",
    "topic_alias_alone",
    "puback_without_reason",
    "puback_without_property_length",
    "puback_with_success_spelled_out",
    "reauthenticate",
];

#[derive(Debug, PartialEq)]
enum Verdict {
    Accepts,
    Refuses,
    /// It answers with bytes that are no packet.
    Garbles,
    Silent,
}

struct Line {
    valid: bool,
    name: &'static str,
    version: ProtocolVersion,
    first: bool,
    clause: &'static str,
    bytes: Vec<u8>,
}

pub fn run() -> Result<(), Failure> {
    let (mut bad, mut refused, mut good, mut accepted, mut panicked) = (0, 0, 0, 0, 0);
    for line in CORPUS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let Some(line) = parse(line)? else { continue };
        let broker = Broker::start()?;
        let verdict = judge(&broker, &line)?;
        let panics = broker.panics()?;
        panicked += usize::from(!panics.is_empty());
        if line.valid {
            good += 1;
            accepted += usize::from(verdict == Verdict::Accepts && panics.is_empty());
        } else {
            bad += 1;
            refused += usize::from(verdict == Verdict::Refuses && panics.is_empty());
        }
        let expected = if line.valid { Verdict::Accepts } else { Verdict::Refuses };
        if verdict != expected || !panics.is_empty() {
            println!("{verdict:?} | {:?} | {} | {} | {}", line.version, line.name, line.clause, panics.join(" "));
        }
    }
    println!(
        "refuses {refused} of {bad} malformed packets, accepts {accepted} of {good} valid ones, panics at {panicked}"
    );
    Ok(())
}

/// A line of the corpus; `None` for packets that a server sends or that need a past.
fn parse(line: &'static str) -> Result<Option<Line>, Failure> {
    let columns: Vec<_> = line.split('|').map(str::trim).collect();
    let [kind, name, version, on, _, clause, hex] = columns[..] else { return Err("seven columns".into()) };
    if on == "server" || NEEDS_A_PAST.contains(&name) {
        return Ok(None);
    }
    let digits: String = hex.split(' ').collect();
    let bytes = (0..digits.len() / 2).map(|i| u8::from_str_radix(digits.get(2 * i..2 * i + 2).unwrap_or(""), 16));
    Ok(Some(Line {
        valid: kind == "good",
        name,
        version: if version == "5" { ProtocolVersion::V5 } else { ProtocolVersion::V311 },
        first: on == "new",
        clause,
        bytes: bytes.collect::<Result<_, _>>()?,
    }))
}

fn judge(broker: &Broker, line: &Line) -> Result<Verdict, Failure> {
    let mut client = if line.first {
        Client::open(broker, line.version)?
    } else {
        Client::connect(broker, line.version, "probe", true)?.0
    };
    client.send_bytes(&line.bytes)?;
    if line.valid && line.bytes.first().is_some_and(|first| first >> 4 == 14) {
        drop(client);
        let served = Client::connect(broker, line.version, "other", true).is_ok();
        return Ok(if served { Verdict::Accepts } else { Verdict::Silent });
    }
    // The write fails where the broker has closed already.
    drop(client.send(&Packet::PingReq));
    loop {
        match client.next()? {
            Event::Packet(Packet::PingResp) => return Ok(Verdict::Accepts),
            Event::Packet(Packet::ConnAck(ack)) if ack.reason.is_error() => return Ok(Verdict::Refuses),
            Event::Packet(Packet::Disconnect(_)) | Event::Closed => return Ok(Verdict::Refuses),
            Event::Packet(_) => {}
            Event::Malformed(error) => {
                println!("answer to {} does not parse: {error}", line.name);
                return Ok(Verdict::Garbles);
            }
            Event::Silence => return Ok(Verdict::Silent),
        }
    }
}
