//! The arithmetic of limits: pure functions of (state, limit, hits, now).
//!
//! A bucket is kept as what is *used* of it. Of a token bucket, `available = burst − max(0, used − rate × (now − at))`.
//! That says the same as the textbook's rising level, and is the better thing to keep: a change of limit keeps what was
//! used without knowing the old burst, and a bucket that is full again needs no state at all, so it may be forgotten at
//! any time. Of windows, what is used is counted by stretches of time (`windows.rs`).
//!
//! # More than there is
//!
//! Some charges *land* whatever is left, because what they count has already happened. A bucket may then hold more than
//! its burst, which is a debt: it is paid before anything is admitted again, and is bounded by [`Limit::most`]. Nothing
//! else makes a debt, and a limit that changes forgives it: what is used of the old one is never above the new burst.
//!
//! # Changes
//!
//! A bucket says itself how what it holds comes back, so it can be read under any limit. Another rate holds from when
//! the limit changed ([`Limit::since`]); of another algorithm or another window, what the current unit has used by then
//! is what is used from then on.
//!
//! Nothing here reads a clock or locks, and only windows and debts allocate. Moments are microseconds since the epoch, amounts
//! are tokens as IEEE doubles: Redis's Lua computes in doubles too, and a twin of these expressions must come to the same
//! bits.
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

use crate::clock::Micros;

mod calendar;
mod limit;
mod record;
mod share;
mod tokens;
mod windows;

pub use limit::{Algorithm, Calendar, Limit, MAX_DEBT};
pub use share::Corrections;

use tokens::{Packed, Tokens};
use windows::Windows;

/// The last moment that is told as one: 2⁵³ µs, in the year 2255. What lies beyond is told as this.
///
/// Up to here a moment is exact as a double.
pub const HORIZON: Micros = 1 << 53;

/// What a request wants of a bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Hits {
    /// Takes so many tokens, or none of them.
    Take(u64),
    /// Takes nothing, and is over when not one whole token is left.
    Peek,
    /// Gives tokens back, up to a full bucket. Never over.
    GiveBack(u64),
    /// Gives tokens back that were taken at the moment `taken`: of windows only as long as they would still count there.
    /// Never over.
    Refund {
        /// How many.
        tokens: u64,
        /// When they were taken, as the store tells time.
        taken: Micros,
    },
    /// Takes so many tokens, as debt if need be. Over when not one whole token was left before.
    Overdraft(u64),
    /// Counts tokens that were taken elsewhere, as debt if need be; or given back elsewhere, if they are less than none.
    /// Never over.
    Add {
        /// How many.
        tokens: f64,
        /// When: of windows they land in the counter of this moment, or nowhere when that does not count any more.
        at: Micros,
    },
    /// Sees to it that at least so many tokens are in use; of windows, in the counter of the moment `at`. Any number of
    /// these come to the same in any order. Never over.
    Raise {
        /// How many.
        tokens: f64,
        /// When.
        at: Micros,
    },
}

impl Hits {
    /// Whether they have their effect also when their request is denied: what they count has happened.
    #[must_use]
    pub fn land_anyway(&self) -> bool {
        !matches!(self, Self::Take(_) | Self::Peek)
    }

    /// Whether there may be more left after them than before.
    #[must_use]
    pub fn give_back(&self) -> bool {
        match self {
            Self::GiveBack(_) | Self::Refund { .. } => true,
            Self::Add { tokens, .. } => *tokens < 0.0,
            Self::Take(_) | Self::Peek | Self::Overdraft(_) | Self::Raise { .. } => false,
        }
    }
}

/// Whether hits fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is room.
    Fits,
    /// There is not; the bucket is as it was, unless they [land anyway](Hits::land_anyway).
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

/// What is kept of one bucket: 24 bytes, and of windows or a debt a box.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket(State);

#[derive(Clone, Debug, PartialEq)]
enum State {
    Tokens(Packed),
    Rare(Box<Rare>),
}

/// What takes more room, and seldom is.
#[derive(Clone, Debug, PartialEq)]
enum Rare {
    Windows(Windows),
    /// A token bucket that owes more than it holds.
    Debt(Tokens),
}

/// A bucket as it is read.
enum Kind<'b> {
    Tokens(Tokens),
    Windows(&'b Windows),
}

const _: () = assert!(size_of::<Bucket>() == 24, "ten million of them are kept in memory");

impl Bucket {
    /// A bucket that nobody has taken from; equal to one that is not there.
    pub const FULL: Self = Self(State::Tokens(Packed::FULL));

    /// A bucket of `limit` with `used` tokens in use at `at`.
    #[must_use]
    pub fn with_used(limit: &Limit, used: f64, at: Micros) -> Self {
        let mut bucket = Self::FULL;
        bucket.add(limit, used, 0.0, at);
        bucket
    }

