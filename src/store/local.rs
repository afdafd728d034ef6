//! Buckets in this process's memory: sharded, exact under any number of threads, and bounded.
//!
//! The shards are [`DashMap`]'s. A request locks those of all its buckets, in their order, so that it is decided as one;
//! its time is read under the locks, so that time never runs backwards within a shard.
//!
//! # The cap
//!
//! A bucket that is full again says no more than one that is not there, so it is forgotten when its place is wanted:
//! whenever a shard would have to grow, and first of all at the cap. At the cap, those go next that are soonest full.
//! A bucket without a whole token is never evicted: its owner is being limited, and a flood of new keys must not free
//! him. When only such buckets remain, new keys are charged to one overflow bucket per rule.
//!
//! To find whom to evict, a shard is read through once for its soonest eighth, which then goes one by one, each looked
//! at again before. A shard holds about a thousand buckets at the cap: so a pass is short, and is mostly paid for by a
//! hundred insertions or more.
//!
//! # Memory
//!
//! A shard's table doubles when it is seven eighths full, and would be half empty then. If all shards were alike, all would
//! double at once, and a bucket take twice as much for it as before. So they are not: the last has twice the buckets of the
//! first, those between lie between, and some are about to double at any time while others just have.

use std::mem;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dashmap::{DashMap, RwLockWriteGuard, SharedValue};
use hashbrown::raw::RawTable;
use smallvec::SmallVec;

use crate::bucket::{Bucket, Limit};
use crate::clock::{Clock, Micros};
use crate::decision::{BucketKey, Charge, Decision, RuleId, decide, decide_one};

mod candidates;
mod shards;

use candidates::Evicted;
use shards::{Bound, shard_of};

/// Buckets that a shard holds at the cap, about: what one pass for candidates may cost.
const SHARD_SIZE: usize = 1_024;

/// Buckets in memory, each with an `X` beside it, which is forgotten together with it.
#[derive(Debug)]
pub struct LocalStore<X = ()> {
    clock: Clock,
    buckets: DashMap<Name, Slot<X>>,
    /// One for each shard of `buckets`.
    bounds: Box<[Bound]>,
    evicted: AtomicU64,
    overflowed: AtomicU64,
    warned: AtomicBool,
}

/// How full a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Buckets held.
    pub buckets: usize,
    /// Buckets that may be held; overflow buckets come on top, at most one a rule.
    pub capacity: usize,
    /// Buckets forgotten before they were full, since the start.
    pub evicted: u64,
    /// Charges to an overflow bucket, since the start.
    pub overflowed: u64,
}

/// A bucket as it is kept: a token bucket takes 40 bytes with its name, where nothing is beside it.
#[derive(Clone, Debug)]
struct Slot<X> {
    bucket: Bucket,
    beside: X,
}

/// Sees a bucket before it is decided on, and what is beside it: both new where it was not there. Is told which of the
/// request's charges it is for, and the moment. An overflow bucket is not shown.
pub trait Prepare<X> {
    /// May change both.
    fn prepare(&mut self, charge: usize, bucket: &mut Bucket, beside: &mut X, now: Micros);
}

/// Changes nothing.
impl<X> Prepare<X> for () {
    #[inline]
    fn prepare(&mut self, _: usize, _: &mut Bucket, _: &mut X, _: Micros) {}
}

impl<X, F: FnMut(usize, &mut Bucket, &mut X, Micros)> Prepare<X> for F {
    fn prepare(&mut self, charge: usize, bucket: &mut Bucket, beside: &mut X, now: Micros) {
        self(charge, bucket, beside, now);
    }
}

/// A key as it is kept: a number of 128 bits would make each place a multiple of its own size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Name([u64; 2]);

impl From<BucketKey> for Name {
    #[allow(clippy::cast_possible_truncation, reason = "in halves")]
    fn from(key: BucketKey) -> Self {
        Self([(key.0 >> 64) as u64, key.0 as u64])
    }
}

impl From<Name> for BucketKey {
    fn from(Name([first, last]): Name) -> Self {
        Self((u128::from(first) << 64) | u128::from(last))
    }
}

type Table<X> = RawTable<(Name, SharedValue<Slot<X>>)>;
type Shard<'a, X> = RwLockWriteGuard<'a, Table<X>>;

