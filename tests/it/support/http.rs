//! A client for HTTP: what is sent is what the test says, byte for byte.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long a test waits for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A response: its status, its head in small letters, and its body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn error(&self) -> String {
        self.json()["error"].as_str().expect("an error").to_owned()
    }
}

/// Sends bytes on a connection of their own, and reads the answer to its end.
pub(crate) async fn send(to: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(to).await.unwrap();
    // A server that has seen enough may close before all is sent.
    _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    parse(&answer)
}

/// Reads an answer that is there whole.
pub(crate) fn parse(answer: &[u8]) -> Answer {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

/// Asks for a path.
pub(crate) async fn get(to: SocketAddr, path: &str, headers: &str) -> Answer {
    send(to, format!("GET {path} HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n{headers}\r\n").as_bytes())
        .await
}
