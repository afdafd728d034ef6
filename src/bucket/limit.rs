//! How much a limit admits, and by which algorithm.

use std::hash::{Hash, Hasher};
use std::num::{NonZeroU32, NonZeroU64};

use super::{calendar, tokens};
use crate::clock::Micros;

/// Sub-counters that a sliding window is divided into.
const SLICES: u64 = 8;

/// Counters that a sliding window keeps: those of a whole window, and the one that is being filled.
pub(super) const SLIDING_COUNTERS: usize = 9;

/// How many bursts a bucket may be in debt at most, where nothing else is said.
pub const MAX_DEBT: f64 = 10.0;

/// How what is used comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Continuously: at most the burst plus the rate × t over any interval t.
    TokenBucket,
    /// All at once, when a window of the calendar ends: at most so much in each window.
    FixedWindow(Calendar),
    /// An eighth of a window at a time, when it is a window old: at most so much over any interval of a window's length.
    ///
    /// What was used is counted in slices of an eighth of a window. One that is partly older than a window is counted
    /// whole, so what comes back does so up to an eighth of a window late, and never early.
    SlidingWindow,
}

/// Where fixed windows begin, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Calendar {
    /// At multiples of their length since the epoch: seconds, minutes, hours, days, and every other length of time.
    Epoch,
    /// With a week, on a Monday.
    Week,
    /// With a month, which has 28 to 31 days.
    Month,
    /// With a year, which has 365 or 366 days.
    Year,
}

/// The epoch was a Thursday.
const SINCE_MONDAY: Micros = 3 * calendar::DAY;

/// How fast a bucket refills and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Tokens per microsecond; of windows, on average.
    rate: f64,
    /// Tokens a full bucket holds; 0 only where nothing is ever admitted.
    burst: f64,
    /// Tokens that may be in use, debt included.
    most: f64,
    /// Tokens that a charge may have on a full bucket, as debt beyond the burst: more than that only in a share.
    largest: f64,
    /// The window that the rate was written in, in microseconds.
    window: Micros,
    /// When this limit took the place of another one; see [`Limit::since`].
    since: Micros,
    algorithm: Algorithm,
}

/// None of its numbers is negative, nor anything else that equals what has other bits.
impl Hash for Limit {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { rate, burst, most, largest, window, since, algorithm } = self;
        [rate, burst, most, largest].map(|number| number.to_bits()).hash(state);
        (window, since, algorithm).hash(state);
    }
}

impl Limit {
    /// A token bucket: `requests` every `window` microseconds, all of which may come at once.
    #[must_use]
    pub fn new(requests: NonZeroU32, window: NonZeroU64) -> Self {
        let requests = f64::from(requests.get());
        Self {
            rate: requests / tokens(window.get()),
            burst: requests,
            most: requests + requests * MAX_DEBT,
            largest: requests,
            window: window.get(),
            since: 0,
            algorithm: Algorithm::TokenBucket,
        }
    }

    /// `requests` in each window of the calendar; `window` is its length, or about that of a month or a year.
    #[must_use]
    pub fn fixed_window(requests: NonZeroU32, window: NonZeroU64, calendar: Calendar) -> Self {
        Self { algorithm: Algorithm::FixedWindow(calendar), ..Self::new(requests, window) }
    }

    /// `requests` over any interval of `window` microseconds.
    #[must_use]
    pub fn sliding_window(requests: NonZeroU32, window: NonZeroU64) -> Self {
        Self { algorithm: Algorithm::SlidingWindow, ..Self::new(requests, window) }
    }

    /// A limit that admits nothing: `requests_per_unit: 0`.
    #[must_use]
    pub fn blocked(window: NonZeroU64) -> Self {
        Self {
            rate: 0.0,
            burst: 0.0,
            most: 0.0,
            largest: 0.0,
            window: window.get(),
            since: 0,
            algorithm: Algorithm::TokenBucket,
        }
    }

    /// The same rate with room for `burst` tokens at once. A limit that admits nothing stays as it is, and so do windows,
    /// which have no burst of their own.
    #[must_use]
    pub fn with_burst(self, burst: NonZeroU32) -> Self {
        if self.rate == 0.0 || self.algorithm != Algorithm::TokenBucket {
            return self;
        }
        let burst = f64::from(burst.get());
        Self { burst, most: burst + burst * MAX_DEBT, largest: burst, ..self }
    }

    /// The same limit, whose debt is at most so many times the burst. From 0 to a thousand times.
    #[must_use]
    pub fn with_max_debt(self, bursts: f64) -> Self {
        Self { most: self.burst + self.burst * bursts.clamp(0.0, 1_000.0), ..self }
    }

    /// The same limit, in force since `moment`.
    ///
    /// A bucket that was last written under another rate drains at that one until `moment` and at this one after.
    /// For a limit that comes with each request, the moment is the request's own: pass [`Micros::MAX`].
    #[must_use]
    pub fn since(self, moment: Micros) -> Self {
        Self { since: moment, ..self }
    }

    /// One of so many equal shares of this limit: its burst, its rate and the debt that it allows, divided, but at least
    /// one whole token at once.
    ///
    /// A charge that fits the whole limit and not the share is admitted on a full bucket, as debt: otherwise what is
    /// admitted by one replica that holds all of a limit would never be by several that hold a share each.
    #[must_use]
    pub fn share(self, replicas: NonZeroU32) -> Self {
        if replicas == NonZeroU32::MIN || self.burst == 0.0 {
            return self;
        }
        let replicas = f64::from(replicas.get());
        let burst = (self.burst / replicas).max(1.0);
        let most = (burst + (self.most - self.burst) / replicas).max(self.largest);
        Self { rate: self.rate / replicas, burst, most, ..self }
    }

    /// The moment that this limit is in force since; see [`Limit::since`].
    #[must_use]
    pub fn in_force_since(&self) -> Micros {
        self.since
    }

    /// Tokens that a full bucket holds; of windows, how many each admits.
    #[must_use]
    pub fn burst(&self) -> f64 {
        self.burst
    }

    /// Tokens that may be in use at most, debt included.
    #[must_use]
    pub fn most(&self) -> f64 {
        self.most
    }

    /// Tokens that a charge to a full bucket may have at most.
    #[must_use]
    pub fn largest(&self) -> f64 {
        self.largest
    }

    /// Tokens that flow back each microsecond; of windows, on average.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// The window that the rate was written in, in microseconds.
    #[must_use]
    pub fn window(&self) -> Micros {
        self.window
    }

    /// How what is used comes back.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Counters that a bucket of windows keeps.
    pub(super) fn counters(&self) -> usize {
        if self.algorithm == Algorithm::SlidingWindow { SLIDING_COUNTERS } else { 1 }
    }

    /// Which stretch of time is counted together with `now`: its first moment, and its length.
    pub(super) fn slot(&self, now: Micros) -> (Micros, Micros) {
        match self.algorithm {
            Algorithm::FixedWindow(Calendar::Month) => calendar::month(now),
            Algorithm::FixedWindow(Calendar::Year) => calendar::year(now),
            _ => {
                let (length, before_epoch) = self.slots();
                (now.saturating_sub((now + before_epoch) % length), length)
            }
        }
    }

    /// How long the stretches are that are counted together, and how long before the epoch one of them began. Not of
    /// months and years, whose lengths differ.
    #[must_use]
    pub fn slots(&self) -> (Micros, Micros) {
        match self.algorithm {
            Algorithm::SlidingWindow => (self.window.div_ceil(SLICES), 0),
            Algorithm::FixedWindow(Calendar::Week) => (self.window, SINCE_MONDAY),
            _ => (self.window, 0),
        }
    }
}