impl LocalStore {
    /// A store of at most about `capacity` buckets: each shard holds its share of them, rounded up.
    #[must_use]
    pub fn new(capacity: NonZeroUsize, clock: Clock) -> Self {
        Self::with_beside(capacity, clock)
    }
}

impl<X: Default> LocalStore<X> {
    /// The same, with an `X` beside each bucket.
    #[must_use]
    pub fn with_beside(capacity: NonZeroUsize, clock: Clock) -> Self {
        let shards = (capacity.get() / SHARD_SIZE).next_power_of_two().clamp(2, 4_096);
        let bound = |shard| Bound::new(capacity.get(), shard, shards);
        Self {
            clock,
            buckets: DashMap::with_shard_amount(shards),
            bounds: (0..shards).map(bound).collect(),
            evicted: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            warned: AtomicBool::new(false),
        }
    }

    /// Decides a request, and leaves its buckets as the decision says.
    pub fn decide(&self, charges: &[Charge]) -> Decision {
        self.decide_with(charges, &mut ())
    }

    /// The same, after each bucket has been prepared for it.
    pub fn decide_with(&self, charges: &[Charge], prepare: &mut impl Prepare<X>) -> Decision {
        match charges {
            [charge] => self.decide_one(charge, prepare),
            _ => self.decide_all(charges, prepare),
        }
    }

    /// Looks at a bucket and what is beside it, and may change both; `None` if it is not there.
    pub fn with<T>(&self, key: BucketKey, look: impl FnOnce(&mut Bucket, &mut X, Micros) -> T) -> Option<T> {
        let mut shard = self.lock(self.shard_of(key))?;
        let now = self.clock.now();
        let slot = find(&mut shard, key)?;
        Some(look(&mut slot.bucket, &mut slot.beside, now))
    }

    /// Writes down what is known of a bucket from elsewhere: `put` is shown it, and what is beside it, both new where it
    /// was not there. A new one is kept if there is room for it, and if it is not full.
    pub fn put(&self, key: BucketKey, limit: &Limit, put: impl FnOnce(&mut Bucket, &mut X, Micros)) {
        let index = self.shard_of(key);
        let Some(mut shard) = self.lock(index) else { return };
        let now = self.clock.now();
        if let Some(Slot { bucket, beside }) = find(&mut shard, key) {
            put(bucket, beside, now);
            let token_at = bucket.token_at();
            return self.note_rewritten(index, &shard, token_at);
        }
        let (mut bucket, mut beside) = (Bucket::FULL, X::default());
        put(&mut bucket, &mut beside, now);
        if bucket.full_at() > now && self.has_room(index, &mut shard, 1, &[key], now) {
            self.keep(index, &mut shard, key, bucket, limit, now, Some(beside));
        }
    }

    /// Shards, for [`LocalStore::look_through`].
    #[must_use]
    pub fn shards(&self) -> usize {
        self.bounds.len()
    }

    /// Shows all buckets of a shard, about a thousand; the shard is locked meanwhile. Those that are full are forgotten.
    pub fn look_through(&self, index: usize, mut look: impl FnMut(BucketKey, &mut Bucket, &mut X, Micros)) {
        let Some(mut shard) = self.lock(index) else { return };
        let now = self.clock.now();
        let table = mem::take(&mut *shard);
        shard.reserve(table.len(), |(name, _)| hash(*name));
        let mut overflow = 0;
        for (name, mut slot) in table {
            let Slot { bucket, beside } = slot.get_mut();
            look(name.into(), bucket, beside, now);
            if bucket.full_at() > now {
                overflow += usize::from(is_overflow(name.into()));
                shard.insert_entry(hash(name), (name, slot), |(name, _)| hash(*name));
            }
        }
        self.bound(index).candidates().overflow = overflow;
    }

