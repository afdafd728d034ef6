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

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::mem;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use dashmap::{DashMap, RwLockWriteGuard, SharedValue};
use hashbrown::raw::RawTable;
use smallvec::SmallVec;

use crate::bucket::{Bucket, Limit};
use crate::clock::{Clock, Micros};
use crate::decision::{BucketKey, Charge, Decision, RuleId, decide, decide_one};

/// Buckets that a shard holds at the cap, about: what one pass for candidates may cost.
const SHARD_SIZE: usize = 1_024;

/// Buckets that a pass lists at least, if there are as many: few that each cost another pass would be dear.
const LISTED: usize = 128;

/// How long a shard that holds nothing to evict is left in peace at least, in microseconds.
const PAUSE: Micros = 1_000;

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

/// How far a shard may grow.
#[derive(Debug)]
struct Bound {
    /// Buckets that it may hold, overflow buckets not counted.
    capacity: usize,
    /// Locked only under the shard's lock.
    candidates: Mutex<Candidates>,
}

impl Bound {
    fn candidates(&self) -> impl std::ops::DerefMut<Target = Candidates> + '_ {
        self.candidates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Buckets of one shard that may be evicted, the soonest full first.
#[derive(Debug, Default)]
struct Candidates {
    /// When each was going to be full when it was last looked at.
    soonest: BinaryHeap<Reverse<(Micros, BucketKey)>>,
    /// Buckets that are full later than this were left out.
    until: Micros,
    /// When another pass makes sense.
    next_pass: Micros,
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
        let bound =
            |shard| Bound { capacity: slice_of(capacity.get(), shard, shards), candidates: Mutex::default() };
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
    pub fn look_through(&self, shard: usize, mut look: impl FnMut(BucketKey, &mut Bucket, &mut X, Micros)) {
        let Some(mut shard) = self.lock(shard) else { return };
        let now = self.clock.now();
        let table = mem::take(&mut *shard);
        shard.reserve(table.len(), |(name, _)| hash(*name));
        for (name, mut slot) in table {
            let Slot { bucket, beside } = slot.get_mut();
            look(name.into(), bucket, beside, now);
            if bucket.full_at() > now {
                shard.insert_entry(hash(name), (name, slot), |(name, _)| hash(*name));
            }
        }
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
            // Before the shard grows: what is full goes. There is room, so nobody is to be evicted soon.
            sift(shard, bound.capacity, &[key], now);
            *candidates = Candidates::default();
        }
        let slot = Slot { bucket, beside: beside.unwrap_or_default() };
        shard.insert_entry(hash(key), (key.into(), SharedValue::new(slot)), |(name, _)| hash(*name));
        candidates.next_pass = candidates.next_pass.min(token_at);
        if !candidates.soonest.is_empty() && full_at < candidates.until {
            candidates.soonest.push(Reverse((full_at, key)));
        }
    }

    /// A bucket of a shard that is at its cap has a whole token from `token_at` on: it may be one to evict by then.
    fn note_rewritten(&self, index: usize, shard: &Shard<'_, X>, token_at: Micros) {
        let bound = self.bound(index);
        if shard.len() >= bound.capacity {
            let mut candidates = bound.candidates();
            candidates.next_pass = candidates.next_pass.min(token_at);
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
            match bound.candidates().evict(shard, bound.capacity, spared, now) {
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
        shard_of(part_of(key), self.bounds.len())
    }

    fn lock(&self, index: usize) -> Option<Shard<'_, X>> {
        self.buckets.shards().get(index).map(|shard| shard.write())
    }

    fn bound(&self, index: usize) -> &Bound {
        #[allow(clippy::indexing_slicing, reason = "one for each shard, made together with them")]
        &self.bounds[index]
    }
}

/// What an eviction found.
enum Evicted {
    /// A bucket that was full: nothing is lost.
    Full,
    /// The bucket that was soonest full.
    InUse,
    /// Nothing that may go.
    None,
}

impl Candidates {
    /// Evicts the bucket that is soonest full and has a whole token, but none of `spared`.
    fn evict<X>(
        &mut self,
        shard: &mut Shard<'_, X>,
        capacity: usize,
        spared: &[BucketKey],
        now: Micros,
    ) -> Evicted {
        loop {
            let Some(Reverse((expected, key))) = self.soonest.pop() else {
                if now < self.next_pass {
                    return Evicted::None;
                }
                let before = shard.len();
                self.pass(shard, capacity, spared, now);
                if shard.len() < before {
                    return Evicted::Full;
                }
                if self.soonest.is_empty() {
                    return Evicted::None;
                }
                continue;
            };
            let Some(slot) = find(shard, key) else { continue };
            let full_at = slot.bucket.full_at();
            if spared.contains(&key) || full_at > self.until || slot.bucket.token_at() > now {
                // About to be charged; or charged since, so that it is no longer among the soonest, or being limited.
                continue;
            }
            if full_at > expected {
                self.soonest.push(Reverse((full_at, key)));
                continue;
            }
            shard.erase_entry(hash(key), |(other, _)| *other == key.into());
            return if full_at <= now { Evicted::Full } else { Evicted::InUse };
        }
    }

