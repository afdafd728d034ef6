//! From charges to a decision: the only place where stores are chosen between.
//!
//! Buckets are in this process's memory, or in a Redis that several processes share. Redis is not asked again about what
//! it has denied, while that cannot change. A request whose buckets are in several slots of a Cluster is decided part by
//! part ([`parts`]).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::clock::{self, Clock, Micros};
use crate::decision::{Charge, Decision, Source};
use crate::store::{Class, Failure, KeySeed, LocalStore, Part, RedisStore, StoreError};

mod denials;
mod parts;
mod refunds;

use denials::Denials;
use parts::Piece;
use refunds::Refunds;

/// Decides requests.
#[derive(Debug)]
pub struct Limiter {
    store: Store,
    keys: KeySeed,
}

#[derive(Debug)]
enum Store {
    Memory(LocalStore),
    Shared(Shared),
}

/// A Redis that several processes share.
#[derive(Debug)]
struct Shared {
    redis: Arc<RedisStore>,
    /// How long a call may take.
    timeout: Duration,
    denials: Arc<Denials>,
    refunds: Arc<Refunds>,
    clock: Clock,
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
        let (redis, denials) = (Arc::new(redis), Arc::new(Denials::new(remember)));
        let shared = Shared { redis, timeout, denials, refunds: Arc::default(), clock };
        Self { store: Store::Shared(shared), keys }
    }

    /// The store, if it is this process's memory: then a decision is had at once.
    #[must_use]
    pub fn memory(&self) -> Option<&LocalStore> {
        match &self.store {
            Store::Memory(store) => Some(store),
            Store::Shared(_) => None,
        }
    }

    /// The store in Redis, if there is one.
    #[must_use]
    pub fn redis(&self) -> Option<&RedisStore> {
        match &self.store {
            Store::Memory(_) => None,
            Store::Shared(shared) => Some(&shared.redis),
        }
    }

    /// Decides one request: all of its charges or none. `names` is needed where [`Limiter::memory`] is not.
    ///
    /// # Errors
    /// When a shared store has no answer.
    pub async fn decide(&self, charges: &[Charge], names: Names) -> Result<Decision, StoreError> {
        match &self.store {
            Store::Memory(store) => Ok(store.decide(charges)),
            Store::Shared(shared) => shared.decide(charges, &names).await,
        }
    }

    /// Refunds to a shared store that have not arrived, as far as is known.
    #[must_use]
    pub fn lost_refunds(&self) -> u64 {
        match &self.store {
            Store::Memory(_) => 0,
            Store::Shared(shared) => shared.refunds.lost(),
        }
    }

    /// The seed that bucket keys are made under.
    #[must_use]
    pub fn keys(&self) -> KeySeed {
        self.keys
    }
}

impl Shared {
    async fn decide(&self, charges: &[Charge], names: &Names) -> Result<Decision, StoreError> {
        let deadline = clock::instant() + self.timeout;
        let gives_back = charges.iter().any(|charge| charge.hits.give_back());
        let _giving_back = gives_back.then(|| self.denials.giving_back(charges));
        let asked = self.clock.now();
        if let Some(decision) = self.denials.decide(charges, asked) {
            return Ok(decision.said_by(Source::Remembered));
        }
        let generations = self.denials.generations(charges);
        let (mut decision, mut longest) = match parts::split(charges, names, |name| self.redis.part_of(name))
        {
            None => (ask(&self.redis, charges, names, deadline).await, Micros::MAX),
            Some(pieces) => (self.in_parts(charges, pieces, deadline).await, parts::BELIEVED),
        };
        // While a slot moves, its buckets may be in two places: each is a part of its own then.
        if decision.as_ref().is_err_and(|error| error.class() == Class::Moving)
            && let Some(pieces) = parts::split(charges, names, Bytes::clone)
        {
            (decision, longest) = (self.in_parts(charges, pieces, deadline).await, parts::BELIEVED);
        }
        let decision = decision?.said_by(Source::Redis);
        if !gives_back {
            self.denials.remember(charges, &decision, asked, &generations, longest);
        }
        Ok(decision)
    }

    /// Decides a request part by part. By a task of its own: should the caller go away in between, what is taken in one
    /// part is given back all the same when another denies.
    async fn in_parts(
        &self,
        charges: &[Charge],
        pieces: SmallVec<[Piece; 4]>,
        deadline: Instant,
    ) -> Result<Decision, StoreError> {
        let charges = parts::Charges::from_slice(charges);
        let (redis, denials, refunds) =
            (Arc::clone(&self.redis), Arc::clone(&self.denials), Arc::clone(&self.refunds));
        let deciding = tokio::spawn(async move {
            let asked = pieces.iter().map(|piece| ask(&redis, &piece.charges, &piece.names, deadline));
            let mut error = StoreError::Lost;
            let note = |answer: Result<Decision, StoreError>| answer.map_err(|failed| error = failed).ok();
            let decisions: Vec<Option<Decision>> = parts::all(asked).await.into_iter().map(note).collect();
            let (decision, taken) = parts::conclude(&charges, &pieces, &decisions);
            taken.into_iter().for_each(|refund| refunds.give_back(refund, &redis, &denials));
            decision.ok_or(error)
        });
        // Nothing ends this task but the end of the runtime.
        deciding.await.unwrap_or(Err(StoreError::Lost))
    }
}

/// Asks about a request whose buckets are all in one part.
async fn ask(
    redis: &RedisStore,
    charges: &[Charge],
    names: &Names,
    deadline: Instant,
) -> Result<Decision, StoreError> {
    let part = names.first().map_or(Part::ONLY, |name| redis.part_of(name));
    let answer = redis.decide(part, charges, names.iter().cloned(), deadline).await;
    answer.map_err(|Failure { error, .. }| error)
}
