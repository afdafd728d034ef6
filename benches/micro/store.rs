//! Buckets in memory.

use std::hint::black_box;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

use criterion::{BenchmarkId, Criterion, Throughput};
use weir::bucket::{Hits, Limit};
use weir::clock::Clock;
use weir::decision::{BucketKey, Charge, Mode, RuleId};
use weir::store::LocalStore;

use super::bucket::{MINUTE, limit};

/// A charge on the n-th bucket.
fn charge(n: u64) -> Charge {
    // Spread as a hash would.
    let key = u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    Charge {
        bucket: BucketKey(key),
        rule: RuleId(1),
        limit: limit(),
        hits: Hits::Take(1),
        mode: Mode::Enforced,
        on_redis_failure: None,
    }
}

pub fn store(c: &mut Criterion) {
    let mut group = c.benchmark_group("store");
    let store = || LocalStore::new(NonZeroUsize::new(1_000_000).unwrap(), Clock::system());
    for keys in [1_u64, 100_000] {
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("one charge, keys", keys), |b| {
            let (store, mut n) = (store(), 0);
            b.iter(|| {
                n += 1;
                store.decide(&[charge(n % keys)])
            });
        });
    }
    for charges in [3_u64, 10] {
        group.throughput(Throughput::Elements(charges));
        group.bench_function(BenchmarkId::new("one request, charges", charges), |b| {
            let (store, mut n) = (store(), 0);
            b.iter(|| {
                n += charges;
                let request: Vec<Charge> = (n..n + charges).map(|n| charge(n % 100_000)).collect();
                store.decide(&request)
            });
        });
    }
    for threads in [1_u64, 2, 4, 16] {
        const EACH: u64 = 20_000;
        group.throughput(Throughput::Elements(threads * EACH));
        for keys in [1, 100_000] {
            group.bench_function(BenchmarkId::new(format!("threads {threads}, keys"), keys), |b| {
                let store = store();
                // All buckets are there before.
                for n in 0..keys {
                    store.decide(&[charge(n)]);
                }
                let (store, mut round) = (&store, 0);
                b.iter(|| {
                    round += 1;
                    std::thread::scope(|scope| {
                        for thread in 0..threads {
                            // Each begins somewhere else, every time.
                            let begin = (round * threads + thread) * 7_919;
                            scope.spawn(move || {
                                for n in 0..EACH {
                                    black_box(store.decide(&[charge((begin + n) % keys)]));
                                }
                            });
                        }
                    });
                });
            });
        }
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("flood of new keys at a cap of 100000", |b| {
        let store = LocalStore::new(NonZeroUsize::new(100_000).unwrap(), Clock::system());
        let slow = Limit::new(NonZeroU32::new(1_000).unwrap(), NonZeroU64::new(60 * MINUTE).unwrap());
        let mut n = 0;
        b.iter(|| {
            n += 1;
            store.decide(&[Charge { limit: slow, ..charge(n) }])
        });
    });
    group.finish();
}
