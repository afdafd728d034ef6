//! Requests from their bytes to those of their answers.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use arc_swap::ArcSwapOption;
use criterion::Criterion;
use prost::Message as _;
use weir::clock::Clock;
use weir::limiter::Limiter;
use weir::proto::{self, RateLimitDescriptor, RateLimitRequest, RateLimitResponse};
use weir::service::{Options, Service};
use weir::store::{KeySeed, LocalStore};
use weir::telemetry::Recorder;

use super::rules;

/// The numbers of descriptors that requests have here.
const DESCRIPTORS: [usize; 3] = [1, 3, 10];

fn service() -> Service {
    let rules = rules(
        "domain: api\ndescriptors:\n  - { key: user, rate_limit: { unit: minute, requests_per_unit: 1000000000 } }\n",
    );
    let store = LocalStore::new(NonZeroUsize::new(1_000_000).unwrap(), Clock::system());
    Service::new(
        Arc::new(ArcSwapOption::from_pointee(rules)),
        Arc::new(Limiter::in_memory(store, KeySeed::random().unwrap())),
        Options::default(),
        Recorder::default(),
    )
}

fn request(descriptors: usize) -> RateLimitRequest {
    let descriptor = |n: usize| RateLimitDescriptor {
        entries: vec![proto::Entry { key: "user".into(), value: format!("user-{n}").into() }],
        ..RateLimitDescriptor::default()
    };
    RateLimitRequest {
        domain: "api".into(),
        descriptors: (0..descriptors).map(descriptor).collect(),
        hits_addend: 0,
    }
}

/// From a decoded request to its response: everything but the wire.
pub fn answer(c: &mut Criterion) {
    let service = service();
    for descriptors in DESCRIPTORS {
        let request = request(descriptors);
        c.bench_function(&format!("service/descriptors {descriptors}"), |b| {
            b.iter(|| {
                pin!(service.answer(black_box(&request))).poll(&mut Context::from_waker(Waker::noop()))
            });
        });
    }
}

/// Messages, read and written.
pub fn encoding(c: &mut Criterion) {
    let service = service();
    for descriptors in DESCRIPTORS {
        let request = request(descriptors);
        let bytes = bytes::Bytes::from(request.encode_to_vec());
        c.bench_function(&format!("encoding/read a request, descriptors {descriptors}"), |b| {
            b.iter(|| RateLimitRequest::decode(black_box(bytes.clone())).unwrap());
        });
        let Poll::Ready(Ok(response)) =
            pin!(service.answer(&request)).poll(&mut Context::from_waker(Waker::noop()))
        else {
            panic!("what is in memory is decided at once");
        };
        let response: RateLimitResponse = response;
        let mut buffer = Vec::with_capacity(1 << 16);
        c.bench_function(&format!("encoding/write an answer, descriptors {descriptors}"), |b| {
            b.iter(|| {
                buffer.clear();
                black_box(&response).encode(&mut buffer).unwrap();
            });
        });
    }
}
