//! Where a Redis is, and how to be let in.
//!
//! What is in files is read anew for each connection, so that certificates and passwords can be replaced while weir runs.

use std::fmt;
use std::path::{Path, PathBuf};

use redis::io::tcp::TcpSettings;
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, TlsCertificates,
};

/// The forms that a URL may have.
const FORMS: &str = "write redis://user:password@host:port/database, of which only the host is needed, rediss:// for \
                     TLS, or redis+unix:///path/to/socket";

/// A Redis. Shows no secrets.
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
}

impl Address {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it, in a line.
    pub fn parse(url: &str) -> Result<Self, String> {
        let info = url.into_connection_info().map_err(|error| format!("{error}; {FORMS}"))?;
        // A batch is one small message, and must not wait for another to travel with.
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        if let ConnectionAddr::TcpTls { insecure: true, .. } = info.addr() {
            return Err(
                "`#insecure` would let anybody answer for Redis; name its authority with --redis-ca".into()
            );
        }
        Ok(Self { info, files: Files::default() })
    }

    /// The same Redis, of which these files say more.
    ///
    /// # Errors
    /// When one of them cannot be read, or makes no sense with the rest, in a line.
    pub fn with_files(mut self, files: Files) -> Result<Self, String> {
        let tls = matches!(self.info.addr(), ConnectionAddr::TcpTls { .. });
        if !tls && (files.ca.is_some() || files.certificate.is_some() || files.key.is_some()) {
            return Err("certificates are for TLS: the URL begins with rediss:// then".into());
        }
        if files.certificate.is_some() != files.key.is_some() {
            return Err(
                "a client's certificate and its key come together: --redis-cert and --redis-key".into()
            );
        }
        self.files = files;
        self.client()?;
        Ok(self)
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
