//! TLS on a listener: whose certificate it shows, whose it asks for, and files that change under way.
//!
//! Files are read every second, and what is in them takes effect for the connections that come from then on, so a
//! certificate is renewed by replacing its files, in any order. While they do not go together, as between the first and the
//! second, those that were read before stay.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsAcceptor;
use webpki::EndEntityCert;

use super::Incoming;
use crate::pem;

mod validity;

/// How often files are read.
const READ_EVERY: Duration = Duration::from_secs(1);

/// A file is missing or half written for a moment when it is replaced; after so many readings, it is wrong.
const PATIENCE: u32 = 3;

/// What TLS is made of.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// PEM file of the certificate, and of those between it and an authority.
    pub certificate: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
    /// Which certificates clients must show, if any.
    pub clients: Option<Clients>,
}

/// Whose certificates are accepted.
#[derive(Clone, Debug)]
pub struct Clients {
    /// PEM file of the authorities that they may be signed by.
    pub authorities: PathBuf,
    /// Whether a client must show one.
    pub are_required: bool,
    /// Names of which it must have one; any will do, if there are none.
    pub names: Vec<San>,
}

/// A name in a certificate (subject alternative name).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum San {
    /// Of a host, or an address.
    Host(ServerName<'static>),
    /// A URI, such as `spiffe://example.org/envoy`.
    Uri(String),
}

impl FromStr for San {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains("://") {
            return Ok(Self::Uri(text.to_owned()));
        }
        let host = ServerName::try_from(text.to_owned());
        host.map(Self::Host)
            .map_err(|_| "write a host name, an address, or a URI such as spiffe://example.org/envoy".into())
    }
}

/// TLS on one listener.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    /// What clients are told that is spoken here (ALPN).
    protocol: &'static [u8],
    current: ArcSwap<ServerConfig>,
    /// When the certificate that is shown ends, or one between it and an authority, in seconds since the epoch.
    end: AtomicU64,
    /// What the files held when they were read last, whether it could be used or not.
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    digest: Option<[u8; 32]>,
    /// How often since it was last all right they could not be used.
    failures: u32,
}

impl Tls {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// When one cannot be read, or they do not go together, in a line.
    pub fn new(files: TlsFiles, protocol: &'static [u8]) -> Result<Self, String> {
        let contents = Contents::read(&files)?;
        let (config, end) = contents.config(&files, protocol)?;
        tracing::info!(certificate = %files.certificate.display(), until = %told(end), "certificates read");
        let seen = Mutex::new(Seen { digest: Some(contents.digest()), failures: 0 });
        Ok(Self { files, protocol, current: ArcSwap::from_pointee(config), end: end.into(), seen })
    }

    /// When the certificate that is shown ends, in seconds since the epoch.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }

    /// Whether the files as they are now cannot be used, for longer than it takes to replace them.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).failures >= PATIENCE
    }

    /// Begins TLS on a connection.
    pub(crate) async fn begin(&self, incoming: Incoming) -> io::Result<Incoming> {
        let acceptor = TlsAcceptor::from(self.current.load_full());
        let wire = acceptor.accept(incoming.wire).await?;
        // One that is shown has been checked, or there would be no connection.
        let is_certified = wire.get_ref().1.peer_certificates().is_some();
        Ok(Incoming { wire: Box::new(wire), peer: incoming.peer, is_certified })
    }

    /// Reads the files again and again, for ever.
    pub async fn follow(self: Arc<Self>) -> Infallible {
        loop {
            tokio::time::sleep(READ_EVERY).await;
            let this = Arc::clone(&self);
            // Reads files. That it ends early cannot be, and the next one comes.
            _ = tokio::task::spawn_blocking(move || this.look()).await;
        }
    }

    /// Takes what is in the files, if that is something else and can be used.
    fn look(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let read = Contents::read(&self.files);
        let digest = read.as_ref().ok().map(Contents::digest);
        if digest.is_some() && digest == seen.digest && seen.failures == 0 {
            return;
        }
        let is_new = digest != seen.digest;
        seen.digest = digest;
        match read.and_then(|contents| contents.config(&self.files, self.protocol)) {
            Ok((config, end)) => {
                seen.failures = 0;
                self.current.store(Arc::new(config));
                self.end.store(end, Ordering::Relaxed);
                let certificate = self.files.certificate.display();
                tracing::info!(%certificate, until = %told(end), "certificates read anew");
            }
            Err(error) => {
                seen.failures = if is_new { 1 } else { seen.failures.saturating_add(1) };
                if seen.failures == PATIENCE {
                    tracing::error!(%error, "certificates refused; those read before stay in use");
                }
            }
        }
    }
}

