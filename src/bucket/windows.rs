//! The state of a bucket of windows: counters of consecutive stretches of time, the newest first.
//!
//! A fixed window has one counter, which counts for as long as its stretch lasts. A sliding window has nine, of an eighth
//! of a window each: each counts until all of it is a window old. So one rule serves both: a counter has left when as many
//! stretches have begun after its own as there are counters.

use smallvec::SmallVec;

use super::Limit;
use crate::clock::Micros;

/// A bucket's counters. They say themselves how long they count, so that a limit may change.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Windows {
    /// When the newest counter's stretch began.
    pub(super) start: Micros,
    /// How long each stretch is.
    pub(super) length: Micros,
    /// Of the limit that it was last charged under.
    pub(super) burst: f64,
    /// Tokens used in each stretch. One fits without the heap: a fixed window's.
    pub(super) counts: SmallVec<[f64; 2]>,
}

impl Windows {
    /// Counters under `limit` at `now`, of which the newest holds what is used.
    pub(super) fn begin(limit: &Limit, used: f64, now: Micros) -> Self {
        let (start, length) = limit.slot(now);
        let mut counts = SmallVec::from_elem(0.0, limit.counters());
        if let Some(newest) = counts.first_mut() {
            *newest = used;
        }
        Self { start, length, burst: limit.burst(), counts }
    }

    /// Makes these the counters as `limit` has them at `now`: those that have left are gone. If they were another limit's,
    /// what still counts is counted from now on. Under a clock that has stepped back they begin anew, at the same ages.
    pub(super) fn turn(&mut self, limit: &Limit, now: Micros) {
        if self.is_foreign_to(limit, now) {
            *self = Self::begin(limit, self.used_at(now), now);
            return;
        }
        let (start, _) = limit.slot(now);
        let gone = index(start.saturating_sub(self.start) / self.length).min(self.counts.len());
        self.counts.rotate_right(gone);
        self.counts.iter_mut().take(gone).for_each(|count| *count = 0.0);
        self.start = start;
        self.burst = limit.burst();
    }

    /// Whether these are not the counters that `limit` counts with.
    pub(super) fn is_foreign_to(&self, limit: &Limit, now: Micros) -> bool {
        self.length != limit.slot(now).1 || self.counts.len() != limit.counters()
    }

    /// Tokens in use.
    #[inline]
    pub(super) fn used_at(&self, now: Micros) -> f64 {
        self.used_after(self.passed(now))
    }

    /// Tokens in use when so many stretches have begun after the newest counter's.
    fn used_after(&self, passed: usize) -> f64 {
        let live = self.counts.len().saturating_sub(passed);
        self.counts.iter().take(live).fold(0.0, |sum, count| sum + count)
    }

    /// How many stretches have begun after the newest counter's. A clock that has stepped back makes none.
    fn passed(&self, now: Micros) -> usize {
        index(now.saturating_sub(self.start) / self.length)
    }

    /// The first moment after `now` at which what is in use `fits`.
    pub(super) fn first_moment(&self, now: Micros, fits: impl Fn(f64) -> bool) -> Micros {
        let passed = (self.passed(now) + 1..=self.counts.len()).find(|passed| fits(self.used_after(*passed)));
        self.start_of(passed.unwrap_or(self.counts.len()))
    }

    /// When nothing is in use any more; 0 if nothing is.
    pub(super) fn empty_at(&self) -> Micros {
        let newest = self.counts.iter().position(|count| *count > 0.0);
        newest.map_or(0, |newest| self.start_of(self.counts.len() - newest))
    }

    /// When no more than so much is in use; 0 if it always was so.
    pub(super) fn falls_to(&self, used: f64) -> Micros {
        if self.used_after(0) <= used { 0 } else { self.first_moment(self.start, |left| left <= used) }
    }

    fn start_of(&self, later: usize) -> Micros {
        self.start.saturating_add(self.length.saturating_mul(later as u64))
    }

    /// The counter of a moment; none when it has left.
    pub(super) fn counter_of(&mut self, moment: Micros) -> Option<&mut f64> {
        let before = self.start.saturating_sub(moment).div_ceil(self.length);
        self.counts.get_mut(index(before))
    }

    /// Takes tokens out of the counters, the oldest first: what is left is never less than what a log of single charges
    /// would still hold, whichever of them were meant.
    pub(super) fn lower(&mut self, tokens: f64) {
        let mut rest = tokens;
        for count in self.counts.iter_mut().rev() {
            if *count > rest {
                *count -= rest;
                break;
            }
            rest -= *count;
            *count = 0.0;
        }
    }
}

fn index(stretches: u64) -> usize {
    usize::try_from(stretches).unwrap_or(usize::MAX)
}
