//! Limits that can be used and hardly mean what was meant: those that never matter, and those that admit nothing.

use super::Scope;
use crate::bucket::{Algorithm, Calendar, Limit};
use crate::clock::Micros;
use crate::rules::problem::Path;
use crate::rules::rule::{Rule, RuleLimit};

const DAY: Micros = 24 * 3_600 * 1_000_000;

impl Scope<'_> {
    /// Warns of limits that admit nothing without saying so, and of those that never deny.
    pub(super) fn odd_limits(&self, rule: &Rule, path: &Path<'_>) {
        for limit in rule.all_limits() {
            self.too_dear(rule, limit, path);
        }
        for (limit, tighter) in never_met(rule.limits.iter()) {
            let message = format!(
                "limit `{}` can never be met: limit `{}` beside it always denies before",
                limit.limit_id, tighter.limit_id
            );
            self.problems.warning(limit.source.place, path, message);
        }
        for tier in rule.by_tier.iter().flat_map(|by_tier| by_tier.tiers()) {
            // Tiers may stand in another file than the rule.
            let is_of_tier = |limit: &RuleLimit| tier.limits.iter().any(|other| other.id == limit.id);
            for (limit, tighter) in never_met(rule.limits.iter().chain(&tier.limits)) {
                if is_of_tier(limit) || is_of_tier(tighter) {
                    let message = format!(
                        "on tier `{}` limit `{}` ({}) can never be met: limit `{}` beside it always denies before",
                        tier.name, limit.limit_id, limit.source, tighter.limit_id
                    );
                    self.problems.warning(rule.source.place, path, message);
                }
            }
        }
    }

    /// A burst that does not hold what one hit costs.
    fn too_dear(&self, rule: &Rule, limit: &RuleLimit, path: &Path<'_>) {
        let Some(bucket) = limit.allowance.limit() else { return };
        if bucket.burst() > 0.0 && f64::from(rule.cost) > bucket.burst() && !rule.overdraft {
            let message = format!(
                "a hit costs {} and at most {} are there at once (limit `{}`): nothing is ever admitted",
                rule.cost,
                bucket.burst(),
                limit.limit_id
            );
            self.problems.warning(rule.source.place, path, message);
        }
    }
}

/// Of limits beside one another those that never deny, each with one that always denies before.
fn never_met<'r>(limits: impl Iterator<Item = &'r RuleLimit> + Clone) -> Vec<(&'r RuleLimit, &'r RuleLimit)> {
    let limits = || limits.clone().filter_map(|limit| Some((limit, limit.allowance.limit()?))).enumerate();
    let never = limits().filter_map(|(index, (limit, wide))| {
        let (_, (tighter, _)) = limits().find(|(other, (twin, tight))| {
            // Those of one id have been told of. Of two that are alike, the first matters.
            let is_other = twin.limit_id != limit.limit_id;
            is_other && never_over(&wide, tight) && (*other < index || !never_over(tight, &wide))
        })?;
        Some((limit, tighter))
    });
    never.collect()
}

/// Whether a limit is never over where `tight` has to have room as well: whatever that one admits fits.
fn never_over(wide: &Limit, tight: &Limit) -> bool {
    if wide.burst() == 0.0 {
        return false;
    }
    let is_window = wide.algorithm() != Algorithm::TokenBucket;
    if is_window && wide.algorithm() == tight.algorithm() && wide.window() == tight.window() {
        // They count the same.
        return tight.burst() <= wide.burst();
    }
    let admits = Admits::of(tight);
    match stretch(wide) {
        None => admits.at_once <= wide.burst() && admits.rate <= wide.rate(),
        Some(stretch) => admits.over(stretch) <= wide.burst(),
    }
}

/// What a limit admits at most over any interval t: so many at once and rate × t.
struct Admits {
    at_once: f64,
    /// For each microsecond.
    rate: f64,
}

impl Admits {
    fn of(limit: &Limit) -> Self {
        let burst = limit.burst();
        match limit.algorithm() {
            // Of a sliding window, its burst in each of the windows that t can be divided into, of which the last is cut short.
            Algorithm::TokenBucket | Algorithm::SlidingWindow => Self { at_once: burst, rate: limit.rate() },
            // Here the first is cut short as well.
            Algorithm::FixedWindow(calendar) => {
                let shortest = match calendar {
                    Calendar::Month => 28 * DAY,
                    Calendar::Epoch | Calendar::Week | Calendar::Year => limit.window(),
                };
                Self { at_once: 2.0 * burst, rate: burst / micros(shortest) }
            }
        }
    }

    fn over(&self, stretch: Micros) -> f64 {
        self.at_once + self.rate * micros(stretch)
    }
}

/// How long the longest time is that a window counts together.
fn stretch(limit: &Limit) -> Option<Micros> {
    match limit.algorithm() {
        Algorithm::TokenBucket => None,
        Algorithm::FixedWindow(Calendar::Month) => Some(31 * DAY),
        Algorithm::FixedWindow(Calendar::Year) => Some(366 * DAY),
        Algorithm::FixedWindow(Calendar::Epoch | Calendar::Week) => Some(limit.window()),
        // Its eighths, and the one that is being filled.
        Algorithm::SlidingWindow => Some(9 * limit.slots().0),
    }
}

#[allow(clippy::cast_precision_loss, reason = "windows are up to a year")]
fn micros(time: Micros) -> f64 {
    time as f64
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use proptest::prelude::*;

    use super::*;
    use crate::bucket::{Bucket, Hits, Outcome};

    const NOW: Micros = 1_790_000_000_000_000;

    type Shape = (Micros, u8);

    fn shapes() -> impl Strategy<Value = Shape> {
        (prop::sample::select(vec![DAY, 2 * DAY, 7 * DAY, 30 * DAY, 365 * DAY]), 0..3u8)
    }

    fn limit((window, algorithm): Shape, requests: u32) -> Limit {
        let (requests, length) = (NonZeroU32::new(requests).unwrap(), NonZeroU64::new(window).unwrap());
        let calendar = match window / DAY {
            7 => Calendar::Week,
            30 => Calendar::Month,
            365 => Calendar::Year,
            _ => Calendar::Epoch,
        };
        match algorithm {
            0 => Limit::new(requests, length),
            1 => Limit::fixed_window(requests, length, calendar),
            _ => Limit::sliding_window(requests, length),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Somebody who takes all that he can get, most of the time; beside the narrowest limit of which it is said.
        #[test]
        fn a_limit_that_is_said_never_to_be_met_never_denies_what_the_other_admits(
            tight in (shapes(), 1..40u32).prop_map(|(shape, requests)| limit(shape, requests)),
            burst in 1..40u32,
            shape in shapes(),
            begins in 0..400 * DAY,
            waits in prop::collection::vec(prop_oneof![9 => Just(1), 1 => 0..800u64], 1..200),
        ) {
            let tight = tight.with_burst(NonZeroU32::new(burst).unwrap());
            let narrowest = (1..40_000).map(|requests| limit(shape, requests)).find(|wide| never_over(wide, &tight));
            let wide = narrowest.unwrap();
            let (mut of_tight, mut of_wide) = (Bucket::FULL, Bucket::FULL);
            let mut now = NOW + begins;
            for sixteenths in waits {
                while of_tight.take(&tight, Hits::Take(1), now) == Outcome::Fits {
                    let outcome = of_wide.take(&wide, Hits::Take(1), now);
                    prop_assert_eq!(outcome, Outcome::Fits, "{:?} is met beside {:?}", wide, tight);
                }
                now += sixteenths * DAY / 16;
            }
        }
    }
}