    /// Takes `hits` if they fit, or does what else they say.
    ///
    /// When they do not fit nothing is taken, and the bucket is [settled](Self::settle), so that the promise holds.
    #[must_use = "whether the hits fit is the answer"]
    pub fn take(&mut self, limit: &Limit, hits: Hits, now: Micros) -> Outcome {
        let used = self.used_at(limit, now);
        let need = match hits {
            Hits::Take(hits) => tokens(hits),
            Hits::Peek => 1.0,
            Hits::Overdraft(hits) => {
                self.add(limit, used, room_for(limit, used, tokens(hits)), now);
                if used + 1.0 <= limit.burst() {
                    return Outcome::Fits;
                }
                return self.over(limit, 1.0, now);
            }
            _ => {
                self.correct(limit, used, hits, now);
                return Outcome::Fits;
            }
        };
        if used + need <= limit.burst() {
            if let Hits::Take(_) = hits {
                self.add(limit, used, need, now);
            }
            return Outcome::Fits;
        }
        if need > limit.burst() && need <= limit.largest() && used == 0.0 {
            self.add(limit, used, need, now);
            return Outcome::Fits;
        }
        self.settle(limit, now);
        self.over(limit, need, now)
    }

    /// What is answered to hits that do not fit by `need` tokens, on a bucket that is settled.
    fn over(&self, limit: &Limit, need: f64, now: Micros) -> Outcome {
        if need > limit.largest() {
            return Outcome::Over(Retry::Never);
        }
        let fits = |used: f64| used + need <= limit.burst() || used == 0.0;
        let fits = match self.kind() {
            Kind::Windows(windows) => windows.first_moment(now, fits),
            Kind::Tokens(_) => {
                let missing = self.used_at(limit, now) - (limit.burst() - need).max(0.0);
                let estimate = now.saturating_add(micros(missing / limit.rate()));
                first_moment(now, estimate, |then| fits(self.used_at(limit, then)))
            }
        };
        Outcome::Over(Retry::In(fits.saturating_sub(now)))
    }

    /// Takes `tokens` more than are in use.
    fn add(&mut self, limit: &Limit, used: f64, tokens: f64, now: Micros) {
        match self.windows(limit, used, now) {
            None => self.write(limit, used + tokens, now),
            Some(windows) => {
                if let Some(newest) = windows.counts.first_mut() {
                    *newest += tokens;
                }
            }
        }
    }

    /// Does what hits say that are neither taken nor refused.
    fn correct(&mut self, limit: &Limit, used: f64, hits: Hits, now: Micros) {
        let Some(windows) = self.windows(limit, used, now) else {
            let used = match hits {
                Hits::GiveBack(hits) | Hits::Refund { tokens: hits, .. } => (used - tokens(hits)).max(0.0),
                Hits::Add { tokens, .. } if tokens < 0.0 => (used + tokens).max(0.0),
                Hits::Add { tokens, .. } => used + room_for(limit, used, tokens),
                Hits::Raise { tokens, .. } if tokens.min(limit.most()) > used => tokens.min(limit.most()),
                Hits::Raise { .. } | Hits::Take(_) | Hits::Peek | Hits::Overdraft(_) => return,
            };
            return self.write(limit, used, now);
        };
        match hits {
            Hits::GiveBack(hits) => windows.lower(tokens(hits)),
            Hits::Refund { tokens: hits, taken: at } => {
                if let Some(count) = windows.counter_of(at) {
                    *count = (*count - tokens(hits)).max(0.0);
                }
            }
            Hits::Add { tokens, at } => {
                if let Some(count) = windows.counter_of(at) {
                    let more = if tokens < 0.0 { tokens } else { room_for(limit, used, tokens) };
                    *count = (*count + more).max(0.0);
                }
            }
            Hits::Raise { tokens, at } => {
                if let Some(count) = windows.counter_of(at) {
                    *count = count.max(tokens.min(*count + (limit.most() - used).max(0.0)));
                }
            }
            Hits::Take(_) | Hits::Peek | Hits::Overdraft(_) => {}
        }
    }

