//! rumqttd 0.20 on two loopback ports, as an independent broker beside ours in interop tests and benches.
//!
//! `covey-peer-rumqttd V5_PORT V311_PORT` runs until it is killed; rumqttd speaks each version on a port of its own.
//! Limits are those of the rumqttd.toml that it ships, but for payloads, which may have 1 MiB.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

fn main() -> ExitCode {
    let ports: Vec<u16> = std::env::args().skip(1).filter_map(|port| port.parse().ok()).collect();
    let [v5, v311] = ports[..] else {
        eprintln!("usage: covey-peer-rumqttd V5_PORT V311_PORT");
        return ExitCode::from(2);
    };
    let config = Config {
        router: RouterConfig {
            max_connections: 10_010,
            max_outgoing_packet_count: 200,
            max_segment_size: 104_857_600,
            max_segment_count: 10,
            ..RouterConfig::default()
        },
        v5: Some(listener("v5", v5)),
        v4: Some(listener("v311", v311)),
        ..Config::default()
    };
    match Broker::new(config).start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed to start rumqttd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn listener(name: &str, port: u16) -> HashMap<String, ServerSettings> {
    let settings = ServerSettings {
        name: name.to_owned(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        tls: None,
        next_connection_delay_ms: 1,
        connections: ConnectionSettings {
            connection_timeout_ms: 60_000,
            max_payload_size: 1 << 20,
            max_inflight_count: 100,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    };
    HashMap::from([(name.to_owned(), settings)])
}
