//! From charges to a decision: the only place where stores are chosen between.
//!
//! Buckets are in this process's memory, or in a Redis that several processes share.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::decision::{Charge, Decision};
use crate::store::{KeySeed, LocalStore, RedisStore, StoreError};

/// Decides requests.
#[derive(Debug)]
pub struct Limiter {
    store: Store,
    keys: KeySeed,
}

#[derive(Debug)]
enum Store {
    Memory(LocalStore),
    Shared(RedisStore),
}

/// What the buckets of a request's charges are called in a shared store, in the order of the charges.
pub type Names = SmallVec<[Bytes; 4]>;

impl Limiter {
    /// A limiter over buckets in memory, which are named under `keys`.
    #[must_use]
    pub fn in_memory(store: LocalStore, keys: KeySeed) -> Self {
        Self { store: Store::Memory(store), keys }
    }

    /// A limiter over buckets in Redis; `keys` tells buckets apart within a batch.
    #[must_use]
    pub fn shared(store: RedisStore, keys: KeySeed) -> Self {
        Self { store: Store::Shared(store), keys }
    }

    /// The store, if it is this process's memory: then a decision is had at once.
    #[must_use]
    pub fn memory(&self) -> Option<&LocalStore> {
        match &self.store {
            Store::Memory(store) => Some(store),
            Store::Shared(_) => None,
        }
    }

    /// Decides one request: all of its charges or none. `names` is needed where [`Limiter::memory`] is not.
    ///
    /// # Errors
    /// When a shared store has no answer.
    pub async fn decide(&self, charges: &[Charge], names: Names) -> Result<Decision, StoreError> {
        match &self.store {
            Store::Memory(store) => Ok(store.decide(charges)),
            Store::Shared(store) => store.decide(charges, names).await,
        }
    }

    /// The seed that bucket keys are made under.
    #[must_use]
    pub fn keys(&self) -> KeySeed {
        self.keys
    }
}
