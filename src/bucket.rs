//! Token-bucket arithmetic: pure functions of (state, limit, hits, now).
//!
//! A bucket is kept as what is *used* of it: `available = burst − max(0, used − rate × (now − at))`. That says the same
//! as the textbook's rising level, and is the better thing to keep: a change of limit keeps what was used without
//! knowing the old burst, and a bucket that is full again needs no state at all, so it may be forgotten at any time.
//!
//! Nothing here reads a clock, locks or allocates. Moments are microseconds since the epoch, amounts are tokens as
//! IEEE doubles: Redis's Lua computes in doubles too, and a twin of these expressions must come to the same bits.
//!
//! ```
//! use std::num::{NonZeroU32, NonZeroU64};
//! use weir::bucket::{Bucket, Hits, Limit, Outcome, Retry};
//!
//! // 60 a minute: one token a second, and up to 60 at once.
//! let limit = Limit::new(NonZeroU32::new(60).unwrap(), NonZeroU64::new(60_000_000).unwrap());
//! let now = 1_000_000_000_000;
//!
//! let mut bucket = Bucket::FULL;
//! assert_eq!(bucket.take(&limit, Hits::Take(60), now), Outcome::Fits);
//! assert_eq!(bucket.remaining(&limit, now), 0);
//!
//! // Empty: the next one fits in exactly a second, and sixty-one never will.
//! assert_eq!(bucket.take(&limit, Hits::Take(1), now), Outcome::Over(Retry::In(1_000_000)));
//! assert_eq!(bucket.take(&limit, Hits::Take(61), now), Outcome::Over(Retry::Never));
//! assert_eq!(bucket.take(&limit, Hits::Take(1), now + 1_000_000), Outcome::Fits);
//! ```

use std::num::{NonZeroU32, NonZeroU64};

use crate::clock::Micros;

/// The last moment that is told as one: 2⁵³ µs, in the year 2255. What lies beyond is told as this.
///
/// Up to here a moment is exact as a double.
pub const HORIZON: Micros = 1 << 53;

/// How fast a bucket refills and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Tokens per microsecond.
    rate: f64,
    /// Tokens a full bucket holds; 0 only where nothing is ever admitted.
    burst: f64,
    /// The window that the rate was written in, in microseconds.
    window: Micros,
    /// When this limit took the place of another one; see [`Limit::since`].
    since: Micros,
}

impl Limit {
    /// `requests` every `window` microseconds, all of which may come at once.
    #[must_use]
    pub fn new(requests: NonZeroU32, window: NonZeroU64) -> Self {
        let requests = f64::from(requests.get());
        Self { rate: requests / tokens(window.get()), burst: requests, window: window.get(), since: 0 }
    }

    /// A limit that admits nothing: `requests_per_unit: 0`.
    #[must_use]
    pub fn blocked(window: NonZeroU64) -> Self {
        Self { rate: 0.0, burst: 0.0, window: window.get(), since: 0 }
    }

    /// The same rate with room for `burst` tokens at once. A limit that admits nothing stays as it is.
    #[must_use]
    pub fn with_burst(self, burst: NonZeroU32) -> Self {
        if self.rate == 0.0 { self } else { Self { burst: f64::from(burst.get()), ..self } }
    }

    /// The same limit, in force since `moment`.
    ///
    /// A bucket that was last written under another rate drains at that one until `moment` and at this one after.
    /// For a limit that comes with each request, the moment is the request's own: pass [`Micros::MAX`].
    #[must_use]
    pub fn since(self, moment: Micros) -> Self {
        Self { since: moment, ..self }
    }

    /// The moment that this limit is in force since; see [`Limit::since`].
    #[must_use]
    pub fn in_force_since(&self) -> Micros {
        self.since
    }

    /// Tokens that a full bucket holds.
    #[must_use]
    pub fn burst(&self) -> f64 {
        self.burst
    }

    /// Tokens that flow back each microsecond.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// The window that the rate was written in, in microseconds.
    #[must_use]
    pub fn window(&self) -> Micros {
        self.window
    }
}

/// What a request wants of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hits {
    /// Takes so many tokens, or none of them.
    Take(u64),
    /// Takes nothing, and is over when not one whole token is left.
    Peek,
    /// Gives tokens back, up to a full bucket. Never over.
    GiveBack(u64),
}

/// Whether hits fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is room.
    Fits,
    /// There is not; the bucket is as it was.
    Over(Retry),
}

/// When hits that are over would fit, if nobody else came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// In so many microseconds: then they fit, and one microsecond earlier they do not.
    In(Micros),
    /// Never: they are more than the bucket can hold.
    Never,
}

/// What is kept of one bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// Tokens in use at `at`.
    used: f64,
    /// The moment that `used` was true at.
    at: Micros,
    /// Tokens per microsecond that flowed back when this was written.
    rate: f64,
}

impl Bucket {
    /// A bucket that nobody has taken from; equal to one that is not there.
    pub const FULL: Self = Self { used: 0.0, at: 0, rate: 0.0 };

    /// A bucket with `used` tokens in use at `at`, written under `rate` tokens per microsecond.
    #[must_use]
    pub fn from_parts(used: f64, at: Micros, rate: f64) -> Self {
        Self { used, at, rate }
    }

    /// Tokens in use, the moment that this was true at, and tokens per microsecond that it was written under.
    #[must_use]
    pub fn parts(&self) -> (f64, Micros, f64) {
        (self.used, self.at, self.rate)
    }