/// What the files hold.
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authorities: Vec<u8>,
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, String> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        Ok(Self {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
            authorities: files
                .clients
                .as_ref()
                .map_or(Ok(Vec::new()), |clients| read(&clients.authorities))?,
        })
    }

    fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for part in [&self.certificate, &self.key, &self.authorities] {
            digest.update(Sha256::digest(part));
        }
        digest.finalize().into()
    }

    /// What connections are made with, and until when.
    fn config(&self, files: &TlsFiles, protocol: &[u8]) -> Result<(ServerConfig, u64), String> {
        let chain = pem::certificates(&self.certificate, &files.certificate)?;
        let ends: Option<Vec<u64>> = chain.iter().map(|certificate| validity::end(certificate)).collect();
        let end = ends.and_then(|ends| ends.into_iter().min());
        let end =
            end.ok_or_else(|| format!("{}: a certificate without an end", files.certificate.display()))?;
        let key = pem::key(&self.key, &files.key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match &files.clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let roots = pem::authorities(&self.authorities, &clients.authorities)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = if clients.are_required { verifier } else { verifier.allow_unauthenticated() };
                let verifier = verifier
                    .build()
                    .map_err(|error| format!("{}: {error}", clients.authorities.display()))?;
                builder.with_client_cert_verifier(Arc::new(Named { verifier, names: clients.names.clone() }))
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            let (certificate, key) = (files.certificate.display(), files.key.display());
            format!("{certificate} and {key}: {error}")
        })?;
        config.alpn_protocols = vec![protocol.to_owned()];
        Ok((config, end))
    }
}

/// A moment for people.
fn told(end: u64) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(end))
}

/// Accepts certificates that have one of some names, besides all else that is asked of them.
#[derive(Debug)]
struct Named {
    verifier: Arc<dyn ClientCertVerifier>,
    names: Vec<San>,
}

impl Named {
    fn knows(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok(certificate) = EndEntityCert::try_from(certificate) else { return false };
        self.names.is_empty()
            || self.names.iter().any(|name| match name {
                San::Host(host) => certificate.verify_is_valid_for_subject_name(host).is_ok(),
                San::Uri(uri) => certificate.valid_uri_names().any(|name| name == uri),
            })
    }
}

impl ClientCertVerifier for Named {
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.verifier.verify_client_cert(certificate, intermediates, now)?;
        if self.knows(certificate) {
            Ok(verified)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    use super::*;

    /// A directory with a certificate and its key.
    fn files() -> (tempfile::TempDir, TlsFiles) {
        let directory = tempfile::tempdir().unwrap();
        let [certificate, key] = ["cert.pem", "key.pem"].map(|name| directory.path().join(name));
        let files = TlsFiles { certificate, key, clients: None };
        let pair = pair();
        std::fs::write(&files.certificate, pair.0).unwrap();
        std::fs::write(&files.key, pair.1).unwrap();
        (directory, files)
    }

    fn pair() -> (String, String) {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["weir.test".into()]).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    }

    /// One that is good until the first of January of this year.
    fn pair_until(year: i32) -> (String, String) {
        let mut params = rcgen::CertificateParams::new(["weir.test".into()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn what_is_wrong_with_the_files_is_said_with_their_names() {
        let (_directory, files) = files();
        let wrong = |files: &TlsFiles| Tls::new(files.clone(), b"h2").map(|_| ()).unwrap_err();
        std::fs::write(&files.key, pair().1).unwrap();
        assert!(
            wrong(&files).contains("cert.pem and ") && wrong(&files).contains("key.pem: "),
            "{}",
            wrong(&files)
        );
        std::fs::write(&files.key, "x").unwrap();
        assert!(wrong(&files).ends_with("key.pem: no private key in PEM format"), "{}", wrong(&files));
        std::fs::write(&files.certificate, "").unwrap();
        assert!(wrong(&files).ends_with("cert.pem: no certificate in PEM format"), "{}", wrong(&files));
        std::fs::remove_file(&files.certificate).unwrap();
        assert!(wrong(&files).contains("cert.pem: No such file"), "{}", wrong(&files));
    }

    #[test]
    fn replaced_files_are_taken_when_they_go_together_and_not_before() {
        let (_directory, files) = files();
        let tls = Tls::new(files.clone(), b"h2").unwrap();
        assert_eq!(tls.end(), 67_090_118_400, "in 4096, as the library has it that makes them");
        let first = tls.current.load_full();
        let is_first = |tls: &Tls| Arc::ptr_eq(&first, &tls.current.load_full());
        tls.look();
        assert!(is_first(&tls), "nothing has changed");
        let (certificate, key) = pair_until(2030);
        std::fs::write(&files.certificate, certificate).unwrap();
        tls.look();
        assert!(
            is_first(&tls) && !tls.is_refused(),
            "another certificate, and still the old key, for a moment"
        );
        std::fs::remove_file(&files.key).unwrap();
        (0..5).for_each(|_| tls.look());
        assert!(is_first(&tls) && tls.is_refused());
        assert_eq!(tls.end(), 67_090_118_400, "of the one that is shown");
        std::fs::write(&files.key, key).unwrap();
        tls.look();
        assert!(!is_first(&tls) && !tls.is_refused());
        assert_eq!(tls.end(), 1_893_456_000);
        let second = tls.current.load_full();
        tls.look();
        assert!(Arc::ptr_eq(&second, &tls.current.load_full()));
    }

    #[test]
    fn names_are_hosts_addresses_or_uris() {
        assert!(matches!("envoy.example.org".parse(), Ok(San::Host(ServerName::DnsName(_)))));
        assert!(matches!("192.0.2.7".parse(), Ok(San::Host(ServerName::IpAddress(_)))));
        assert_eq!("spiffe://example.org/envoy".parse(), Ok(San::Uri("spiffe://example.org/envoy".into())));
        for wrong in ["", "two words", "a..b"] {
            assert!(wrong.parse::<San>().unwrap_err().starts_with("write a host name"), "{wrong}");
        }
    }
}
