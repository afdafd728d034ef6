//! What PEM files of TLS hold, and what is said of those that do not.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The certificates in a file with this text, of which there is at least one.
///
/// # Errors
/// When there is none, in a line that names the file.
pub(crate) fn certificates(text: &[u8], file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let certificates = certificates.ok().filter(|certificates| !certificates.is_empty());
    certificates.ok_or_else(|| format!("{}: no certificate in PEM format", file.display()))
}

/// The same, as authorities that others are signed by.
///
/// # Errors
/// When there is none, or one that cannot be used.
pub(crate) fn authorities(text: &[u8], file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(text, file)? {
        roots.add(authority).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(roots)
}

/// The private key in a file with this text.
///
/// # Errors
/// When there is none.
pub(crate) fn key(text: &[u8], file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(text)
        .map_err(|_| format!("{}: no private key in PEM format", file.display()))
}
