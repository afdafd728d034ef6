//! Where a Redis is, and how to be let in.
//!
//! What is in files is read anew for each connection, so that certificates and passwords can be replaced while weir runs.

use std::fmt;
use std::path::{Path, PathBuf};

use redis::aio::{MultiplexedConnection, PubSub};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _,
    RedisConnectionInfo, TlsCertificates,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::trouble::Trouble;
use crate::store::Class;

/// A Redis server. Shows no secrets.
#[derive(Clone)]
pub struct Address {
    info: ConnectionInfo,
    files: Files,
}

/// Files that say more than a URL does.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// The user's name, in place of the URL's.
    pub username: Option<PathBuf>,
    /// The password, in place of the URL's.
    pub password: Option<PathBuf>,
    /// Certificates of authorities that the server's is to be signed by, in place of the system's. PEM.
    pub ca: Option<PathBuf>,
    /// The client's own certificate, PEM.
    pub certificate: Option<PathBuf>,
    /// The key of that, PEM.
    pub key: Option<PathBuf>,
    /// The name of the sentinels' user, in place of the URL's.
    pub sentinel_username: Option<PathBuf>,
    /// The password for the sentinels, in place of the URL's.
    pub sentinel_password: Option<PathBuf>,
}

impl Address {
    /// A server at `addr`, with a user and a password for it, and files that say more.
    pub(super) fn new(
        addr: ConnectionAddr,
        (user, password): (Option<String>, Option<String>),
        database: i64,
        files: Files,
    ) -> Result<Self, String> {
        let mut settings = RedisConnectionInfo::default().set_db(database);
        if let Some(user) = user {
            settings = settings.set_username(user);
        }
        if let Some(password) = password {
            settings = settings.set_password(password);
        }
        let info = addr.into_connection_info().map_err(|error| error.to_string())?;
        // A batch is one small message, and must not wait for another to travel with.
        let tcp = TcpSettings::default().set_nodelay(true);
        Ok(Self { info: info.set_redis_settings(settings).set_tcp_settings(tcp), files })
    }

    /// Another server, of which all is true that is of this one but for where it is.
    pub(super) fn at(&self, host: &str, port: u16) -> Self {
        let addr = match self.info.addr() {
            ConnectionAddr::TcpTls { insecure, .. } => {
                ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: *insecure, tls_params: None }
            }
            _ => ConnectionAddr::Tcp(host.to_owned(), port),
        };
        Self { info: self.info.clone().set_addr(addr), files: self.files.clone() }
    }

    /// Whether another one is at the same place.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        self.info.addr() == other.info.addr()
    }

    /// Its host, if it has one.
    pub(super) fn host(&self) -> Option<&str> {
        match self.info.addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => Some(host),
            _ => None,
        }
    }

    /// A connection to it, with what is in the files now. Whoever wants it bounds the time, also of what is asked over it.
    pub(super) async fn connect(&self) -> Result<MultiplexedConnection, Trouble> {
        self.with_client(|client| async move {
            let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
            Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
        })
        .await
    }

    /// The same, to listen on.
    pub(super) async fn listen(&self) -> Result<PubSub, Trouble> {
        self.with_client(|client| async move { Ok(client.get_async_pubsub().await?) }).await
    }

    /// Connects by a client. For TLS, the client library reads the system's certificates each time, also where others are
    /// given, which takes a processor for milliseconds: not one that serves.
    async fn with_client<T, F>(
        &self,
        connect: impl FnOnce(Client) -> F + Send + 'static,
    ) -> Result<T, Trouble>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Trouble>> + Send + 'static,
    {
        let address = self.clone();
        let connecting = async move {
            let client = address.client().map_err(|said| Trouble::new(Class::Other, said))?;
            connect(client).await
        };
        if !matches!(self.info.addr(), ConnectionAddr::TcpTls { .. }) {
            return connecting.await;
        }
        apart(connecting).await.unwrap_or_else(|| Err(Trouble::new(Class::Other, "connecting was given up")))
    }

    /// A client for it, from what is in the files now.
    pub(super) fn client(&self) -> Result<Client, String> {
        let mut settings = self.info.redis_settings().clone();
        if let Some(path) = &self.files.username {
            settings = settings.set_username(line(path)?);
        }
        if let Some(path) = &self.files.password {
            settings = settings.set_password(line(path)?);
        }
        let info = self.info.clone().set_redis_settings(settings);
        if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            return Client::open(info).map_err(|error| error.to_string());
        }
        let root_cert = self.files.ca.as_deref().map(bytes).transpose()?;
        if let (Some(path), Some(pem)) = (&self.files.ca, &root_cert)
            && memchr::memmem::find(pem, b"-----BEGIN CERTIFICATE-----").is_none()
        {
            return Err(format!("{}: no certificate in it; a PEM file is wanted", path.display()));
        }
        let client_tls = match (&self.files.certificate, &self.files.key) {
            (Some(certificate), Some(key)) => {
                Some(ClientTlsConfig { client_cert: bytes(certificate)?, client_key: bytes(key)? })
            }
            _ => None,
        };
        // Several parts of a process may want this; the first one's is everybody's.
        _ = rustls::crypto::ring::default_provider().install_default();
        Client::build_with_tls(info, TlsCertificates { client_tls, root_cert })
            .map_err(|error| format!("certificates for Redis: {error}"))
    }
}

/// Does something on a thread that serves nobody. `None` when the process ends meanwhile.
async fn apart<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    // Nothing waits for it when nobody wants it any more: this ends together with whoever asked.
    let (_wanted, unwanted) = oneshot::channel::<()>();
    let runtime = Handle::current();
    let working = move || {
        runtime.block_on(async {
            tokio::select! {
                biased;
                done = work => Some(done),
                _ = unwanted => None,
            }
        })
    };
    tokio::task::spawn_blocking(working).await.ok().flatten()
}

/// Host and port, or the socket's path.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.info.addr())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// What a file says, without the end of its line.
fn line(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    // On one thread, which would wait for itself for ever.
    #[tokio::test]
    async fn what_is_done_apart_holds_nobody_up() {
        let (say, heard) = mpsc::channel();
        let waiting = apart(async move { heard.recv() });
        let (heard, ()) = tokio::join!(waiting, async { say.send(7).unwrap() });
        assert_eq!(heard, Some(Ok(7)));
    }

    #[tokio::test]
    async fn what_nobody_wants_any_more_ends() {
        let (held, dropped) = oneshot::channel::<()>();
        let (begin, begun) = oneshot::channel();
        let working = apart(async move {
            begin.send(()).unwrap();
            std::future::pending::<()>().await;
            drop(held);
        });
        tokio::select! {
            _ = working => panic!("it never ends by itself"),
            begun = begun => begun.unwrap(),
        }
        assert!(dropped.await.is_err(), "it has ended");
    }
}
