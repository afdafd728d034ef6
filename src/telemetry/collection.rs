//! Figures of one moment, on their way to whoever asked for them.

use std::collections::BTreeMap;

use super::instrument::Distribution;
use super::metrics::{
    ALL, BREAKER_OPENINGS, BREAKER_STATE, DECISIONS, HITS, Instrument, RULES_FILES, RULES_INFO, RULES_LIMITS,
    RULES_LOADED, RULES_REFUSALS, RULES_REFUSED, RULES_TIME, RULES_VERSION, UNMATCHED,
};
use super::tally::Counted;
use crate::breaker::{Breaker, State};
use crate::rules::{RuleSet, Status};

/// Figures of one moment, by instrument.
#[derive(Debug, Default)]
pub struct Collection {
    families: BTreeMap<&'static str, Vec<Point>>,
}

/// A figure.
#[derive(Debug)]
pub struct Point {
    /// Values of the instrument's labels, in their order.
    pub labels: Box<[Box<str>]>,
    /// How much.
    pub value: Value,
}

/// How much.
#[derive(Debug)]
pub enum Value {
    /// Whole.
    Count(u64),
    /// Any number.
    Number(f64),
    /// How often what was how much.
    Distribution(Box<Distribution>),
}

impl Collection {
    /// Tells how often something happened.
    pub fn count(&mut self, instrument: &'static Instrument, labels: &[&str], count: u64) {
        self.add(instrument, labels, Value::Count(count));
    }

    /// Tells how much there is of something.
    pub fn number(&mut self, instrument: &'static Instrument, labels: &[&str], number: f64) {
        self.add(instrument, labels, Value::Number(number));
    }

    /// Tells how often what was how much.
    pub fn distribution(&mut self, instrument: &'static Instrument, labels: &[&str], told: Distribution) {
        self.add(instrument, labels, Value::Distribution(Box::new(told)));
    }

    fn add(&mut self, instrument: &'static Instrument, labels: &[&str], value: Value) {
        debug_assert_eq!(labels.len(), instrument.labels.len(), "{}", instrument.name);
        let labels = labels.iter().map(|label| (*label).into()).collect();
        self.families.entry(instrument.name).or_default().push(Point { labels, value });
    }

    /// All instruments that have figures, in the order of [`ALL`].
    pub fn families(&self) -> impl Iterator<Item = (&'static Instrument, &[Point])> {
        ALL.iter().filter_map(|instrument| Some((*instrument, &**self.families.get(instrument.name)?)))
    }

    /// A single figure.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    pub fn find(&self, instrument: &Instrument, labels: &[&str]) -> Option<f64> {
        let points = self.families.get(instrument.name)?;
        let same = |point: &&Point| point.labels.iter().map(|label| &**label).eq(labels.iter().copied());
        points.iter().find(same).map(|point| match &point.value {
            Value::Count(count) => *count as f64,
            Value::Number(number) => *number,
            Value::Distribution(told) => told.count() as f64,
        })
    }
}

/// Tells what the breaker before a node of a store does.
pub fn collect_breaker(store: &str, node: &str, breaker: &Breaker, to: &mut Collection) {
    let is = breaker.state();
    for state in [State::Closed, State::Open, State::Probing] {
        to.number(&BREAKER_STATE, &[store, node, state.name()], f64::from(u8::from(is == state)));
    }
    to.count(&BREAKER_OPENINGS, &[store, node], breaker.openings());
}

/// Tells how the rule files stand.
#[allow(clippy::cast_precision_loss, reason = "a moment for people")]
pub fn collect_status(status: &Status, to: &mut Collection) {
    if let Some(in_force) = &status.in_force {
        to.count(&RULES_VERSION, &[], in_force.version);
        to.number(&RULES_TIME, &[], in_force.since as f64 / 1e6);
        to.number(&RULES_INFO, &[&in_force.hash.to_string()], 1.0);
    }
    to.count(&RULES_REFUSALS, &[], status.refusals);
    to.number(&RULES_REFUSED, &[], f64::from(u8::from(status.refused.is_some())));
}

