//! What is counted and measured with: counters and histograms that cost a few nanoseconds.
//!
//! The OpenTelemetry SDK for Rust has instruments as well. It takes a lock for each measurement, knows no exemplars and
//! no histogram that is read when it is asked for. So the data are kept here, in the shape of OpenTelemetry's data model,
//! and become its protocol in [`otlp`](super::otlp) and Prometheus's text in [`prometheus`](super::prometheus). Gauges
//! are told by whoever owns what they show, when somebody asks.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Each thread counts in one of so many places, so that cores seldom write to the same one.
pub(super) const SHARDS: usize = 16;

/// The place of this thread.
#[inline]
pub(super) fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    SHARD.try_with(|shard| *shard).unwrap_or_default()
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Cell(AtomicU64);

/// Counts what happens.
#[derive(Debug, Default)]
pub struct Counter([Cell; SHARDS]);

impl Counter {
    /// Counts one.
    #[inline]
    pub fn increment(&self) {
        self.add(1);
    }

    /// Counts so many.
    #[inline]
    pub fn add(&self, count: u64) {
        if let Some(Cell(cell)) = self.0.get(shard()) {
            cell.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// What has been counted.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.iter().fold(0, |sum, Cell(cell)| sum.wrapping_add(cell.load(Ordering::Relaxed)))
    }
}

/// A trace that a measurement was made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRef {
    /// 16 bytes.
    pub trace: u128,
    /// 8 bytes.
    pub span: u64,
}

/// The last measurement of a bucket that was made in a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    /// What was measured, in the unit that is shown.
    pub value: f64,
    /// Where.
    pub trace: TraceRef,
    /// When, in microseconds since the epoch.
    pub at: crate::clock::Micros,
}

/// What a histogram measures, and where one of its buckets ends and the next begins.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Upper bounds of the buckets, each inclusive, as they are measured; above them is one more bucket.
    bounds: &'static [u64],
    /// What one of what is measured is in the unit that is shown.
    one: f64,
}

/// Seconds, measured in nanoseconds: a call's time, from 5 µs to 1 s. Envoy waits 20 ms for an answer if not told else.
pub const SECONDS: Scale = Scale {
    bounds: &[
        5_000,
        10_000,
        25_000,
        50_000,
        100_000,
        250_000,
        500_000,
        1_000_000,
        2_500_000,
        5_000_000,
        10_000_000,
        20_000_000,
        50_000_000,
        100_000_000,
        1_000_000_000,
    ],
    one: 1e-9,
};

/// How many there are of something.
pub const COUNT: Scale = Scale { bounds: &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024], one: 1.0 };

/// More buckets than any scale has.
const BUCKETS: usize = 16;

/// How often what was how much.
#[derive(Debug)]
pub struct Histogram {
    scale: Scale,
    shards: [Shard; SHARDS],
    exemplars: Mutex<[Option<Exemplar>; BUCKETS]>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

/// What a histogram says at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Upper bounds of all buckets but the last, in the unit that is shown.
    pub bounds: Vec<f64>,
    /// How many measurements are in each bucket: one more than there are bounds.
    pub counts: Vec<u64>,
    /// Of all measurements together, in the unit that is shown.
    pub sum: f64,
    /// Of each bucket.
    pub exemplars: Vec<Option<Exemplar>>,
}

