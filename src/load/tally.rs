//! What became of calls, and how long they took.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tonic::Code;

use super::answer::Verdict;

/// Why a call got no answer that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// There was no connection, and none was to be had.
    Unreachable,
    /// The connection ended under it.
    Lost,
    /// The server ended the call alone, for a reason of HTTP/2's (RFC 9113, section 7).
    Reset(u32),
    /// HTTP had another status than 200.
    Http(u16),
    /// gRPC had another status than 0.
    Grpc(i32),
    /// The answer was none of this protocol.
    Unreadable,
    /// It was still waiting when the load was given up.
    Unanswered,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => f.write_str("no connection"),
            Self::Lost => f.write_str("connection lost"),
            Self::Reset(reason) => write!(f, "call reset, reason {reason}"),
            Self::Http(status) => write!(f, "HTTP status {status}"),
            Self::Grpc(code) => write!(f, "gRPC status {code}: {}", Code::from(*code).description()),
            Self::Unreadable => f.write_str("unreadable answer"),
            Self::Unanswered => f.write_str("no answer before the end"),
        }
    }
}

/// What became of calls, and how long they took.
#[derive(Debug)]
pub(crate) struct Tally {
    ok: u64,
    /// Of those that were let through.
    unlimited: u64,
    over: u64,
    failures: BTreeMap<Failure, u64>,
    /// In nanoseconds, of all calls: also of those that failed.
    latencies: Histogram<u64>,
    last_answer: Option<Instant>,
}

impl Default for Tally {
    #[allow(clippy::expect_used, reason = "bounds that are written here, and tested")]
    fn default() -> Self {
        /// A day.
        const LONGEST: u64 = 86_400_000_000_000;
        const DIGITS: u8 = 3;

        let latencies = Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("the bounds are possible");
        Self { ok: 0, unlimited: 0, over: 0, failures: BTreeMap::new(), latencies, last_answer: None }
    }
}

impl Tally {
    /// Counts a call that was answered or failed `now`, and was due at `due`.
    pub(super) fn count(&mut self, result: Result<Verdict, Failure>, due: Instant, now: Instant) {
        match result {
            Ok(Verdict::Ok) => self.ok += 1,
            Ok(Verdict::Unlimited) => {
                self.ok += 1;
                self.unlimited += 1;
            }
            Ok(Verdict::Over) => self.over += 1,
            Err(failure) => *self.failures.entry(failure).or_default() += 1,
        }
        if result.is_ok() {
            self.last_answer = Some(now);
        }
        let nanos = now.saturating_duration_since(due).as_nanos();
        self.latencies.saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX));
    }

    /// Adds what another one has.
    pub(super) fn add(&mut self, other: &Self) {
        self.ok += other.ok;
        self.unlimited += other.unlimited;
        self.over += other.over;
        for (failure, count) in &other.failures {
            *self.failures.entry(*failure).or_default() += count;
        }
        // They have the same bounds.
        _ = self.latencies.add(&other.latencies);
        self.last_answer = self.last_answer.max(other.last_answer);
    }

    /// Begins anew.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Calls that were let through.
    pub(crate) fn ok(&self) -> u64 {
        self.ok
    }

    /// Those of them that met no limit, as far as the server tells.
    pub(crate) fn unlimited(&self) -> u64 {
        self.unlimited
    }

    /// Calls that were denied.
    pub(crate) fn over(&self) -> u64 {
        self.over
    }

    /// Calls that were answered.
    pub(crate) fn answered(&self) -> u64 {
        self.ok + self.over
    }

    /// Calls that were not.
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Why they were not.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (Failure, u64)> {
        self.failures.iter().map(|(failure, count)| (*failure, *count))
    }

    /// The latency that so many percent of the calls did not exceed.
    pub(crate) fn percentile(&self, percent: f64) -> Duration {
        Duration::from_nanos(self.latencies.value_at_quantile(percent / 100.0))
    }

    /// The longest one.
    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.latencies.max())
    }

    /// The mean one.
    pub(crate) fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.latencies.mean() / 1e9)
    }

    pub(super) fn last_answer(&self) -> Option<Instant> {
        self.last_answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn calls_are_counted_by_what_became_of_them_and_latencies_to_a_thousandth() {
        let due = clock::stopwatch();
        let (mut tally, mut other) = (Tally::default(), Tally::default());
        for micros in 1..=1_000 {
            let passed = if micros <= 100 { Verdict::Unlimited } else { Verdict::Ok };
            tally.count(Ok(passed), due, due + Duration::from_micros(micros));
            other.count(Ok(Verdict::Over), due, due + Duration::from_micros(1_000 + micros));
        }
        tally.count(Err(Failure::Lost), due, due + Duration::from_secs(3));
        other.add(&tally);
        let mut tally = other;
        assert_eq!((tally.ok(), tally.over(), tally.answered(), tally.failed()), (1_000, 1_000, 2_000, 1));
        assert_eq!(tally.unlimited(), 100);
        assert_eq!(tally.failures().collect::<Vec<_>>(), [(Failure::Lost, 1)]);
        let near = |percent, expected: f64| {
            let is = tally.percentile(percent).as_secs_f64() * 1e6;
            assert!((is / expected - 1.0).abs() < 0.002, "{percent}: {is}, not {expected}");
        };
        near(50.0, 1_001.0);
        near(90.0, 1_801.0);
        near(99.99, 3e6);
        assert!(tally.max() >= Duration::from_secs(3));
        assert_eq!(tally.last_answer(), Some(due + Duration::from_millis(2)), "failures are no answers");
        tally.clear();
        assert_eq!((tally.answered(), tally.failed(), tally.max()), (0, 0, Duration::ZERO));
    }

    #[test]
    fn failures_are_told_in_words() {
        for (failure, text) in [
            (Failure::Grpc(14), "gRPC status 14: The service is currently unavailable"),
            (Failure::Reset(7), "call reset, reason 7"),
            (Failure::Http(404), "HTTP status 404"),
        ] {
            assert_eq!(failure.to_string(), text);
        }
    }
}