    /// Writes down what a denial must not leave unsaid: a clock that stepped back, another rate, a burst that shrank, or
    /// another algorithm.
    pub fn settle(&mut self, limit: &Limit, now: Micros) {
        let stale = match (self.kind(), limit.algorithm()) {
            (Kind::Tokens(state), Algorithm::TokenBucket) => {
                now < state.at || state.rate != limit.rate() || state.used > state.most(limit)
            }
            (Kind::Windows(windows), Algorithm::FixedWindow(_) | Algorithm::SlidingWindow) => {
                now < windows.start || windows.is_foreign_to(limit, now)
            }
            _ => true,
        };
        let used = self.used_at(limit, now);
        if stale && used > 0.0 {
            self.add(limit, used, 0.0, now);
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
        (limit.burst() - self.used_at(limit, now)).max(0.0) as u32
    }

    /// Microseconds until the bucket is full, if nobody else came.
    #[must_use]
    pub fn full_in(&self, limit: &Limit, now: Micros) -> Micros {
        let used = self.used_at(limit, now);
        if used == 0.0 {
            return 0;
        }
        match self.kind() {
            Kind::Windows(windows) if now >= windows.start && !windows.is_foreign_to(limit, now) => {
                return windows.empty_at().saturating_sub(now);
            }
            Kind::Tokens(_) if limit.algorithm() == Algorithm::TokenBucket => {}
            _ => {
                let mut settled = self.clone();
                settled.add(limit, used, 0.0, now);
                return settled.full_in(limit, now);
            }
        }
        let estimate = now.saturating_add(micros(used / limit.rate()));
        first_moment(now, estimate, |then| self.used_at(limit, then) == 0.0) - now
    }

    /// About when the bucket is full, by what it was written under. A full bucket may be forgotten.
    #[must_use]
    pub fn full_at(&self) -> Micros {
        match self.kind() {
            Kind::Windows(windows) => windows.empty_at(),
            Kind::Tokens(state) => state.drained_by(state.used),
        }
    }

    /// About when the bucket has a whole token left, by what it was written under; not before it has.
    #[must_use]
    pub fn token_at(&self) -> Micros {
        match &self.0 {
            State::Tokens(packed) => packed.unpacked().drained_by(packed.missing()),
            State::Rare(rare) => match &**rare {
                Rare::Windows(windows) => windows.falls_to(windows.burst - 1.0),
                Rare::Debt(state) => state.drained_by(state.missing()),
            },
        }
    }

    /// Notes how much the bucket holds under `limit`, for [`Bucket::token_at`].
    pub fn seen_under(&mut self, limit: &Limit) {
        match &mut self.0 {
            State::Tokens(packed) => {
                let state = packed.unpacked();
                if state.used <= limit.burst() {
                    *packed = Packed::new(Tokens { burst: limit.burst(), ..state });
                }
            }
            State::Rare(rare) => match &mut **rare {
                Rare::Windows(windows) => windows.burst = limit.burst(),
                // What is above the burst is a debt under the burst that it was made under, and is none under another one.
                Rare::Debt(state) if state.used <= limit.burst() => {
                    let state = Tokens { burst: limit.burst(), ..*state };
                    *self = state.into();
                }
                Rare::Debt(_) => {}
            },
        }
    }

    /// What it is.
    #[inline]
    fn kind(&self) -> Kind<'_> {
        match &self.0 {
            State::Tokens(packed) => Kind::Tokens(packed.unpacked()),
            State::Rare(rare) => match &**rare {
                Rare::Windows(windows) => Kind::Windows(windows),
                Rare::Debt(state) => Kind::Tokens(*state),
            },
        }
    }

    /// Tokens in use at `now` under `limit`.
    #[inline]
    fn used_at(&self, limit: &Limit, now: Micros) -> f64 {
        match (self.kind(), limit.algorithm()) {
            (Kind::Tokens(state), Algorithm::TokenBucket) => state.used_at(limit, now),
            (Kind::Tokens(Tokens { used, at, rate, .. }), _) => {
                if now <= at {
                    used
                } else {
                    (used - rate * tokens(now - at)).max(0.0)
                }
            }
            (Kind::Windows(windows), Algorithm::TokenBucket) => windows.used_at(now).min(limit.burst()),
            (Kind::Windows(windows), _) => windows.used_at(now),
        }
    }

    /// The counters of a limit of windows at `now`, when so many tokens are in use; none of a token bucket.
    fn windows(&mut self, limit: &Limit, used: f64, now: Micros) -> Option<&mut Windows> {
        if limit.algorithm() == Algorithm::TokenBucket {
            return None;
        }
        match self.as_windows() {
            Some(windows) => windows.turn(limit, now),
            None => *self = Windows::begin(limit, used, now).into(),
        }
        self.as_windows()
    }

    fn as_windows(&mut self) -> Option<&mut Windows> {
        match &mut self.0 {
            State::Rare(rare) => match &mut **rare {
                Rare::Windows(windows) => Some(windows),
                Rare::Debt(_) => None,
            },
            State::Tokens(_) => None,
        }
    }

    /// Begins a token bucket with so many tokens in use.
    fn write(&mut self, limit: &Limit, used: f64, now: Micros) {
        let state = Tokens { used, at: now, rate: limit.rate(), burst: limit.burst() };
        match &mut self.0 {
            // A debt that goes on has its box already.
            State::Rare(rare) if state.is_debt() => **rare = Rare::Debt(state),
            _ => *self = state.into(),
        }
    }
}

impl From<Windows> for Bucket {
    fn from(windows: Windows) -> Self {
        Self(State::Rare(Box::new(Rare::Windows(windows))))
    }
}

impl From<Tokens> for Bucket {
    #[inline]
    fn from(state: Tokens) -> Self {
        if state.is_debt() {
            Self(State::Rare(Box::new(Rare::Debt(state))))
        } else {
            Self(State::Tokens(Packed::new(state)))
        }
    }
}

/// As many of `tokens` as there is room for, debt included.
fn room_for(limit: &Limit, used: f64, tokens: f64) -> f64 {
    tokens.min((limit.most() - used).max(0.0))
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
