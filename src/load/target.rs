//! Whom to ask.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use tokio::net::{TcpStream, UnixStream};

use crate::serve::Wire;

/// Whom to ask, without TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `host:port`.
    Tcp(String),
    /// The path of a socket.
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write host:port, such as 127.0.0.1:8081, or unix:/path/to/socket".to_owned();
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(Self::Unix(path.into())) };
        }
        if text.starts_with("https://") {
            return Err("a load is put on without TLS; give it a port of the server's that has none".into());
        }
        let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if bare.is_empty() || bare.contains(['/', ' ', '@']) || port.parse::<u16>().is_err() {
            return Err(wrong());
        }
        Ok(Self::Tcp(address.to_owned()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Target {
    /// Connects to it.
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Wire>> {
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_host_and_a_port_or_a_socket() {
        for (text, shown) in [
            ("127.0.0.1:8081", "127.0.0.1:8081"),
            ("http://weir.example:81/", "weir.example:81"),
            ("[::1]:8081", "[::1]:8081"),
            ("unix:/run/weir.sock", "unix:/run/weir.sock"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), shown);
        }
        for text in ["", "weir", "weir:", ":8081", "weir:99999", "unix:", "http://a/b:1", "https://weir:8081"]
        {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