    /// Takes `hits` if they fit, gives them back, or looks.
    ///
    /// When they do not fit nothing is taken, and the bucket is [settled](Self::settle), so that the promise holds.
    #[must_use = "whether the hits fit is the answer"]
    pub fn take(&mut self, limit: &Limit, hits: Hits, now: Micros) -> Outcome {
        let used = self.used_at(limit, now);
        let need = match hits {
            Hits::Take(hits) => tokens(hits),
            Hits::Peek => 1.0,
            Hits::GiveBack(hits) => {
                *self = Self { used: (used - tokens(hits)).max(0.0), at: now, rate: limit.rate };
                return Outcome::Fits;
            }
        };
        if used + need <= limit.burst {
            if hits != Hits::Peek {
                *self = Self { used: used + need, at: now, rate: limit.rate };
            }
            return Outcome::Fits;
        }
        self.settle(limit, now);
        if need > limit.burst {
            return Outcome::Over(Retry::Never);
        }
        let estimate = now.saturating_add(micros((used + need - limit.burst) / limit.rate));
        let fits = first_moment(now, estimate, |then| self.used_at(limit, then) + need <= limit.burst);
        Outcome::Over(Retry::In(fits - now))
    }

    /// Writes down what a denial must not leave unsaid: a clock that stepped back, another rate, a burst that shrank.
    pub fn settle(&mut self, limit: &Limit, now: Micros) {
        let stale = now < self.at || self.rate != limit.rate || self.used > limit.burst;
        let used = self.used_at(limit, now);
        if stale && used > 0.0 {
            *self = Self { used, at: now, rate: limit.rate };
        }
    }

    /// Whole tokens left.
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the burst, a u32"
    )]
    pub fn remaining(&self, limit: &Limit, now: Micros) -> u32 {
        (limit.burst - self.used_at(limit, now)).max(0.0) as u32
    }

    /// Microseconds until the bucket is full, if nobody else came.
    #[must_use]
    pub fn full_in(&self, limit: &Limit, now: Micros) -> Micros {
        let used = self.used_at(limit, now);
        if used == 0.0 {
            return 0;
        }
        let estimate = now.saturating_add(micros(used / limit.rate));
        first_moment(now, estimate, |then| self.used_at(limit, then) == 0.0) - now
    }

    /// About when the bucket is full, at the rate that it was written under. A full bucket may be forgotten.
    #[must_use]
    pub fn full_at(&self) -> Micros {
        if self.used == 0.0 { 0 } else { self.at.saturating_add(micros(self.used / self.rate)).min(HORIZON) }
    }

    /// About when a bucket of `burst` tokens has a whole one left, at the rate that it was written under.
    #[must_use]
    pub fn token_at(&self, burst: f64) -> Micros {
        let excess = self.used + 1.0 - burst;
        if excess <= 0.0 { 0 } else { self.at.saturating_add(micros(excess / self.rate)).min(HORIZON) }
    }

    /// Tokens in use at `now`: at the old rate until the limit changed, then never above the new burst, at the new rate.
    ///
    /// Before `at` nothing drains: the clock has stepped back, and nobody can tell how far.
    #[inline]
    fn used_at(&self, limit: &Limit, now: Micros) -> f64 {
        if now <= self.at {
            return self.used.min(limit.burst);
        }
        let change = limit.since.clamp(self.at, now);
        let at_change = (self.used - self.rate * tokens(change - self.at)).max(0.0).min(limit.burst);
        (at_change - limit.rate * tokens(now - change)).max(0.0)
    }
}

/// The first moment after `now`, and not past the horizon, at which `holds`.
///
/// `holds` is false at `now` and stays true once it is. The estimate is at most a few roundings off, but where tokens
/// flow slowly into a bucket of billions one rounding lasts minutes: so the search doubles its stride, then halves it.
fn first_moment(now: Micros, estimate: Micros, holds: impl Fn(Micros) -> bool) -> Micros {
    let (mut before, mut after) = (now, estimate.clamp(now + 1, HORIZON.max(now + 1)));
    let mut stride = 1;
    if holds(after) {
        while after - before > 1 {
            let probe = after.saturating_sub(stride).max(before);
            if probe == before || !holds(probe) {
                before = probe;
                break;
            }
            after = probe;
            stride *= 2;
        }
    } else {
        before = after;
        loop {
            if before >= HORIZON {
                return before;
            }
            after = before.saturating_add(stride).min(HORIZON);
            if holds(after) {
                break;
            }
            before = after;
            stride *= 2;
        }
    }
    while after - before > 1 {
        let middle = before + (after - before) / 2;
        if holds(middle) {
            after = middle;
        } else {
            before = middle;
        }
    }
    after
}

/// Tokens, or microseconds, as a double. Exact up to 2⁵³; beyond, a charge fits no bucket anyway.
#[inline]
#[allow(clippy::cast_precision_loss, reason = "beyond 2⁵³ the exact figure makes no difference")]
fn tokens(count: u64) -> f64 {
    count as f64
}

/// A length of time rounded up to whole microseconds; what is too long for a `u64` is `u64::MAX`.
#[inline]
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, which is what is wanted"
)]
fn micros(length: f64) -> Micros {
    length.ceil() as Micros
}

#[cfg(test)]
mod tests;