impl Distribution {
    /// How many measurements there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub fn new(scale: Scale) -> Self {
        Self { scale, shards: Default::default(), exemplars: Mutex::default() }
    }

    /// Counts a measurement.
    #[inline]
    pub fn record(&self, value: u64) {
        self.record_at(self.bucket(value), value);
    }

    /// Counts a length of time.
    #[inline]
    pub fn record_time(&self, time: Duration) {
        self.record(nanos(time));
    }

    /// Counts a length of time, and keeps it as its bucket's example, at the moment `at`.
    pub fn record_time_in(&self, time: Duration, trace: TraceRef, at: crate::clock::Micros) {
        let value = nanos(time);
        let bucket = self.bucket(value);
        self.record_at(bucket, value);
        // One example is as good as another: nobody waits to give it.
        if let Ok(mut exemplars) = self.exemplars.try_lock()
            && let Some(exemplar) = exemplars.get_mut(bucket)
        {
            *exemplar = Some(Exemplar { value: self.shown(value), trace, at });
        }
    }

    /// What has been measured.
    #[must_use]
    pub fn distribution(&self) -> Distribution {
        let buckets = self.scale.bounds.len() + 1;
        let sum_up = |of: fn(&Shard, usize) -> u64, bucket| {
            self.shards.iter().fold(0, |sum: u64, shard| sum.wrapping_add(of(shard, bucket)))
        };
        let count = |shard: &Shard, bucket: usize| {
            shard.buckets.get(bucket).map_or(0, |count| count.load(Ordering::Relaxed))
        };
        let exemplars = *self.exemplars.lock().unwrap_or_else(PoisonError::into_inner);
        Distribution {
            bounds: self.scale.bounds.iter().map(|bound| self.shown(*bound)).collect(),
            counts: (0..buckets).map(|bucket| sum_up(count, bucket)).collect(),
            sum: self.shown(sum_up(|shard, _| shard.sum.load(Ordering::Relaxed), 0)),
            exemplars: exemplars.into_iter().take(buckets).collect(),
        }
    }

    fn bucket(&self, value: u64) -> usize {
        self.scale.bounds.iter().take_while(|bound| **bound < value).count()
    }

    #[inline]
    fn record_at(&self, bucket: usize, value: u64) {
        let Some(shard) = self.shards.get(shard()) else { return };
        if let Some(count) = shard.buckets.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
            shard.sum.fetch_add(value, Ordering::Relaxed);
        }
    }

    /// Divided, not multiplied, where that comes to the shorter number: 0.00025, not 0.00025000000000000006.
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    fn shown(&self, value: u64) -> f64 {
        if self.scale.one < 1.0 { value as f64 / (1.0 / self.scale.one).round() } else { value as f64 }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_own_bucket_and_what_is_above_all_to_the_last() {
        let histogram = Histogram::new(COUNT);
        [0, 1, 2, 3, 1_024, 1_025, 1_000_000].into_iter().for_each(|value| histogram.record(value));
        let told = histogram.distribution();
        assert_eq!(told.bounds.len() + 1, told.counts.len());
        assert_eq!(told.counts, [2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!((told.count(), told.sum), (7, 1_002_055.0));
    }

    #[test]
    fn every_scale_ascends_and_has_room() {
        for scale in [SECONDS, COUNT] {
            assert!(scale.bounds.is_sorted() && scale.bounds.len() < BUCKETS);
        }
    }

    #[test]
    fn times_are_shown_in_seconds_without_the_dust_of_doubles() {
        let histogram = Histogram::new(SECONDS);
        histogram.record_time(Duration::from_micros(300));
        let told = histogram.distribution();
        let bounds: Vec<String> = told.bounds.iter().map(f64::to_string).collect();
        assert_eq!(bounds[..6], ["0.000005", "0.00001", "0.000025", "0.00005", "0.0001", "0.00025"]);
        assert_eq!((told.counts[6], told.sum), (1, 0.0003));
    }

    #[test]
    fn the_last_measurement_of_a_trace_is_its_buckets_example() {
        let histogram = Histogram::new(SECONDS);
        let trace = |trace| TraceRef { trace, span: 1 };
        histogram.record_time_in(Duration::from_micros(7), trace(1), 10);
        histogram.record_time_in(Duration::from_micros(8), trace(2), 20);
        let told = histogram.distribution();
        assert_eq!(told.exemplars[1], Some(Exemplar { value: 0.000008, trace: trace(2), at: 20 }));
        assert_eq!(told.exemplars.iter().flatten().count(), 1);
        assert_eq!(told.count(), 2);
    }

    #[test]
    fn no_count_of_many_threads_is_lost() {
        let (counter, histogram) = (Counter::default(), Histogram::new(COUNT));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..10_000).for_each(|n| (counter.increment(), histogram.record(n)).0));
            }
        });
        assert_eq!((counter.value(), histogram.distribution().count()), (80_000, 80_000));
    }
}
