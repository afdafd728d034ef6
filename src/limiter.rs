//! From charges to a decision: the only place where stores are chosen between.
//!
//! Buckets are in this process's memory, or in a Redis that several processes share. Redis is not asked again about what
//! it has denied, while that cannot change.

use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::clock::{self, Clock, Micros};
use crate::decision::{Charge, Decision, Source};
use crate::store::{Failure, KeySeed, LocalStore, Part, RedisStore, StoreError};

mod denials;

use denials::Denials;

/// Decides requests.
#[derive(Debug)]
pub struct Limiter {
    store: Store,
    keys: KeySeed,
}

#[derive(Debug)]
enum Store {
    Memory(LocalStore),
    Shared { redis: RedisStore, timeout: Duration, denials: Denials, clock: Clock },
}

/// What the buckets of a request's charges are called in a shared store, in the order of the charges.
pub type Names = SmallVec<[Bytes; 4]>;

impl Limiter {
    /// A limiter over buckets in memory, which are named under `keys`.
    #[must_use]
    pub fn in_memory(store: LocalStore, keys: KeySeed) -> Self {
        Self { store: Store::Memory(store), keys }
    }

    /// A limiter over buckets in Redis; `keys` tells buckets apart within a batch. Calls have `timeout` from their arrival
    /// on, and denials are remembered for `remember` at most.
    #[must_use]
    pub fn shared(
        redis: RedisStore,
        keys: KeySeed,
        timeout: Duration,
        remember: Duration,
        clock: Clock,
    ) -> Self {
        Self { store: Store::Shared { redis, timeout, denials: Denials::new(remember), clock }, keys }
    }

    /// The store, if it is this process's memory: then a decision is had at once.
    #[must_use]
    pub fn memory(&self) -> Option<&LocalStore> {
        match &self.store {
            Store::Memory(store) => Some(store),
            Store::Shared { .. } => None,
        }
    }

    /// The store in Redis, if there is one.
    #[must_use]
    pub fn redis(&self) -> Option<&RedisStore> {
        match &self.store {
            Store::Memory(_) => None,
            Store::Shared { redis, .. } => Some(redis),
        }
    }

    /// Decides one request: all of its charges or none. `names` is needed where [`Limiter::memory`] is not.
    ///
    /// # Errors
    /// When a shared store has no answer.
    pub async fn decide(&self, charges: &[Charge], names: Names) -> Result<Decision, StoreError> {
        match &self.store {
            Store::Memory(store) => Ok(store.decide(charges)),
            Store::Shared { redis, timeout, denials, clock } => {
                let deadline = clock::instant() + *timeout;
                let part = names.first().map_or(Part::ONLY, |name| redis.part_of(name));
                let ask = redis.decide(part, charges, names, deadline);
                if charges.iter().any(|charge| charge.hits.give_back()) {
                    let _giving_back = denials.giving_back(charges);
                    return Ok(ask.await.map_err(|Failure { error, .. }| error)?.said_by(Source::Redis));
                }
                let asked = clock.now();
                if let Some(decision) = denials.decide(charges, asked) {
                    return Ok(decision.said_by(Source::Remembered));
                }
                let generations = denials.generations(charges);
                let decision = ask.await.map_err(|Failure { error, .. }| error)?.said_by(Source::Redis);
                denials.remember(charges, &decision, asked, &generations, Micros::MAX);
                Ok(decision)
            }
        }
    }

    /// The seed that bucket keys are made under.
    #[must_use]
    pub fn keys(&self) -> KeySeed {
        self.keys
    }
}
