//! From charges to a decision: the only place where stores are chosen between.
//!
//! There is one so far, this process's memory, so there is nothing to choose; callers ask here all the same.

use crate::decision::{Charge, Decision};
use crate::store::{KeySeed, LocalStore, Usage};

/// Decides requests.
#[derive(Debug)]
pub struct Limiter {
    store: LocalStore,
    keys: KeySeed,
}

impl Limiter {
    /// A limiter over a store, whose buckets are named under `keys`.
    #[must_use]
    pub fn new(store: LocalStore, keys: KeySeed) -> Self {
        Self { store, keys }
    }

    /// Decides one request: all of its charges or none.
    #[must_use]
    pub fn decide(&self, charges: &[Charge]) -> Decision {
        self.store.decide(charges)
    }

    /// The seed that bucket keys are made under.
    #[must_use]
    pub fn keys(&self) -> KeySeed {
        self.keys
    }

    /// How full the store is.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.store.usage()
    }
}
