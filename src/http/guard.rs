//! Who may ask for more than probes: by address, by token, or both.
//!
//! | | no token set | a token set |
//! |---|---|---|
//! | no ranges set | this machine and private networks | whoever has the token |
//! | ranges set | addresses in them | addresses in them that have the token |
//!
//! A certificate that the client has shown, and that is accepted (`--http-tls-client-ca`), stands for a token.
//!
//! So a port that is open to the world by mistake tells it nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use crate::clock;
use crate::rules::AddressRange;
use crate::serve::Peer;

/// How long a token that has been read is taken for what is in the file.
const FRESH: Duration = Duration::from_secs(1);

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Who is at the other end.
    pub peer: Peer,
    /// Whether he has shown a certificate that is accepted.
    pub is_certified: bool,
}

/// Lets in, or not.
#[derive(Debug)]
pub struct Guard {
    ranges: Vec<AddressRange>,
    token: Option<Token>,
}

/// Why somebody is not let in.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// Not from there.
    #[error("{0} may not ask for this; --http-allow says who may, or --http-token-file what with")]
    Address(IpAddr),
    /// Not without the token.
    #[error("this wants the header `authorization: Bearer TOKEN`, with the token of --http-token-file")]
    Token,
    /// There is no token to compare with.
    #[error("the file of --http-token-file cannot be read, or is empty; nobody is let in until it can")]
    Unreadable,
}

impl Guard {
    /// Lets in those from `ranges` who have the token in the file `token`.
    ///
    /// # Errors
    /// When that file cannot be read, or is empty.
    pub fn new(ranges: Vec<AddressRange>, token: Option<PathBuf>) -> Result<Self, String> {
        let token = token.map(Token::new);
        if let Some(token) = &token {
            token.read()?;
        }
        Ok(Self { ranges, token })
    }

    /// Whether somebody may have what is not for everybody.
    ///
    /// # Errors
    /// When not: why.
    pub fn permits(&self, from: Caller, authorization: Option<&HeaderValue>) -> Result<(), Refusal> {
        if let Peer::Address(address) = from.peer {
            let is_in = match &self.ranges[..] {
                [] => self.token.is_some() || from.is_certified || is_near(address),
                ranges => ranges.iter().any(|range| range.contains(address)),
            };
            if !is_in {
                return Err(Refusal::Address(address));
            }
        }
        match &self.token {
            Some(token) if !from.is_certified => token.check(authorization),
            _ => Ok(()),
        }
    }
}

/// Whether an address is of this machine or of a network that is nobody else's.
fn is_near(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            // RFC 6598: what providers and clusters use between themselves.
            let shared = address.to_bits() & 0xFFC0_0000 == Ipv4Addr::new(100, 64, 0, 0).to_bits();
            address.is_loopback() || address.is_private() || address.is_link_local() || shared
        }
        IpAddr::V6(address) => {
            address == Ipv6Addr::LOCALHOST || address.is_unique_local() || address.is_unicast_link_local()
        }
    }
}

/// A token in a file, which may be replaced while weir runs.
#[derive(Debug)]
struct Token {
    path: PathBuf,
    /// When it was read last, and the digest of what was there.
    read: Mutex<Option<(Instant, Option<[u8; 32]>)>>,
}

impl Token {
    fn new(path: PathBuf) -> Self {
        Self { path, read: Mutex::default() }
    }

    /// The digest of what is in the file.
    fn read(&self) -> Result<[u8; 32], String> {
        let file = self.path.display();
        let token =
            std::fs::read(&self.path).map_err(|error| format!("--http-token-file {file}: {error}"))?;
        // Editors end a file with a new line.
        match token.trim_ascii() {
            [] => Err(format!("--http-token-file {file}: empty; write a token into it")),
            token => Ok(Sha256::digest(token).into()),
        }
    }

    /// The same, read a moment ago at most.
    fn current(&self) -> Option<[u8; 32]> {
        let now = clock::instant();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        match *read {
            Some((at, digest)) if now < at + FRESH => digest,
            _ => {
                let was_good = read.is_none_or(|(_, digest)| digest.is_some());
                // Said once, however often somebody asks.
                let read_now = self.read().inspect_err(|error| {
                    if was_good {
                        tracing::warn!("{error}; nobody is let in until it can be read");
                    }
                });
                let digest = read_now.ok();
                *read = Some((now, digest));
                digest
            }
        }
    }

