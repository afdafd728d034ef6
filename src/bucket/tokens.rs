//! The state of a token bucket, as it is computed with and as it is kept.

use std::num::NonZeroU64;

use super::{HORIZON, Limit, micros, tokens};
use crate::clock::Micros;

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tokens {
    /// Tokens in use at `at`.
    pub(super) used: f64,
    /// The moment that `used` was true at.
    pub(super) at: Micros,
    /// Tokens per microsecond that flowed back when this was written.
    pub(super) rate: f64,
    /// Tokens that a full bucket held when this was written; infinite when nobody knows, who then owes nothing either.
    pub(super) burst: f64,
}

/// A token bucket that owes nothing, without its burst. Under a limit of any burst it reads the same: what is used is not
/// above the old one, so that only the limit's bounds it. What is left of the burst is how much was missing to a whole
/// token, which is at most one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Packed {
    used: f64,
    rate: f64,
    /// The moment, and above its bits what was missing to a whole token, in parts of [`WHOLE`] rounded up. The moment is
    /// never 0, by which the two kinds of state are told apart without more room.
    at: NonZeroU64,
}

/// Bits of a moment up to the horizon.
const MOMENT: u32 = 54;

/// A whole token, in the bits above.
const WHOLE: u64 = (1 << (u64::BITS - MOMENT)) - 1;

impl Tokens {
    /// Whether more is in use than there is.
    #[inline]
    pub(super) fn is_debt(&self) -> bool {
        self.used > self.burst
    }

    /// Tokens that have to flow back until there is a whole one.
    #[inline]
    pub(super) fn missing(&self) -> f64 {
        self.used + 1.0 - self.burst
    }

    /// Tokens in use at `now`: at the old rate until the limit changed, then never above the new burst, at the new rate.
    ///
    /// Before `at` nothing drains: the clock has stepped back, and nobody can tell how far.
    #[inline]
    pub(super) fn used_at(&self, limit: &Limit, now: Micros) -> f64 {
        let (at, most) = (self.at, self.most(limit));
        if now <= at {
            return self.used.min(most);
        }
        let change = limit.in_force_since().clamp(at, now);
        let at_change = (self.used - self.rate * tokens(change - at)).max(0.0).min(most);
        (at_change - limit.rate() * tokens(now - change)).max(0.0)
    }

    /// Tokens that may be in use: a debt is owed under the limit that it was made under.
    #[inline]
    pub(super) fn most(&self, limit: &Limit) -> f64 {
        if self.burst == limit.burst() && self.rate == limit.rate() { limit.most() } else { limit.burst() }
    }

    /// About when so many tokens have flowed back; 0 if they always had.
    pub(super) fn drained_by(&self, tokens: f64) -> Micros {
        if tokens <= 0.0 { 0 } else { self.at.saturating_add(micros(tokens / self.rate)).min(HORIZON) }
    }
}

impl Packed {
    /// Of a bucket that is not there.
    pub(super) const FULL: Self = Self { used: 0.0, rate: 0.0, at: NonZeroU64::MIN };

    /// Of one that owes nothing.
    #[inline]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to the whole")]
    pub(super) fn new(state: Tokens) -> Self {
        let missing = (state.missing().clamp(0.0, 1.0) * tokens(WHOLE)).ceil() as u64;
        let at = NonZeroU64::new(state.at.min(HORIZON)).unwrap_or(NonZeroU64::MIN);
        Self { used: state.used, rate: state.rate, at: at | (missing << MOMENT) }
    }

    #[inline]
    pub(super) fn unpacked(self) -> Tokens {
        let at = self.at.get() & ((1 << MOMENT) - 1);
        Tokens { used: self.used, at, rate: self.rate, burst: f64::INFINITY }
    }

    /// Tokens that have to flow back until there is a whole one.
    #[inline]
    pub(super) fn missing(self) -> f64 {
        tokens(self.at.get() >> MOMENT) / tokens(WHOLE)
    }
}
