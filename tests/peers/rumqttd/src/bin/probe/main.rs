//! What rumqttd 0.20 does with legal, illegal and offline traffic, measured on a real socket.
//!
//! `probe topic | corpus | offline | restart` starts brokers from `covey-peer-rumqttd`, which lies beside this binary, and
//! prints what it saw. The findings stand in `docs/adr/0004-rumqttd.md`.

mod broker;
mod client;
mod corpus;
mod queue;
mod topic;

use std::process::ExitCode;

/// What ends a probe early: a socket or a process that does not do as it must.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let outcome = match std::env::args().nth(1).as_deref() {
        Some("topic") => topic::run(),
        Some("corpus") => corpus::run(),
        Some("offline") => queue::offline(),
        Some("restart") => queue::restart(),
        _ => Err("usage: probe topic | corpus | offline | restart".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
