//! What recording a call costs.

use std::hint::black_box;
use std::sync::Arc;

use criterion::Criterion;
use opentelemetry_sdk::Resource;
use tonic::metadata::MetadataMap;
use weir::clock::stopwatch;
use weir::decision::Source;
use weir::telemetry::instrument::{Counter, Histogram, SECONDS};
use weir::telemetry::otlp::{Extras, Sender};
use weir::telemetry::settings::{Protocol, Sampling};
use weir::telemetry::tally::{Outcome, Tally};
use weir::telemetry::traces::Traces;

/// Its parts, and whether it is traced.
pub fn metrics(c: &mut Criterion) {
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
