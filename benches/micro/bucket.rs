//! The arithmetic of one bucket.

use std::hint::black_box;
use std::num::{NonZeroU32, NonZeroU64};

use criterion::Criterion;
use weir::bucket::{Bucket, Calendar, Hits, Limit};

use super::NOW;

pub const MINUTE: u64 = 60_000_000;

/// A limit that admits everything here.
pub fn limit() -> Limit {
    Limit::new(NonZeroU32::new(1_000_000_000).unwrap(), NonZeroU64::new(MINUTE).unwrap())
}

pub fn bucket(c: &mut Criterion) {
    let (many, minute) = (NonZeroU32::new(1_000_000_000).unwrap(), NonZeroU64::new(MINUTE).unwrap());
    for (name, limit) in [
        ("token bucket", limit()),
        ("fixed window", Limit::fixed_window(many, minute, Calendar::Epoch)),
        ("sliding window", Limit::sliding_window(many, minute)),
    ] {
        c.bench_function(&format!("bucket/take, {name}"), |b| {
            let (mut bucket, mut now) = (Bucket::FULL, NOW);
            b.iter(|| {
                now += 1;
                bucket.take(black_box(&limit), Hits::Take(1), now)
            });
        });
    }
    let few = NonZeroU32::new(7).unwrap();
    for (name, limit) in [
        ("token bucket", Limit::new(few, minute)),
        ("fixed window", Limit::fixed_window(few, minute, Calendar::Epoch)),
        ("sliding window", Limit::sliding_window(few, minute)),
    ] {
        c.bench_function(&format!("bucket/deny and promise, {name}"), |b| {
            let mut bucket = Bucket::FULL;
            _ = bucket.take(&limit, Hits::Take(7), NOW);
            b.iter(|| bucket.take(black_box(&limit), Hits::Take(3), NOW + 1));
        });
    }
}