    fn check(&self, authorization: Option<&HeaderValue>) -> Result<(), Refusal> {
        let wanted = self.current().ok_or(Refusal::Unreadable)?;
        let given = authorization.map_or(&b""[..], HeaderValue::as_bytes);
        let (scheme, token) = given.split_at_checked(b"Bearer ".len()).ok_or(Refusal::Token)?;
        // Of digests, in constant time: neither the length of the token nor where a wrong one differs can be measured.
        let is_right = wanted.ct_eq(&<[u8; 32]>::from(Sha256::digest(token.trim_ascii())));
        if scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(is_right) {
            Ok(())
        } else {
            Err(Refusal::Token)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: Caller = Caller { peer: Peer::Local, is_certified: false };

    fn peer(address: &str) -> Caller {
        Caller { peer: Peer::Address(address.parse().unwrap()), is_certified: false }
    }

    fn ranges(ranges: &[&str]) -> Vec<AddressRange> {
        ranges.iter().map(|range| range.parse().unwrap()).collect()
    }

    #[test]
    fn without_ranges_and_token_this_machine_and_private_networks_are_let_in() {
        let guard = Guard::new(Vec::new(), None).unwrap();
        for near in [
            "127.0.0.9",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.1.1",
            "::1",
            "fd00::1",
        ] {
            assert_eq!(guard.permits(peer(near), None), Ok(()), "{near}");
        }
        for far in ["192.0.2.7", "172.32.0.1", "100.128.0.1", "8.8.8.8", "2001:db8::1", "::ffff:192.0.2.7"] {
            assert!(matches!(guard.permits(peer(far), None), Err(Refusal::Address(_))), "{far}");
        }
        assert_eq!(guard.permits(LOCAL, None), Ok(()));
        assert_eq!(guard.permits(Caller { is_certified: true, ..peer("192.0.2.7") }, None), Ok(()));
    }

    #[test]
    fn ranges_take_the_place_of_those_networks() {
        let guard = Guard::new(ranges(&["192.0.2.0/24", "2001:db8::/32"]), None).unwrap();
        for (address, is_in) in [
            ("192.0.2.7", true),
            ("2001:db8::1", true),
            ("::ffff:192.0.2.7", true),
            ("192.0.3.7", false),
            ("127.0.0.1", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(guard.permits(peer(address), None).is_ok(), is_in, "{address}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_asked_of_everybody_and_read_again_when_its_file_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "s3cret\n").unwrap();
        let guard = Guard::new(Vec::new(), Some(path.clone())).unwrap();
        let asks = |header: &str| {
            let header = (!header.is_empty()).then(|| HeaderValue::from_str(header).unwrap());
            guard.permits(peer("192.0.2.7"), header.as_ref())
        };
        for right in ["Bearer s3cret", "bearer s3cret"] {
            assert_eq!(asks(right), Ok(()), "{right}");
        }
        for wrong in ["", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3cret1", "Basic s3cret", "s3cret"] {
            assert_eq!(asks(wrong), Err(Refusal::Token), "{wrong}");
        }
        assert_eq!(guard.permits(LOCAL, None), Err(Refusal::Token));
        assert_eq!(guard.permits(Caller { is_certified: true, ..peer("192.0.2.7") }, None), Ok(()));

        std::fs::write(&path, "other").unwrap();
        tokio::time::advance(FRESH).await;
        assert_eq!(asks("Bearer s3cret"), Err(Refusal::Token));
        assert_eq!(asks("Bearer other"), Ok(()));
        std::fs::remove_file(&path).unwrap();
        tokio::time::advance(FRESH).await;
        assert_eq!(asks("Bearer other"), Err(Refusal::Unreadable), "what is not known lets nobody in");
    }

    #[test]
    fn a_token_must_be_there_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let new = || Guard::new(Vec::new(), Some(path.clone())).map(|_| ()).unwrap_err();
        assert!(new().contains("No such file"), "{}", new());
        std::fs::write(&path, " \n").unwrap();
        assert!(new().ends_with("empty; write a token into it"), "{}", new());
    }

    #[test]
    fn a_token_is_wanted_besides_the_address_where_both_are_set() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "s3cret").unwrap();
        let guard = Guard::new(ranges(&["192.0.2.0/24"]), Some(path)).unwrap();
        let token = HeaderValue::from_static("Bearer s3cret");
        assert_eq!(guard.permits(peer("192.0.2.1"), Some(&token)), Ok(()));
        assert_eq!(guard.permits(peer("192.0.2.1"), None), Err(Refusal::Token));
        assert!(matches!(guard.permits(peer("10.0.0.1"), Some(&token)), Err(Refusal::Address(_))));
    }
}