/// The rule that stands for the limits which requests bring along.
pub const OVERRIDE: &str = "(override)";

/// Tells what is in force, and what its rules have counted. Rules that share a name are told as one; of rules that
/// nobody met, nothing is told.
#[allow(clippy::cast_precision_loss, reason = "so many rules there are not")]
pub fn collect_rules(rules: Option<&RuleSet>, to: &mut Collection) {
    to.number(&RULES_LOADED, &[], f64::from(u8::from(rules.is_some())));
    let Some(rules) = rules else { return };
    to.number(&RULES_LIMITS, &[], rules.len() as f64);
    to.number(&RULES_FILES, &[], rules.files() as f64);
    for (domain, limits) in rules.domains() {
        to.count(&UNMATCHED, &[domain], limits.unmatched.value());
        let mut by_name: BTreeMap<String, Counted> = BTreeMap::new();
        if let Some(counted) = limits.overrides.counted() {
            by_name.insert(OVERRIDE.into(), counted);
        }
        for (rule, limit) in limits.rules().flat_map(|rule| rule.all_limits().map(move |limit| (rule, limit)))
        {
            if let Some(counted) = limit.tally.counted() {
                by_name.entry(rule.metric_name(limit, domain).into_owned()).or_default().add(&counted);
            }
        }
        for (rule, counted) in by_name {
            for (source, outcome, count) in counted.decisions().filter(|(_, _, count)| *count > 0) {
                to.count(&DECISIONS, &[domain, &rule, outcome.label(), source.label()], count);
            }
            for (outcome, count) in counted.hits().filter(|(_, count)| *count > 0) {
                to.count(&HITS, &[domain, &rule, outcome.label()], count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::Thresholds;
    use crate::clock::Clock;
    use crate::rules::Watch;

    #[tokio::test]
    async fn a_breaker_is_told_in_one_state_with_its_openings() {
        let breaker = Breaker::new("default", Thresholds::default());
        let told = |state: &str, breaker: &Breaker| {
            let mut told = Collection::default();
            collect_breaker("default", "one", breaker, &mut told);
            let labels = ["default", "one", state];
            (told.find(&BREAKER_STATE, &labels), told.find(&BREAKER_OPENINGS, &labels[..2]))
        };
        assert_eq!(told("closed", &breaker), (Some(1.0), Some(0.0)));
        (0..100).for_each(|_| breaker.failed("late"));
        assert_eq!(told("open", &breaker), (Some(1.0), Some(1.0)));
        assert_eq!(told("closed", &breaker).0, Some(0.0));
    }

    #[test]
    fn rules_are_told_with_their_version_their_hour_and_what_was_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("rules.yaml");
        std::fs::write(&file, "domain: api\n").unwrap();
        let watch = Watch::new(directory.path(), Clock::manual(1_790_000_000_500_000));
        let told = || {
            let mut told = Collection::default();
            collect_status(&watch.status(), &mut told);
            told
        };
        assert_eq!(told().find(&RULES_VERSION, &[]), None);
        watch.start().unwrap();
        assert_eq!(told().find(&RULES_VERSION, &[]), Some(1.0));
        assert_eq!(told().find(&RULES_TIME, &[]), Some(1_790_000_000.5));
        assert_eq!(told().find(&RULES_REFUSED, &[]), Some(0.0));
        std::fs::write(&file, "domain: [").unwrap();
        watch.start().unwrap_err();
        assert_eq!(told().find(&RULES_REFUSED, &[]), Some(1.0));
        assert_eq!(told().find(&RULES_REFUSALS, &[]), Some(1.0));
        assert_eq!(told().find(&RULES_VERSION, &[]), Some(1.0), "the one that is in force");
    }
}
