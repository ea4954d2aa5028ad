//! Reads a broker's metrics page with one HTTP request to its pod, never through a Service.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Maximum length of a response in bytes. Broker pages are shorter.
const MAX_BYTES: u64 = 4 << 20;

/// Why a page could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to read the metrics: {0}")]
    Io(#[from] std::io::Error),
    #[error("failed to read the metrics within {0:?}")]
    Timeout(Duration),
    #[error("the broker did not answer with a metrics page")]
    Answer,
}

/// Fetches `path` from `host:port` and returns the body.
///
/// # Errors
/// If the request fails, takes longer than `timeout`, or is not answered with status 200.
pub async fn get(host: &str, port: u16, path: &str, timeout: Duration) -> Result<Vec<u8>, Error> {
    tokio::time::timeout(timeout, fetch(host, port, path)).await.unwrap_or(Err(Error::Timeout(timeout)))
}

async fn fetch(host: &str, port: u16, path: &str) -> Result<Vec<u8>, Error> {
    let mut stream = TcpStream::connect((host, port)).await?;
    // In HTTP/1.0 the body ends with the connection and is never chunked.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: text/plain\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut answer).await?;
    body(&answer).ok_or(Error::Answer)
}

fn body(answer: &[u8]) -> Option<Vec<u8>> {
    let status = answer.get(9..12)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    (answer.starts_with(b"HTTP/1.") && status == b"200").then(|| answer.get(end + 4..).unwrap_or_default().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_good_answer_has_a_body() {
        assert_eq!(body(b"HTTP/1.0 200 OK\r\na: b\r\n\r\nx 1\n"), Some(b"x 1\n".to_vec()));
        assert_eq!(body(b"HTTP/1.1 200 OK\r\n\r\n"), Some(vec![]));
        for bad in [&b"HTTP/1.0 503 no\r\n\r\nx"[..], b"HTTP/1.0 200 OK\r\n", b"", b"SSH-2.0-x 200 \r\n\r\n"] {
            assert_eq!(body(bad), None);
        }
    }
}
