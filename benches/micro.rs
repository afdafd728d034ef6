//! What a decision is made of, piece by piece: `make bench`, or `cargo bench -- lookup` for one of them.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "a bench"
)]

use std::hint::black_box;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use arc_swap::ArcSwapOption;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use opentelemetry_sdk::Resource;
use tonic::metadata::MetadataMap;
use weir::bucket::{Bucket, Hits, Limit};
use weir::clock::Clock;
use weir::clock::stopwatch;
use weir::decision::Source;
use weir::decision::{BucketKey, Charge, Mode, RuleId};
use weir::limiter::Limiter;
use weir::proto::{self, RateLimitDescriptor, RateLimitRequest};
use weir::rules::{Entry, RuleSet};
use weir::service::{Options, Service};
use weir::store::{KeySeed, LocalStore};
use weir::telemetry::Recorder;
use weir::telemetry::instrument::{Counter, Histogram, SECONDS};
use weir::telemetry::otlp::{Extras, Sender};
use weir::telemetry::settings::{Protocol, Sampling};
use weir::telemetry::tally::{Outcome, Tally};
use weir::telemetry::traces::Traces;

const NOW: u64 = 1_790_000_000_000_000;
const MINUTE: u64 = 60_000_000;

fn rules(text: &str) -> RuleSet {
    RuleSet::from_texts([("bench.yaml", text)], NOW).expect("good rules")
}

/// `count` rules of one level, each with its own value: a number between `before` and `after`.
fn flat_rules(count: usize, before: &str, after: &str) -> String {
    let mut text = "domain: api\ndescriptors:\n".to_owned();
    for n in 0..count {
        text.push_str(&format!(
            "  - {{ key: k, value: '{before}{n}{after}', rate_limit: {{ unit: minute, requests_per_unit: 60 }} }}\n"
        ));
    }
    text
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    for count in [1, 1_000, 100_000] {
        let middle = count / 2;
        for (name, before, after, value) in [
            ("exact", "v", "", format!("v{middle}")),
            ("wildcard", "v", "/*", format!("v{middle}/x")),
            ("middle", "*<", ">*", format!("some <{middle}> text")),
        ] {
            let set = rules(&flat_rules(count, before, after));
            let entry = [Entry { key: b"k", value: value.as_bytes() }];
            group.bench_function(BenchmarkId::new(name, count), |b| {
                let domain = set.domain("api").unwrap();
                b.iter(|| domain.find(black_box(&entry)).is_some());
            });
        }
    }
    for count in [1, 1_000, 100_000_u32] {
        let address = |n: u32| std::net::Ipv4Addr::from_bits(0x0a00_0000 + 4 * n);
        let mut text = "domain: api\ndescriptors:\n".to_owned();
        for n in 0..count {
            text.push_str(&format!("  - {{ key: k, cidr: {}/30, rate_limit: 60/minute }}\n", address(n)));
        }
        let set = rules(&text);
        let value = address(count / 2).to_string();
        let entry = [Entry { key: b"k", value: value.as_bytes() }];
        group.bench_function(BenchmarkId::new("cidr", count), |b| {
            let domain = set.domain("api").unwrap();
            b.iter(|| domain.find(black_box(&entry)).is_some());
        });
    }
    for depth in [1, 3, 6] {
        let mut text = String::new();
        for level in (0..depth).rev() {
            let limit =
                if level == depth - 1 { ", rate_limit: { unit: minute, requests_per_unit: 60 }" } else { "" };
            let below = if text.is_empty() { String::new() } else { format!(", descriptors: [{text}]") };
            text = format!("{{ key: k{level}{limit}{below} }}");
        }
        let set = rules(&format!("domain: api\ndescriptors: [{text}]\n"));
        let keys: Vec<String> = (0..depth).map(|level| format!("k{level}")).collect();
        let entries: Vec<Entry<'_>> =
            keys.iter().map(|key| Entry { key: key.as_bytes(), value: b"value" }).collect();
        group.bench_function(BenchmarkId::new("depth", depth), |b| {
            let domain = set.domain("api").unwrap();
            b.iter(|| domain.find(black_box(&entries)).is_some());
        });
    }
    group.finish();
}

fn load(c: &mut Criterion) {
    let mut group = c.benchmark_group("load");
    group.sample_size(10);
    let text = flat_rules(100_000, "v", "");
    group.bench_function("100000 rules", |b| b.iter_with_large_drop(|| rules(black_box(&text))));
    group.finish();
}

fn limit() -> Limit {
    Limit::new(NonZeroU32::new(1_000_000_000).unwrap(), NonZeroU64::new(MINUTE).unwrap())
}

