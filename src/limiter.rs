//! From charges to a decision: the only place where stores are chosen between.
//!
//! Buckets are in this process's memory, or in a Redis that several processes share. Redis is not asked again about what
//! it has denied, while that cannot change; and when it does not answer, buckets of this process's own decide. A request
//! whose buckets are in several slots of a Cluster, or in several stores, is decided part by part.

use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::clock::Clock;
use crate::decision::{Charge, Decision, OnRedisFailure, Source};
use crate::store::{KeySeed, LocalStore, RedisStore, Usage};
use crate::telemetry::collection::Collection;
use crate::telemetry::metrics::{
    LATE_SETTLED, LOCAL_BUCKETS, LOCAL_BUCKETS_LIMIT, LOCAL_EVICTED, LOCAL_OVERFLOWED, OWED, REFUNDS_FAILED,
};

mod caps;
mod denials;
mod fallback;
mod parts;
mod refunds;
mod shared;

use caps::Cap;
use shared::{Settled, Shared, Sweeping};

/// Decides requests.
#[derive(Debug)]
pub struct Limiter {
    store: Store,
    keys: KeySeed,
    buckets: Cap,
}

/// How often it is looked whether anything is near its cap.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Store {
    Memory(LocalStore),
    Shared(Arc<Shared>, #[allow(dead_code, reason = "held for its drop")] Sweeping),
}

/// What is done where Redis does not answer, and so that it need not.
#[derive(Clone, Copy, Debug)]
pub struct Failing {
    /// How long a call may take, from its arrival on.
    pub timeout: Duration,
    /// How long a denial is remembered at most.
    pub remember: Duration,
    /// What is answered, where a rule says nothing else.
    pub on_failure: OnRedisFailure,
}

/// What the buckets of a request's charges are called in a shared store, in the order of the charges.
pub type Names = SmallVec<[Bytes; 2]>;

impl Limiter {
    /// A limiter over buckets in memory, which are named under `keys`.
    #[must_use]
    pub fn in_memory(store: LocalStore, keys: KeySeed) -> Self {
        Self { store: Store::Memory(store), keys, buckets: cap_of_buckets() }
    }

    /// A limiter over buckets in Redis, and in its place about `capacity` of its own; `keys` tells buckets apart here. Must
    /// be called within a tokio runtime.
    #[must_use]
    pub fn shared(
        redis: RedisStore,
        keys: KeySeed,
        clock: Clock,
        capacity: NonZeroUsize,
        failing: Failing,
    ) -> Self {
        let (shared, sweeping) = Shared::new(redis, clock, capacity, failing);
        Self { store: Store::Shared(shared, sweeping), keys, buckets: cap_of_buckets() }
    }

    /// The store, if it is this process's memory: then a decision is had at once.
    #[must_use]
    pub fn memory(&self) -> Option<&LocalStore> {
        match &self.store {
            Store::Memory(store) => Some(store),
            Store::Shared(..) => None,
        }
    }

    /// The Redis, if buckets are shared in one.
    #[must_use]
    pub fn redis(&self) -> Option<&RedisStore> {
        match &self.store {
            Store::Memory(_) => None,
            Store::Shared(shared, _) => Some(shared.redis()),
        }
    }

    /// How full this process's own buckets are: all there are, or those that stand in for Redis.
    #[must_use]
    pub fn usage(&self) -> Usage {
        match &self.store {
            Store::Memory(store) => store.usage(),
            Store::Shared(shared, _) => shared.fallback().usage(),
        }
    }

    /// Buckets that Redis has to be told of, because they were decided on without it.
    #[must_use]
    pub fn owing(&self) -> usize {
        match &self.store {
            Store::Memory(_) => 0,
            Store::Shared(shared, _) => shared.fallback().owing(),
        }
    }

    /// Tells the figures of all this.
    #[allow(clippy::cast_precision_loss, reason = "so many buckets there are not")]
    pub fn collect(&self, to: &mut Collection) {
        let usage = self.usage();
        to.number(&LOCAL_BUCKETS, &[], usage.buckets as f64);
        to.number(&LOCAL_BUCKETS_LIMIT, &[], usage.capacity as f64);
        to.count(&LOCAL_EVICTED, &[], usage.evicted);
        to.count(&LOCAL_OVERFLOWED, &[], usage.overflowed);
        let Store::Shared(shared, _) = &self.store else { return };
        for (store, nodes) in shared.redis().stores() {
            nodes.iter().for_each(|node| node.collect(store, to));
        }
        to.number(&OWED, &[], self.owing() as f64);
        to.count(&REFUNDS_FAILED, &[], self.lost_refunds());
        let Settled { admitted, denied, lost } = shared.settled();
        for (result, count) in [("admitted", admitted), ("denied", denied), ("lost", lost)] {
            to.count(&LATE_SETTLED, &[result], count.load(Ordering::Relaxed));
        }
    }

    /// Decides one request: all of its charges or none. `names` is needed where [`Limiter::memory`] is not.
    pub async fn decide(&self, charges: &[Charge], names: &Names) -> Decision {
        match &self.store {
            Store::Memory(store) => store.decide(charges).said_by(Source::Local),
            Store::Shared(shared, _) => shared.decide(charges, names).await,
        }
    }

    /// Refunds to a shared store that have not arrived, as far as is known.
    #[must_use]
    pub fn lost_refunds(&self) -> u64 {
        match &self.store {
            Store::Memory(_) => 0,
            Store::Shared(shared, _) => shared.lost_refunds(),
        }
    }

    /// Warns, for ever, when there is nearly as much of something as there may be.
    pub async fn watch_caps(&self) -> Infallible {
        loop {
            tokio::time::sleep(LOOK).await;
            let usage = self.usage();
            self.buckets.look(usage.buckets, usage.capacity);
            if let Store::Shared(shared, _) = &self.store {
                shared.look_at_caps();
            }
        }
    }

    /// Says goodbye to Redis, so that other processes take over this one's share at once.
    pub async fn leave(&self) {
        if let Some(redis) = self.redis() {
            for node in redis.nodes() {
                node.leave().await;
            }
        }
    }

    /// The seed that bucket keys are made under.
    #[must_use]
    pub fn keys(&self) -> KeySeed {
        self.keys
    }
}

fn cap_of_buckets() -> Cap {
    Cap::new(
        "local buckets",
        "then those that are soonest full are forgotten; to have more, raise --max-buckets",
    )
}
