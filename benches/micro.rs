//! What a decision is made of, piece by piece: `make bench-micro`, or `cargo bench --bench micro -- lookup` for one of them.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a bench"
)]

use criterion::{criterion_group, criterion_main};
use weir::rules::RuleSet;

mod micro {
    pub mod bucket;
    pub mod lookup;
    pub mod metrics;
    pub mod script;
    pub mod service;
    pub mod store;

    pub use super::{NOW, rules};
}

use micro::{bucket, lookup, metrics, script, service, store};

pub const NOW: u64 = 1_790_000_000_000_000;

pub fn rules(text: &str) -> RuleSet {
    RuleSet::from_texts([("bench.yaml", text)], NOW).expect("good rules")
}

criterion_group!(
    benches,
    lookup::lookup,
    lookup::load,
    bucket::bucket,
    store::store,
    service::answer,
    service::encoding,
    script::script,
    metrics::metrics
);
criterion_main!(benches);
