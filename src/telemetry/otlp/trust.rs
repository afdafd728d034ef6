//! TLS to a collector: which authorities its certificate may be from, and what this process shows of itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::pem;

/// Files of TLS to a collector, as they were at the start.
#[derive(Clone, Default)]
pub(super) struct Trust {
    /// In place of the system's.
    authorities: Option<Pem>,
    /// A certificate and its key.
    identity: Option<(Pem, Pem)>,
}

#[derive(Clone)]
struct Pem {
    path: PathBuf,
    text: Vec<u8>,
}

impl Pem {
    fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path: path.to_owned(), text })
    }
}

impl Trust {
    /// Reads the files; without `ca`, the system's authorities are trusted.
    ///
    /// # Errors
    /// When one cannot be read, in a line.
    pub(super) fn read(ca: Option<&Path>, identity: Option<(&Path, &Path)>) -> Result<Self, String> {
        let pair = |(certificate, key)| Ok::<_, String>((Pem::read(certificate)?, Pem::read(key)?));
        Ok(Self { authorities: ca.map(Pem::read).transpose()?, identity: identity.map(pair).transpose()? })
    }

    /// For HTTP.
    ///
    /// # Errors
    /// When the files make no sense, in a line.
    pub(super) fn connector(&self) -> Result<TlsConnector, String> {
        let roots = match &self.authorities {
            Some(file) => pem::authorities(&file.text, &file.path)?,
            None => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                roots
            }
        };
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let config = match &self.identity {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = pem::certificates(&certificate.text, &certificate.path)?;
                let private = pem::key(&key.text, &key.path)?;
                config.with_client_auth_cert(chain, private).map_err(|error| {
                    format!("{} and {}: {error}", certificate.path.display(), key.path.display())
                })?
            }
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// The same for gRPC, whose library reads the files by itself and does not say which is wrong.
    ///
    /// # Errors
    /// When the files make no sense, in a line.
    pub(super) fn of_channel(&self) -> Result<ClientTlsConfig, String> {
        self.connector()?;
        let mut tls = match &self.authorities {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&pem.text)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(&certificate.text, &key.text));
        }
        Ok(tls)
    }
}
