//! Whom a shard evicts when it is full: those that are soonest full again, and have a whole token.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::mem;

use dashmap::SharedValue;

use super::{Name, Shard, Slot, find, hash, is_overflow};
use crate::clock::Micros;
use crate::decision::BucketKey;

/// Buckets that a pass lists at least, if there are as many: few that each cost another pass would be dear.
const LISTED: usize = 128;

/// How long a shard that holds nothing to evict is left in peace at least, in microseconds.
const PAUSE: Micros = 1_000;

/// Buckets of one shard that may be evicted, the soonest full first.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// When each was going to be full when it was last looked at.
    soonest: BinaryHeap<Reverse<(Micros, BucketKey)>>,
    /// Buckets that are full later than this were left out.
    until: Micros,
    /// When another pass makes sense.
    next_pass: Micros,
    /// Overflow buckets in the shard.
    pub(super) overflow: usize,
}

/// What an eviction found.
pub(super) enum Evicted {
    /// A bucket that was full: nothing is lost.
    Full,
    /// The bucket that was soonest full.
    InUse,
    /// Nothing that may go.
    None,
}

impl Candidates {
    /// Memory that the list takes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.soonest.capacity() * size_of::<(Micros, BucketKey)>()
    }

    /// Evicts the bucket that is soonest full and has a whole token, but none of `spared`.
    pub(super) fn evict<X>(
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

    /// Notes that a bucket has come, which is full at `full_at` and has a whole token at `token_at`.
    pub(super) fn has_come(&mut self, key: BucketKey, full_at: Micros, token_at: Micros) {
        if is_overflow(key) {
            self.overflow += 1;
            return;
        }
        self.has_token_at(token_at);
        if !self.soonest.is_empty() && full_at < self.until {
            self.soonest.push(Reverse((full_at, key)));
        }
    }

    /// Notes when a bucket has a whole token: it may be one to evict by then.
    pub(super) fn has_token_at(&mut self, token_at: Micros) {
        self.next_pass = self.next_pass.min(token_at);
    }

    /// Forgets what is full of a shard without a free place, which `key` is to have; below the cap, nobody is listed.
    pub(super) fn before_growth<X>(
        &mut self,
        shard: &mut Shard<'_, X>,
        capacity: usize,
        key: BucketKey,
        now: Micros,
    ) {
        if shard.len() + 1 >= capacity {
            return self.pass(shard, capacity, &[key], now);
        }
        let Sifted { overflow, .. } = sift(shard, capacity, &[key], now);
        *self = Self { overflow, ..Self::default() };
    }

    /// Reads through a shard: forgets what is full, and lists the eighth of the rest that is soonest full. Those that
    /// are `spared` are neither forgotten nor listed.
    fn pass<X>(&mut self, shard: &mut Shard<'_, X>, capacity: usize, spared: &[BucketKey], now: Micros) {
        let Sifted { mut evictable, next, overflow } = sift(shard, capacity, spared, now);
        self.overflow = overflow;
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
    /// When each bucket is full that has a whole token, overflow buckets left out.
    evictable: Vec<(Micros, BucketKey)>,
    /// When the next of the others has one.
    next: Micros,
    overflow: usize,
}

/// Forgets what is full. Those that are `spared` are neither forgotten nor said to be evictable.
fn sift<X>(shard: &mut Shard<'_, X>, capacity: usize, spared: &[BucketKey], now: Micros) -> Sifted {
    let table = mem::take(&mut **shard);
    let (mut evictable, mut next, mut overflow) = (Vec::new(), Micros::MAX, 0);
    let mut kept: Vec<(Name, SharedValue<Slot<X>>)> = Vec::with_capacity(table.len());
    for (name, slot) in table {
        let key = name.into();
        let Slot { bucket, .. } = slot.get();
        let (full_at, token_at) = (bucket.full_at(), bucket.token_at());
        if spared.contains(&key) {
            next = 0;
        } else if full_at <= now {
            continue;
        } else if is_overflow(key) {
            // It takes nobody's place.
        } else if token_at <= now {
            evictable.push((full_at, key));
        } else {
            next = next.min(token_at);
        }
        overflow += usize::from(is_overflow(key));
        kept.push((name, slot));
    }
    // Room for a quarter more, so that the next time is paid for by as many insertions; but for no more than there may be,
    // and for what those that are evicted leave behind, whose places are not all free at once.
    let quarter = (kept.len() / 4 + 8).min(capacity.saturating_sub(kept.len())).max(kept.len() / 16 + 1);
    shard.reserve(kept.len() + quarter, |(name, _)| hash(*name));
    for entry in kept {
        shard.insert_entry(hash(entry.0), entry, |(name, _)| hash(*name));
    }
    Sifted { evictable, next, overflow }
}
