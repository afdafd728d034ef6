//! What a rule has decided, counted where it is decided.
//!
//! Each rule carries its own [`Tally`], so counting is one or two additions without looking anything up, and a rule that
//! a reload keeps hands its tally on (see [`RuleSet::succeed`](crate::rules::RuleSet::succeed)). Nothing is allocated for
//! a rule until it is met, and no core waits for another one once a rule is met often.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::denials::Sampler;
use super::instrument::{SHARDS, shard};
use crate::decision::Source;

/// What became of one charge, as metrics tell it. Each is counted under one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It fits, and more than a little is left.
    Ok,
    /// It fits, and little is left.
    NearLimit,
    /// It fits, and the rule's `warn_at` is reached.
    Warned,
    /// It does not fit.
    OverLimit,
    /// It does not fit, and the rule denies nothing.
    Shadowed,
    /// It would fit, and was not charged: another limit denied the request.
    Uncharged,
}

impl Outcome {
    /// All of them, in the order in which they are counted.
    pub const ALL: [Self; 6] =
        [Self::Ok, Self::NearLimit, Self::Warned, Self::OverLimit, Self::Shadowed, Self::Uncharged];

    /// As the label says it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NearLimit => "near_limit",
            Self::Warned => "warned",
            Self::OverLimit => "over_limit",
            Self::Shadowed => "shadowed",
            Self::Uncharged => "uncharged",
        }
    }
}

const OUTCOMES: usize = Outcome::ALL.len();
const SOURCES: usize = Source::ALL.len();

/// From so many charges on, each core counts for itself.
const OFTEN: u64 = 4_096;

/// Counts of one rule. Copies count together.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// There as soon as anything is counted.
    first: OnceLock<Box<Cells>>,
    /// There once much is counted.
    spread: OnceLock<Box<[Cells]>>,
    /// Counts lines of the log.
    logged: Sampler,
}

/// Aligned so that two cores never write to one cache line (two, as processors fetch them in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cells {
    decisions: [[AtomicU64; OUTCOMES]; SOURCES],
    hits: [AtomicU64; OUTCOMES],
}

/// What a tally says at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Charges, by [`Source`] and [`Outcome`].
    decisions: [[u64; OUTCOMES]; SOURCES],
    /// Hits, by [`Outcome`].
    hits: [u64; OUTCOMES],
}

impl Tally {
    /// Counts one charge of so many hits.
    #[inline]
    pub fn count(&self, source: Source, outcome: Outcome, hits: u64) {
        let counts = &*self.0;
        if let Some(cells) = counts.spread.get().and_then(|spread| spread.get(shard())) {
            cells.count(source, outcome, hits);
            return;
        }
        let before = counts.first.get_or_init(Box::default).count(source, outcome, hits);
        if before >= OFTEN {
            counts.spread.get_or_init(|| (0..SHARDS).map(|_| Cells::default()).collect());
        }
    }

    /// Counts what is logged of the same rule.
    #[must_use]
    pub fn logged(&self) -> &Sampler {
        &self.0.logged
    }

    /// What has been counted; `None` if nothing has.
    #[must_use]
    pub fn counted(&self) -> Option<Counted> {
        let first = self.0.first.get()?;
        let mut counted = Counted::default();
        first.add_to(&mut counted);
        for cells in self.0.spread.get().into_iter().flatten() {
            cells.add_to(&mut counted);
        }
        Some(counted)
    }
}

impl Cells {
    /// Counts, and returns how often the same has been counted here before.
    fn count(&self, source: Source, outcome: Outcome, hits: u64) -> u64 {
        let add = |cell: &AtomicU64, n| cell.fetch_add(n, Ordering::Relaxed);
        if let Some(cell) = self.hits.get(outcome as usize)
            && hits != 0
        {
            add(cell, hits);
        }
        let cell = self.decisions.get(source as usize).and_then(|cells| cells.get(outcome as usize));
        cell.map_or(0, |cell| add(cell, 1))
    }

    fn add_to(&self, counted: &mut Counted) {
        let all = self.decisions.iter().flatten().zip(counted.decisions.iter_mut().flatten());
        for (cell, sum) in all.chain(self.hits.iter().zip(&mut counted.hits)) {
            *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
        }
    }
}

impl Counted {
    /// Adds what another one says: of two rules of one name.
    pub fn add(&mut self, other: &Self) {
        let all = self.decisions.iter_mut().flatten().zip(other.decisions.iter().flatten());
        for (sum, count) in all.chain(self.hits.iter_mut().zip(&other.hits)) {
            *sum = sum.wrapping_add(*count);
        }
    }

    /// Charges of each kind.
    pub fn decisions(&self) -> impl Iterator<Item = (Source, Outcome, u64)> {
        let of_source = |(source, counts): (Source, [u64; OUTCOMES])| {
            Outcome::ALL.into_iter().zip(counts).map(move |(outcome, count)| (source, outcome, count))
        };
        Source::ALL.into_iter().zip(self.decisions).flat_map(of_source)
    }

    /// Hits of each kind.
    pub fn hits(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL.into_iter().zip(self.hits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tally: &Tally, source: Source, outcome: Outcome) -> u64 {
        let counted = tally.counted().unwrap();
        counted.decisions().find(|(s, o, _)| (*s, *o) == (source, outcome)).unwrap().2
    }

    #[test]
    fn nothing_is_kept_of_a_rule_that_nobody_met() {
        let tally = Tally::default();
        assert_eq!(tally.counted(), None);
        assert!(tally.0.first.get().is_none());
    }

    #[test]
    fn each_kind_is_counted_for_itself_with_its_hits() {
        let tally = Tally::default();
        for (n, source) in Source::ALL.into_iter().enumerate() {
            for (m, outcome) in Outcome::ALL.into_iter().enumerate() {
                (0..n * 10 + m).for_each(|_| tally.count(source, outcome, 3));
            }
        }
        for (n, source) in Source::ALL.into_iter().enumerate() {
            for (m, outcome) in Outcome::ALL.into_iter().enumerate() {
                assert_eq!(of(&tally, source, outcome), (n * 10 + m) as u64);
            }
        }
        let hits: u64 = tally.counted().unwrap().hits().map(|(_, hits)| hits).sum();
        assert_eq!(hits, 3 * tally.counted().unwrap().decisions().map(|(_, _, count)| count).sum::<u64>());
    }

    #[test]
    fn no_count_is_lost_when_many_threads_count_and_each_core_begins_to_count_for_itself() {
        const EACH: u64 = 10_000;
        let tally = Tally::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..EACH).for_each(|_| tally.count(Source::Local, Outcome::Ok, 2)));
            }
        });
        assert_eq!(of(&tally, Source::Local, Outcome::Ok), 8 * EACH);
        assert!(tally.0.spread.get().is_some(), "counted by core");
        assert_eq!(tally.counted().unwrap().hits().map(|(_, hits)| hits).sum::<u64>(), 16 * EACH);
    }

    #[test]
    fn two_rules_of_one_name_are_told_as_one() {
        let (one, other) = (Tally::default(), Tally::default());
        one.count(Source::Redis, Outcome::OverLimit, 1);
        other.count(Source::Redis, Outcome::OverLimit, 4);
        let mut sum = one.counted().unwrap();
        sum.add(&other.counted().unwrap());
        assert!(sum.decisions().any(|counted| counted == (Source::Redis, Outcome::OverLimit, 2)));
        assert!(sum.hits().any(|counted| counted == (Outcome::OverLimit, 5)));
    }
}
