//! Who is to be connected to: asked anew for each attempt, since the answer may change.

use std::fmt;

use super::Address;
use super::trouble::Trouble;

/// Says where a connection is to lead to.
#[derive(Clone, Debug)]
pub(super) enum Resolver {
    /// Always there.
    Fixed(Address),
}

impl Resolver {
    /// Where the next connection is to lead to. Whoever asks bounds the time.
    pub(super) async fn resolve(&self) -> Result<Address, Trouble> {
        match self {
            Self::Fixed(address) => Ok(address.clone()),
        }
    }
}

/// For logs: shows no secrets.
impl fmt::Display for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(address) => address.fmt(f),
        }
    }
}
