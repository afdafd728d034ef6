//! How keys are dealt out to shards, and how far each may grow.
//!
//! A shard's table doubles when it is seven eighths full. So that not all double at once, shards are not alike: the last has
//! twice the keys of the first, and twice the room.

use std::sync::{Mutex, PoisonError};

use super::candidates::Candidates;
use super::is_overflow;
use crate::decision::BucketKey;

/// How far a shard may grow.
#[derive(Debug)]
pub(super) struct Bound {
    /// Buckets that it may hold, overflow buckets not counted.
    pub(super) capacity: usize,
    /// Locked only under the shard's lock.
    candidates: Mutex<Candidates>,
}

impl Bound {
    /// The bound of one of so many shards, which may hold `all` together, rounded up.
    pub(super) fn new(all: usize, shard: usize, shards: usize) -> Self {
        Self { capacity: slice_of(all, shard, shards), candidates: Mutex::default() }
    }

    /// Whom it evicts.
    pub(super) fn candidates(&self) -> impl std::ops::DerefMut<Target = Candidates> + '_ {
        self.candidates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keys are dealt out to shards by the first of their bits, which a table has no use for: so many.
const PART_BITS: u32 = 30;

/// The first bits of a key; of an overflow bucket, whose first half says only that, those of its rule.
#[allow(clippy::cast_possible_truncation, reason = "as many bits as are left")]
fn part_of(key: BucketKey) -> u64 {
    let bits = if is_overflow(key) { key.0 << 64 } else { key.0 };
    (bits >> (u128::BITS - PART_BITS)) as u64
}

/// The shard of a key.
pub(super) fn shard_of(key: BucketKey, shards: usize) -> usize {
    shard_of_part(part_of(key), shards)
}

/// The shard of a key that begins with these bits. With u for them as a fraction of 1, it is u(4 - u)/3 of all shards: that
/// rises twice as fast at 0 as it does at 1, so the first shard has half as many keys as the last.
#[allow(clippy::cast_possible_truncation, reason = "less than there are shards")]
fn shard_of_part(part: u64, shards: usize) -> usize {
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
            if shard_of_part(middle, shards) < shard { low = middle + 1 } else { high = middle }
        }
        low
    };
    let parts = first(shard + 1) - first(shard);
    (all as u128 * u128::from(parts)).div_ceil(1 << PART_BITS) as usize
}
