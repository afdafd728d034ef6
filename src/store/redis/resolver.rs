//! Who is to be connected to: asked anew for each attempt, since the answer may change.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::Address;
use super::sentinel::Sentinels;
use super::trouble::Trouble;
use crate::store::Class;

/// Says where a connection is to lead to.
#[derive(Clone, Debug)]
pub(super) enum Resolver {
    /// Always there.
    Fixed(Arc<Address>),
    /// To the server that sentinels say is the primary.
    Sentinels(Arc<Sentinels>),
}

impl Resolver {
    /// To a server that is always there.
    pub(super) fn fixed(address: Address) -> Self {
        Self::Fixed(Arc::new(address))
    }

    /// Where the next connection is to lead to. Whoever asks bounds the time.
    pub(super) async fn resolve(&self) -> Result<Address, Trouble> {
        match self {
            Self::Fixed(address) => Ok(Address::clone(address)),
            Self::Sentinels(sentinels) => sentinels.primary().await,
        }
    }

    /// Whether the server has to say of itself that it is a primary: who names it may be behind.
    pub(super) fn wants_primary(&self) -> bool {
        matches!(self, Self::Sentinels(_))
    }

    /// Tells when it may be worth asking again.
    pub(super) fn news(&self) -> News {
        match self {
            Self::Fixed(_) => News(None),
            Self::Sentinels(sentinels) => News(Some(sentinels.news())),
        }
    }

    /// What is wrong with a connection to `address` by now, although it works: that it should lead to somebody else.
    pub(super) async fn moved_from(&self, address: &Address) -> Option<Trouble> {
        match self {
            Self::Fixed(_) => None,
            Self::Sentinels(sentinels) => match sentinels.primary().await {
                Ok(primary) if !primary.is_at(address) => Some(Trouble::new(
                    Class::ReadOnly,
                    format!("the sentinels name another primary: {primary}"),
                )),
                // Who does not answer gives no reason to leave what works.
                _ => None,
            },
        }
    }
}

/// Tells when it may be worth asking a resolver again.
pub(super) struct News(Option<watch::Receiver<()>>);

impl News {
    /// Returns when something has happened since the last time.
    pub(super) async fn heard(&mut self) {
        // It ends with the resolver only.
        let heard = match &mut self.0 {
            Some(news) => news.changed().await.is_ok(),
            None => false,
        };
        if !heard {
            std::future::pending::<()>().await;
        }
    }
}

/// For logs: shows no secrets.
impl fmt::Display for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(address) => address.fmt(f),
            Self::Sentinels(sentinels) => sentinels.fmt(f),
        }
    }
}
