//! Limits that can be used and hardly mean what was meant: those that never matter, and those that admit nothing.

use super::Scope;
use crate::bucket::{Algorithm, Limit};
use crate::rules::problem::Path;
use crate::rules::rule::{Allowance, Rule, RuleLimit};

impl Scope<'_> {
    /// Warns of limits that admit nothing without saying so, and of those that deny nothing.
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
        let unlimited = rule.limits.iter().find(|limit| limit.allowance == Allowance::Unlimited);
        if let Some(limit) = unlimited
            && rule.mode != crate::decision::Mode::Enforced
        {
            let message =
                "what is unlimited denies nothing anyway: `shadow_mode` and `quota_mode` say nothing here";
            self.problems.warning(limit.source.place, path, message);
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

/// Whether a limit is never over where `tight` has to have room as well.
fn never_over(wide: &Limit, tight: &Limit) -> bool {
    if tight.algorithm() != Algorithm::TokenBucket || wide.burst() == 0.0 {
        return false;
    }
    match wide.algorithm() {
        Algorithm::TokenBucket => tight.burst() <= wide.burst() && tight.rate() <= wide.rate(),
        // At most so much over any interval of a window's length.
        Algorithm::FixedWindow(_) | Algorithm::SlidingWindow => {
            #[allow(clippy::cast_precision_loss, reason = "windows are up to a year")]
            let window = wide.window() as f64;
            // A calendar's months and years are a little longer than their windows say.
            tight.burst() + tight.rate() * window * 1.04 <= wide.burst()
        }
    }
}