fn bucket(c: &mut Criterion) {
    let limit = limit();
    c.bench_function("bucket/take", |b| {
        let (mut bucket, mut now) = (Bucket::FULL, NOW);
        b.iter(|| {
            now += 1;
            bucket.take(black_box(&limit), Hits::Take(1), now)
        });
    });
    c.bench_function("bucket/deny and promise", |b| {
        let limit = Limit::new(NonZeroU32::new(7).unwrap(), NonZeroU64::new(MINUTE).unwrap());
        let mut bucket = Bucket::FULL;
        _ = bucket.take(&limit, Hits::Take(7), NOW);
        b.iter(|| bucket.take(black_box(&limit), Hits::Take(3), NOW + 1));
    });
}

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

fn store(c: &mut Criterion) {
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
                b.iter_batched_ref(
                    store,
                    |store| {
                        let store = &*store;
                        std::thread::scope(|scope| {
                            for thread in 0..threads {
                                scope.spawn(move || {
                                    for n in 0..EACH {
                                        black_box(store.decide(&[charge((n * (thread + 1)) % keys)]));
                                    }
                                });
                            }
                        });
                    },
                    BatchSize::PerIteration,
                );
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

/// From a decoded request to its response: everything but the wire.
fn service(c: &mut Criterion) {
    let rules = rules(
        "domain: api\ndescriptors:\n  - { key: user, rate_limit: { unit: minute, requests_per_unit: 1000000000 } }\n",
    );
    let store = LocalStore::new(NonZeroUsize::new(1_000_000).unwrap(), Clock::system());
    let service = Service::new(
        Arc::new(ArcSwapOption::from_pointee(rules)),
        Arc::new(Limiter::in_memory(store, KeySeed::random().unwrap())),
        Options {
            max_descriptors: 64,
            shadow_mode: false,
            quota_mode: false,
            max_debt: 10.0,
            dynamic_metadata: false,
            near_limit: 0.8,
            ..Options::default()
        },
        Recorder::default(),
    );
    for descriptors in [1, 3, 10] {
        let descriptor = |n: usize| RateLimitDescriptor {
            entries: vec![proto::Entry { key: "user".into(), value: format!("user-{n}").into() }],
            ..RateLimitDescriptor::default()
        };
        let request = RateLimitRequest {
            domain: "api".into(),
            descriptors: (0..descriptors).map(descriptor).collect(),
            hits_addend: 0,
        };
        c.bench_function(&format!("service/descriptors {descriptors}"), |b| {
            b.iter(|| {
                pin!(service.answer(black_box(&request))).poll(&mut Context::from_waker(Waker::noop()))
            });
        });
    }
}

/// What recording a call costs: its parts, and whether it is traced.
fn metrics(c: &mut Criterion) {
    let (tally, histogram, counter) = (Tally::default(), Histogram::new(SECONDS), Counter::default());
    c.bench_function("metrics/a charge by rule", |b| {
        b.iter(|| tally.count(black_box(Source::Local), Outcome::Ok, 1));
    });
    c.bench_function("metrics/a call", |b| b.iter(|| counter.increment()));
    c.bench_function("metrics/a measurement", |b| b.iter(|| histogram.record(black_box(30_000))));
    c.bench_function("metrics/reading the clock twice", |b| b.iter(|| stopwatch().elapsed()));
    c.bench_function("metrics/all of a call with one charge", |b| {
        b.iter(|| {
            let start = stopwatch();
            tally.count(black_box(Source::Local), Outcome::Ok, 1);
            counter.increment();
            histogram.record_time(start.elapsed());
        });
    });
    let off: Option<Arc<Traces>> = black_box(None);
    let metadata = MetadataMap::new();
    c.bench_function("metrics/traces off", |b| {
        b.iter(|| off.as_ref().and_then(|traces| traces.call(black_box(&metadata))).is_some());
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    let sender = Sender::new("http://127.0.0.1:1", Protocol::Grpc, &Extras::default()).unwrap();
    let parent = Traces::new(Sampling::Parent, sender, Resource::builder_empty().build()).unwrap();
    c.bench_function("metrics/traces of traced callers, and this one is not", |b| {
        b.iter(|| parent.call(black_box(&metadata)).is_some());
    });
    let mut sampled = MetadataMap::new();
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    sampled.insert("traceparent", traceparent.parse().unwrap());
    c.bench_function("metrics/traces of traced callers, and this one is", |b| {
        b.iter(|| parent.call(black_box(&sampled)).map(|span| span.end("api", 1, Ok("ok"))));
    });
}

criterion_group!(benches, lookup, load, bucket, store, service, metrics);
criterion_main!(benches);
