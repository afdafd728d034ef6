//! Figures of one moment, on their way to whoever asked for them.

use std::collections::BTreeMap;

use super::instrument::Distribution;
use super::metrics::{ALL, DECISIONS, HITS, Instrument, RULES_FILES, RULES_LIMITS, RULES_LOADED, UNMATCHED};
use super::tally::Counted;
use crate::rules::RuleSet;

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

/// The rule that stands for the limits which requests bring along.
const OVERRIDE: &str = "(override)";

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
        for (rule, limit) in
            limits.rules().flat_map(|rule| rule.limits.iter().map(move |limit| (rule, limit)))
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
