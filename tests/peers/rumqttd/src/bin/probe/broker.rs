//! One rumqttd process on free loopback ports; it is killed when it is dropped.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use covey_codec::ProtocolVersion;

use crate::Failure;

/// A running broker.
pub struct Broker {
    process: Child,
    output: Option<JoinHandle<String>>,
    v5: u16,
    v311: u16,
}

impl Broker {
    /// Starts a broker and waits until both ports accept.
    pub fn start() -> Result<Self, Failure> {
        let (v5, v311) = (free_port()?, free_port()?);
        let binary = std::env::current_exe()?.with_file_name("covey-peer-rumqttd");
        let mut process = Command::new(binary)
            .args([v5.to_string(), v311.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stderr = process.stderr.take().ok_or("no standard error")?;
        let output = thread::spawn(move || {
            let mut text = Vec::new();
            // What was read before the pipe broke is what counts.
            drop(stderr.read_to_end(&mut text));
            String::from_utf8_lossy(&text).into_owned()
        });
        let broker = Self { process, output: Some(output), v5, v311 };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, v5)).is_err()
            || TcpStream::connect((Ipv4Addr::LOCALHOST, v311)).is_err()
        {
            if Instant::now() > deadline {
                return Err("rumqttd does not accept connections".into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(broker)
    }

    /// The port on which this version is spoken.
    pub fn port(&self, version: ProtocolVersion) -> u16 {
        match version {
            ProtocolVersion::V5 => self.v5,
            ProtocolVersion::V311 => self.v311,
        }
    }

    /// Whether the process still runs.
    pub fn runs(&mut self) -> Result<bool, Failure> {
        Ok(self.process.try_wait()?.is_none())
    }

    /// Kills the process and returns what it wrote about panics.
    pub fn panics(mut self) -> Result<Vec<String>, Failure> {
        self.process.kill()?;
        self.process.wait()?;
        let output = self.output.take().ok_or("output was taken")?.join().map_err(|_| "reader of output failed")?;
        let lines: Vec<_> = output.lines().collect();
        let at = lines.iter().enumerate().filter(|(_, line)| line.contains("panicked at"));
        Ok(at.map(|(i, line)| format!("{} {}", without_folder(line), lines.get(i + 1).unwrap_or(&""))).collect())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Both fail only where the process is gone already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The line without the folder in which this machine keeps the sources of rumqttd.
fn without_folder(line: &str) -> String {
    match (line.split_once(" panicked at "), line.split_once("/rumqttd-")) {
        (Some((thread, _)), Some((_, place))) => format!("{thread} panicked at rumqttd-{place}"),
        _ => line.to_owned(),
    }
}

fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