    /// How full the store is. Looks at every shard: for a gauge, not for a call.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            buckets: self.buckets.len(),
            capacity: self.capacity(),
            evicted: self.evicted.load(Ordering::Relaxed),
            overflowed: self.overflowed.load(Ordering::Relaxed),
        }
    }

    fn capacity(&self) -> usize {
        self.bounds.iter().map(|bound| bound.capacity).sum()
    }

    fn decide_one(&self, charge: &Charge, prepare: &mut impl Prepare<X>) -> Decision {
        let key = charge.bucket;
        {
            let index = self.shard_of(key);
            let Some(mut shard) = self.lock(index) else {
                return decide(&[*charge], &[usize::MAX], &mut [], 0);
            };
            let now = self.clock.now();
            if let Some(slot) = find(&mut shard, key) {
                prepare.prepare(0, &mut slot.bucket, &mut slot.beside, now);
                let decision = decide_one(charge, &mut slot.bucket, now);
                slot.bucket.seen_under(&charge.limit);
                let token_at = slot.bucket.token_at();
                self.note_rewritten(index, &shard, token_at);
                return decision;
            }
            if self.has_room(index, &mut shard, 1, &[key], now) {
                let (mut bucket, mut beside) = (Bucket::FULL, X::default());
                prepare.prepare(0, &mut bucket, &mut beside, now);
                let decision = decide_one(charge, &mut bucket, now);
                self.keep(index, &mut shard, key, bucket, &charge.limit, now, Some(beside));
                return decision;
            }
        }
        self.decide_all(std::slice::from_ref(charge), prepare)
    }

    fn decide_all(&self, charges: &[Charge], prepare: &mut impl Prepare<X>) -> Decision {
        // The bucket of each charge: its own, or where there is no room for that, its rule's overflow bucket.
        let mut owners: SmallVec<[BucketKey; 4]> = charges.iter().map(|charge| charge.bucket).collect();
        loop {
            let mut keys = owners.clone();
            keys.sort_unstable();
            keys.dedup();

            let mut indexes: SmallVec<[usize; 4]> = keys.iter().map(|key| self.shard_of(*key)).collect();
            indexes.sort_unstable();
            indexes.dedup();
            let mut shards: SmallVec<[(usize, Shard<'_, X>); 4]> =
                indexes.iter().filter_map(|index| Some((*index, self.lock(*index)?))).collect();
            let now = self.clock.now();

            let mut crowded_out = false;
            for (index, shard) in &mut shards {
                let of_shard = |key: &&BucketKey| self.shard_of(**key) == *index && !is_overflow(**key);
                let missing = keys.iter().filter(of_shard).filter(|key| find(shard, **key).is_none()).count();
                if missing == 0 || self.has_room(*index, shard, missing, &keys, now) {
                    continue;
                }
                for (charge, owner) in charges.iter().zip(&mut owners) {
                    if self.shard_of(*owner) == *index
                        && !is_overflow(*owner)
                        && find(shard, *owner).is_none()
                    {
                        *owner = overflow_bucket(charge.rule);
                        crowded_out = true;
                        self.count_overflow();
                    }
                }
            }
            if crowded_out {
                // Other shards are wanted now, and have to be locked in their order. Each round settles at least one
                // charge for good, so there are no more rounds than charges.
                continue;
            }

            let places: SmallVec<[usize; 4]> =
                owners.iter().map(|owner| keys.binary_search(owner).unwrap_or(usize::MAX)).collect();
            // What is beside buckets that are not there yet.
            let mut besides: SmallVec<[Option<X>; 4]> = keys.iter().map(|_| None).collect();
            let mut buckets: SmallVec<[Bucket; 4]> = SmallVec::new();
            for (place, (key, new)) in keys.iter().zip(&mut besides).enumerate() {
                let index = self.shard_of(*key);
                let shard = shards.iter_mut().find(|(other, _)| *other == index);
                let (mut full, mut nothing) = (Bucket::FULL, X::default());
                let is_new;
                let (bucket, beside) = match shard.and_then(|(_, shard)| find(shard, *key)) {
                    Some(Slot { bucket, beside }) => {
                        is_new = false;
                        (bucket, beside)
                    }
                    None => {
                        is_new = true;
                        (&mut full, &mut nothing)
                    }
                };
                if let Some(charge) = places.iter().position(|other| *other == place)
                    && !is_overflow(*key)
                {
                    prepare.prepare(charge, bucket, beside, now);
                }
                buckets.push(bucket.clone());
                if is_new {
                    *new = Some(nothing);
                }
            }
            let decision = decide(charges, &places, &mut buckets, now);
            for (charge, place) in charges.iter().zip(&places) {
                let (Some(key), Some(bucket)) = (keys.get(*place), buckets.get(*place)) else { continue };
                let index = self.shard_of(*key);
                if let Some((_, shard)) = shards.iter_mut().find(|(other, _)| *other == index) {
                    let new = besides.get_mut(*place).and_then(Option::take);
                    self.keep(index, shard, *key, bucket.clone(), &charge.limit, now, new);
                }
            }
            return decision;
        }
    }

    /// Writes a bucket down, unless it is full and was not there before. Room has been seen to.
    #[allow(clippy::too_many_arguments, reason = "where and what")]
    fn keep(
        &self,
        index: usize,
        shard: &mut Shard<'_, X>,
        key: BucketKey,
        mut bucket: Bucket,
        limit: &Limit,
        now: Micros,
        beside: Option<X>,
    ) {
        bucket.seen_under(limit);
        let (full_at, token_at) = (bucket.full_at(), bucket.token_at());
        if let Some(slot) = find(shard, key) {
            slot.bucket = bucket;
            return self.note_rewritten(index, shard, token_at);
        }
        if full_at <= now {
            return;
        }
        let bound = self.bound(index);
        let mut candidates = bound.candidates();
        if shard.len() == shard.capacity() {
            // Before the shard grows: what is full goes.
            candidates.before_growth(shard, bound.capacity, key, now);
        }
        let slot = Slot { bucket, beside: beside.unwrap_or_default() };
        shard.insert_entry(hash(key), (key.into(), SharedValue::new(slot)), |(name, _)| hash(*name));
        candidates.has_come(key, full_at, token_at);
    }

    /// A bucket of a shard that is at its cap has a whole token from `token_at` on: it may be one to evict by then.
    fn note_rewritten(&self, index: usize, shard: &Shard<'_, X>, token_at: Micros) {
        let bound = self.bound(index);
        if shard.len() >= bound.capacity {
            bound.candidates().has_token_at(token_at);
        }
    }

    /// Whether `wanted` more buckets may be kept in a shard; evicts what has to go for it, but none of `spared`.
    fn has_room(
        &self,
        index: usize,
        shard: &mut Shard<'_, X>,
        wanted: usize,
        spared: &[BucketKey],
        now: Micros,
    ) -> bool {
        let bound = self.bound(index);
        if wanted > bound.capacity {
            return false;
        }
        while shard.len() + wanted > bound.capacity {
            let mut candidates = bound.candidates();
            if shard.len() + wanted <= bound.capacity + candidates.overflow {
                return true;
            }
            match candidates.evict(shard, bound.capacity, spared, now) {
                Evicted::Full => {}
                Evicted::InUse => _ = self.evicted.fetch_add(1, Ordering::Relaxed),
                Evicted::None => return false,
            }
        }
        true
    }

    fn count_overflow(&self) {
        self.overflowed.fetch_add(1, Ordering::Relaxed);
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                capacity = self.capacity(),
                "no room for new buckets: all that are held belong to callers who are being limited. New callers of a \
                 rule share one bucket until there is room; to have more, raise --max-buckets"
            );
        }
    }

    /// The shard that a bucket is in, or would be.
    #[must_use]
    pub fn shard_of(&self, key: BucketKey) -> usize {
        shard_of(key, self.bounds.len())
    }

    fn lock(&self, index: usize) -> Option<Shard<'_, X>> {
        self.buckets.shards().get(index).map(|shard| shard.write())
    }

    fn bound(&self, index: usize) -> &Bound {
        #[allow(clippy::indexing_slicing, reason = "one for each shard, made together with them")]
        &self.bounds[index]
    }
}

fn find<X>(shard: &mut Table<X>, key: BucketKey) -> Option<&mut Slot<X>> {
    let name = key.into();
    shard.get_mut(hash(name), |(other, _)| *other == name).map(|(_, slot)| slot.get_mut())
}

/// Marks the upper half of an overflow bucket's key; other keys are hashes, and have it once in 2⁶⁴.
const OVERFLOW: u64 = 0x6f76_6572_666c_6f77;

/// The bucket that the latecomers of a rule share.
fn overflow_bucket(rule: RuleId) -> BucketKey {
    BucketKey((u128::from(OVERFLOW) << 64) | u128::from(rule.0))
}

fn is_overflow(key: BucketKey) -> bool {
    key.0 >> 64 == u128::from(OVERFLOW)
}

/// A key is a hash already; half of it is enough for a table.
fn hash(name: impl Into<Name>) -> u64 {
    let Name([_, last]) = name.into();
    last
}

#[cfg(test)]
mod tests;
