//! A bucket that several replicas each hold a share of, for as long as they cannot share one.
//!
//! Each replica begins with its [share](Bucket::share) of the bucket as it was last seen, under its
//! [share](Limit::share) of the limit. What it has used of it since is its [contribution](Bucket::contribution) to the
//! bucket that is shared again: what it holds less what it would hold if nobody had come, both drained until then, for
//! what has flowed back meanwhile is owed by nobody. A bucket that was lost can be [raised](Bucket::at_least) to what
//! each replica knows of it.

use std::num::NonZeroU32;

use smallvec::SmallVec;

use super::{Bucket, Hits, Kind, Limit, Windows};
use crate::clock::Micros;

/// Hits that together are one correction: one for each counter that it concerns.
pub type Corrections = SmallVec<[Hits; 1]>;

impl Bucket {
    /// One of so many equal shares of this bucket of `limit`: a bucket of [that limit's share](Limit::share).
    #[must_use]
    pub fn share(&self, limit: &Limit, replicas: NonZeroU32, now: Micros) -> Self {
        let (share, replicas) = (limit.share(replicas), f64::from(replicas.get()));
        let used = self.used_at(limit, now);
        let mut bucket = self.clone();
        match bucket.windows(limit, used, now) {
            None => bucket.write(&share, used / replicas, now),
            Some(windows) => {
                windows.counts.iter_mut().for_each(|count| *count /= replicas);
                windows.burst = share.burst();
            }
        }
        bucket
    }

    /// This bucket of `limit`, which stands so at the moment `there` of one clock, by another clock that shows `here`.
    /// Windows belong to the calendar, which is the same by all clocks.
    #[must_use]
    pub fn by_another_clock(self, limit: &Limit, there: Micros, here: Micros) -> Self {
        match self.kind() {
            Kind::Tokens(_) => Self::with_used(limit, self.used_at(limit, there), here),
            Kind::Windows(_) => self,
        }
    }

    /// What was used of this bucket of `limit` that was not used of `start`, which is the same bucket as it was before:
    /// to be added where both are from.
    #[must_use]
    pub fn contribution(&self, start: &Self, limit: &Limit, now: Micros) -> Corrections {
        let added = self.counters_at(limit, now).into_iter().zip(start.counters_at(limit, now));
        added
            .map(|((used, at), (before, _))| Hits::Add { tokens: used - before, at })
            .filter(|hits| !matches!(hits, Hits::Add { tokens, .. } if *tokens == 0.0))
            .collect()
    }

    /// Adds what was used of this bucket of `limit` at an earlier moment, of which some may have flowed back since.
    pub fn add_since(&mut self, limit: &Limit, tokens: f64, at: Micros, now: Micros) {
        let when = match self.kind() {
            Kind::Tokens(known) => at.max(known.at).min(now),
            Kind::Windows(_) => now,
        };
        _ = self.take(limit, Hits::Add { tokens, at }, when);
    }

    /// What is known to be used of this bucket of `limit`: that a bucket which has forgotten is raised to.
    #[must_use]
    pub fn at_least(&self, limit: &Limit, now: Micros) -> Corrections {
        let known = self.counters_at(limit, now).into_iter().filter(|(used, _)| *used > 0.0);
        known.map(|(tokens, at)| Hits::Raise { tokens, at }).collect()
    }

    /// What is used at `now`: of a token bucket at once, of windows by their counters, each with a moment of its own.
    fn counters_at(&self, limit: &Limit, now: Micros) -> SmallVec<[(f64, Micros); 1]> {
        let used = self.used_at(limit, now);
        let mut bucket = self.clone();
        if bucket.windows(limit, used, now).is_none() {
            return SmallVec::from_elem((used, now), 1);
        }
        let Kind::Windows(Windows { start, length, counts, .. }) = bucket.kind() else {
            return SmallVec::new();
        };
        let starts = std::iter::successors(Some(*start), |start| Some(start.saturating_sub(*length)));
        counts.iter().copied().zip(starts).collect()
    }
}
