//! A PUBLISH whose topic begins with a character outside ASCII, on a broker that has just delivered another one.

use std::net::{Ipv4Addr, TcpStream};

use covey_codec::ProtocolVersion;

use crate::Failure;
use crate::broker::Broker;
use crate::client::Client;

pub fn run() -> Result<(), Failure> {
    for (version, topic) in [
        (ProtocolVersion::V5, "dept/message"),
        (ProtocolVersion::V5, "dept/消息"),
        (ProtocolVersion::V5, "部门/消息"),
        (ProtocolVersion::V311, "部门/消息"),
    ] {
        one(version, topic)?;
    }
    Ok(())
}

fn one(version: ProtocolVersion, topic: &str) -> Result<(), Failure> {
    println!("{version:?}, topic {topic}:");
    let mut broker = Broker::start()?;
    let (mut subscriber, _) = Client::connect(&broker, version, "subscriber", true)?;
    let (mut publisher, _) = Client::connect(&broker, version, "publisher", true)?;
    println!("  subscribe to # is answered by {:?}", subscriber.subscribe("#")?);
    println!("  publish before to a/b is answered by {:?}", publisher.publish("a/b", "before", false)?);
    println!("  the subscriber receives {:?}", subscriber.drain()?);
    println!("  publish to {topic} is answered by {:?}", publisher.publish(topic, "x", false)?);
    println!("  the subscriber receives {:?}", subscriber.drain()?);
    println!("  the process runs: {}", broker.runs()?);
    for port in [ProtocolVersion::V5, ProtocolVersion::V311].map(|version| broker.port(version)) {
        println!("  tcp connect: {:?}", TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map(drop));
    }
    match Client::connect(&broker, version, "later", true) {
        Ok((mut later, ack)) => {
            println!("  a later connect is answered by {:?}", ack.reason);
            println!("  its publish to a/b is answered by {:?}", later.publish("a/b", "after", false)?);
        }
        Err(error) => println!("  a later connect: {error}"),
    }
    for line in broker.panics()? {
        println!("  {line}");
    }
    Ok(())
}
