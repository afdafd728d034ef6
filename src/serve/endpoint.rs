//! Where to listen: an address of TCP, or a path for a unix socket.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use super::accept::{Arrival, Socket};

/// What an endpoint on a unix socket begins with.
const UNIX: &str = "unix:";

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An address; port 0 takes any free one.
    Tcp(SocketAddr),
    /// The path of a socket.
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(UNIX) {
            Some("") => Err("write a path after `unix:`, such as unix:/run/weir/grpc.sock".into()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                "write an IP address and a port, such as 127.0.0.1:8081 or [::]:8081, or unix:/path/to/socket".into()
            }),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl Endpoint {
    /// Listens there. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn bind(&self) -> io::Result<Listener> {
        match self {
            Self::Tcp(address) => {
                let listener = TcpListener::bind(address).await?;
                let endpoint = Self::Tcp(listener.local_addr()?);
                Ok(Listener { endpoint, kind: Kind::Tcp(listener) })
            }
            Self::Unix(path) => {
                remove_if_dead(path)?;
                let listener = UnixListener::bind(path)?;
                let file = SocketFile { path: path.clone(), inode: inode(path)? };
                Ok(Listener { endpoint: self.clone(), kind: Kind::Unix(listener, file) })
            }
        }
    }
}

/// Removes a socket that a process left behind that is gone: nobody could listen at its path otherwise.
fn remove_if_dead(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let refuses = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && std::os::unix::net::UnixStream::connect(path).err().is_some_and(refuses) {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// An endpoint that connections can come to, until this is dropped.
#[derive(Debug)]
pub struct Listener {
    endpoint: Endpoint,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener, #[expect(dead_code, reason = "is there to be dropped")] SocketFile),
}

/// A unix socket's file, which goes with its listener, unless another one has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A stream of bytes in both directions.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Somebody with this address.
    Address(IpAddr),
    /// A process of this machine, through a unix socket.
    Local,
}

impl Listener {
    /// Where it listens: the port is the one that was taken.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The next connection. Nothing is lost when this is dropped before it returns.
    pub(super) async fn connection(&self) -> io::Result<Arrival> {
        // Taken back from this runtime: another may be the one to serve it.
        Ok(match &self.kind {
            Kind::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // A decision is one small message, and must not wait for another to travel with. The only error is
                // that the connection is gone already, which whoever reads will find.
                _ = stream.set_nodelay(true);
                let peer = Peer::Address(address.ip().to_canonical());
                Arrival { socket: Socket::Tcp(stream.into_std()?), peer }
            }
            Kind::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Arrival { socket: Socket::Unix(stream.into_std()?), peer: Peer::Local }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_written_as_it_is_read() {
        for text in ["127.0.0.1:8081", "[::]:8081", "unix:/run/weir.sock", "unix:weir.sock"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in ["", "8081", "localhost:8081", "unix:", "unix"] {
            assert!(text.parse::<Endpoint>().unwrap_err().starts_with("write "), "{text}");
        }
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_one_in_use_or_another_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weir.sock");
        let endpoint = Endpoint::Unix(path.clone());
        // Its file stays, as after a crash.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = endpoint.bind().await.unwrap();
        assert_eq!(endpoint.bind().await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists(), "the file goes with its listener");

        std::fs::write(&path, "notes").unwrap();
        assert_eq!(endpoint.bind().await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "notes");
    }

    #[tokio::test]
    async fn a_listener_leaves_alone_what_has_taken_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weir.sock");
        let first = Endpoint::Unix(path.clone()).bind().await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = Endpoint::Unix(path.clone()).bind().await.unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