    /// Reads through a shard: forgets what is full, and lists the eighth of the rest that is soonest full. Those that
    /// are `spared` are neither forgotten nor listed.
    fn pass<X>(&mut self, shard: &mut Shard<'_, X>, capacity: usize, spared: &[BucketKey], now: Micros) {
        let Sifted { mut evictable, next } = sift(shard, capacity, spared, now);
        let listed = evictable.len().div_ceil(8).max(LISTED).min(evictable.len());
        if let Some(last) = listed.checked_sub(1) {
            evictable.select_nth_unstable(last);
            evictable.truncate(listed);
        }
        evictable.shrink_to_fit();
        self.until = evictable.iter().map(|(full_at, _)| *full_at).max().unwrap_or(0);
        self.soonest = evictable.into_iter().map(Reverse).collect();
        let nothing_to_evict = self.soonest.is_empty() && !shard.is_empty();
        self.next_pass = if nothing_to_evict { next.max(now.saturating_add(PAUSE)) } else { 0 };
    }
}

/// What is left of a shard.
struct Sifted {
    /// When each bucket is full that has a whole token.
    evictable: Vec<(Micros, BucketKey)>,
    /// When the next of the others has one.
    next: Micros,
}

/// Forgets what is full. Those that are `spared` are neither forgotten nor said to be evictable.
fn sift<X>(shard: &mut Shard<'_, X>, capacity: usize, spared: &[BucketKey], now: Micros) -> Sifted {
    let table = mem::take(&mut **shard);
    let (mut evictable, mut next) = (Vec::new(), Micros::MAX);
    let mut kept: Vec<(Name, SharedValue<Slot<X>>)> = Vec::with_capacity(table.len());
    for (name, slot) in table {
        let key = name.into();
        let Slot { bucket, .. } = slot.get();
        let (full_at, token_at) = (bucket.full_at(), bucket.token_at());
        if spared.contains(&key) {
            next = 0;
        } else if full_at <= now {
            continue;
        } else if token_at <= now {
            evictable.push((full_at, key));
        } else {
            next = next.min(token_at);
        }
        kept.push((name, slot));
    }
    // Room for a quarter more, so that the next time is paid for by as many insertions; but for no more than there may be.
    let quarter = (kept.len() / 4 + 8).min(capacity.saturating_sub(kept.len())).max(1);
    shard.reserve(kept.len() + quarter, |(name, _)| hash(*name));
    for entry in kept {
        shard.insert_entry(hash(entry.0), entry, |(name, _)| hash(*name));
    }
    Sifted { evictable, next }
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

/// Keys are dealt out to shards by the first of their bits, which a table has no use for: so many.
const PART_BITS: u32 = 30;

/// The first bits of a key.
#[allow(clippy::cast_possible_truncation, reason = "as many bits as are left")]
fn part_of(key: BucketKey) -> u64 {
    (key.0 >> (u128::BITS - PART_BITS)) as u64
}

/// The shard of a key that begins with these bits. With u for them as a fraction of 1, it is u(4 - u)/3 of all shards: that
/// rises twice as fast at 0 as it does at 1, so the first shard has half as many keys as the last.
#[allow(clippy::cast_possible_truncation, reason = "less than there are shards")]
fn shard_of(part: u64, shards: usize) -> usize {
    const ONE: u64 = 1 << PART_BITS;
    // Of u(4 - u), as many bits as leave room for the number of shards.
    let risen = (part * (4 * ONE - part)) >> PART_BITS;
    (risen * shards as u64 / (3 * ONE)) as usize
}

/// What of `all` is for one shard, rounded up.
#[allow(clippy::cast_possible_truncation, reason = "no more than all")]
fn slice_of(all: usize, shard: usize, shards: usize) -> usize {
    // The first part that is not for an earlier shard.
    let first = |shard: usize| {
        let (mut low, mut high) = (0, 1_u64 << PART_BITS);
        while low < high {
            let middle = u64::midpoint(low, high);
            if shard_of(middle, shards) < shard { low = middle + 1 } else { high = middle }
        }
        low
    };
    let parts = first(shard + 1) - first(shard);
    (all as u128 * u128::from(parts)).div_ceil(1 << PART_BITS) as usize
}

#[cfg(test)]
mod tests;
