//! What becomes of a session, of its queue and of retained messages.

use covey_codec::{Packet, ProtocolVersion};

use crate::Failure;
use crate::broker::Broker;
use crate::client::{Client, Event};

const OFFLINE: usize = 4_000;

/// Publishes to an offline session at QoS 1 and counts what arrives on its return, with no restart between.
pub fn offline() -> Result<(), Failure> {
    let broker = Broker::start()?;
    for version in [ProtocolVersion::V5, ProtocolVersion::V311] {
        leave(&broker, version)?;
        let acknowledged = publish(&broker, version, OFFLINE)?;
        returns(&broker, version, acknowledged)?;
    }
    Ok(())
}

/// The same with a restart between, and with a retained message.
pub fn restart() -> Result<(), Failure> {
    for version in [ProtocolVersion::V5, ProtocolVersion::V311] {
        let broker = Broker::start()?;
        leave(&broker, version)?;
        let (mut publisher, _) = Client::connect(&broker, version, "retainer", true)?;
        println!("{version:?}: retained publish is answered by {:?}", publisher.publish("kept", "kept", true)?);
        let acknowledged = publish(&broker, version, 100)?;
        let (mut reader, _) = Client::connect(&broker, version, "reader before", true)?;
        reader.subscribe("kept")?;
        println!("{version:?}: retained before the restart: {:?}", reader.drain()?);
        drop(broker);
        let broker = Broker::start()?;
        returns(&broker, version, acknowledged)?;
        let (mut reader, _) = Client::connect(&broker, version, "reader after", true)?;
        reader.subscribe("kept")?;
        println!("{version:?}: retained after the restart: {:?}", reader.drain()?);
    }
    Ok(())
}

fn leave(broker: &Broker, version: ProtocolVersion) -> Result<(), Failure> {
    let (mut worker, ack) = Client::connect(broker, version, &format!("worker {version:?}"), false)?;
    println!("{version:?}: first connect, session present {}", ack.session_present);
    let suback = worker.subscribe(&format!("jobs/{version:?}"))?;
    println!("{version:?}: subscribe is answered by {suback:?}");
    Ok(())
}

fn publish(broker: &Broker, version: ProtocolVersion, count: usize) -> Result<usize, Failure> {
    let (mut publisher, _) = Client::connect(broker, version, &format!("publisher {version:?}"), true)?;
    let mut acknowledged = 0;
    for number in 0..count {
        let answer = publisher.publish(&format!("jobs/{version:?}"), &number.to_string(), false)?;
        acknowledged += usize::from(matches!(answer, Event::Packet(Packet::PubAck(_))));
    }
    Ok(acknowledged)
}

fn returns(broker: &Broker, version: ProtocolVersion, acknowledged: usize) -> Result<(), Failure> {
    let (mut worker, ack) = Client::connect(broker, version, &format!("worker {version:?}"), false)?;
    let mut numbers: Vec<usize> = worker.drain()?.iter().filter_map(|payload| payload.parse().ok()).collect();
    let received = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    println!(
        "{version:?}: return with session present {}, {acknowledged} messages acknowledged, {received} received, {} different",
        ack.session_present,
        numbers.len()
    );
    Ok(())
}
