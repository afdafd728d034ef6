//! Rules that can be used and hardly mean what was meant: those that are never reached, and limits that never matter.

use std::sync::Arc;

use super::Scope;
use crate::bucket::{Algorithm, Limit};
use crate::rules::problem::{Path, Problem, Severity};
use crate::rules::rule::{Allowance, Rule, RuleLimit};
use crate::rules::tree::{Branch, Choices, Domain, Node};

/// Warns of all rules of a domain that nothing ever meets.
pub(super) fn unreachable(domain: &Domain, found: &mut Vec<Problem>) {
    of_branch(&domain.root, found);
}

fn of_branch(branch: &Branch, found: &mut Vec<Problem>) {
    for choices in branch.keys.values() {
        of_choices(choices, found);
        choices.nodes().for_each(|node| of_branch(&node.below, found));
    }
}

fn of_choices(choices: &Choices, found: &mut Vec<Problem>) {
    for (value, node) in choices.lists.iter() {
        if let Some(first) = choices.exact.get(value) {
            let value = String::from_utf8_lossy(value);
            warn(node, first, &format!("value `{value}` of this list"), found);
        }
    }
    for (text, node, first) in choices.patterns.covered() {
        warn(node, first, &format!("value `{}`", String::from_utf8_lossy(text)), found);
    }
    if let (Some(bare), Some(first)) = (&choices.bare, choices.patterns.any_value()) {
        warn(bare, first, "the key without a value", found);
    }
}

fn warn(node: &Node, first: &Node, what: &str, found: &mut Vec<Problem>) {
    let is_exemption = node.rule.is_none() && node.below.keys.is_empty();
    let so = if is_exemption { "so it exempts nobody" } else { "so it says nothing" };
    found.push(Problem {
        file: Arc::clone(&node.source.file),
        place: node.source.place,
        path: String::new(),
        severity: Severity::Warning,
        message: format!("{what} is never reached, {so}: the rule at {} matches first", first.source),
    });
}

impl Scope<'_> {
    /// Warns of limits that admit nothing without saying so, and of those that deny nothing.
    pub(super) fn odd_limits(&self, rule: &Rule, path: &Path<'_>) {
        let limits = || rule.limits.iter().filter_map(|limit| Some((limit, limit.allowance.limit()?)));
        for limit in rule.all_limits() {
            self.too_dear(rule, limit, path);
        }
        for (index, (limit, wide)) in limits().enumerate() {
            let tighter = limits().enumerate().find(|(other, (twin, tight))| {
                // Those of one id have been told of. Of two that are alike, the first matters.
                let is_other = twin.limit_id != limit.limit_id;
                is_other && never_over(&wide, tight) && (*other < index || !never_over(tight, &wide))
            });
            if let Some((_, (tighter, _))) = tighter {
                let message = format!(
                    "limit `{}` can never be met: limit `{}` beside it always denies before",
                    limit.limit_id, tighter.limit_id
                );
                self.problems.warning(limit.source.place, path, message);
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
