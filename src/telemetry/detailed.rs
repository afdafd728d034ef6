//! Counts by values of requests, for rules that ask for it (`detailed_metric`, `value_to_metric`).
//!
//! Values are the clients' to choose, so there are so many series at most, in all: whoever comes later is counted under
//! [`OVERFLOW`], and a client who makes up values takes no more memory than that.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;

use super::collection::Collection;
use super::metrics::DETAILED;
use super::tally::Outcome;

/// The value that stands for all that there was no room for.
pub const OVERFLOW: &str = "(overflow)";

/// A value is told up to so many bytes.
const LONGEST: usize = 120;

/// Counts by rule and values.
#[derive(Debug)]
pub struct Detailed {
    known: DashMap<Key, [AtomicU64; Outcome::ALL.len()]>,
    /// How many of them are not overflow.
    count: AtomicUsize,
    most: usize,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    domain: Box<str>,
    rule: Box<str>,
    values: Box<str>,
}

impl Detailed {
    /// For so many combinations of values at most.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { known: DashMap::new(), count: AtomicUsize::new(0), most }
    }

    /// Counts a charge by a rule, for these entries of a request.
    pub fn count<'e>(
        &self,
        domain: &str,
        rule: &str,
        entries: impl Iterator<Item = (&'e [u8], Option<&'e [u8]>)>,
        outcome: Outcome,
    ) {
        let key = |values: String| Key { domain: domain.into(), rule: rule.into(), values: values.into() };
        let values = key(values(entries));
        if let Some(counts) = self.known.get(&values) {
            return add(&counts, outcome);
        }
        // More than one thread may see the last free place: whoever takes it says so.
        let has_room = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < self.most).then_some(count + 1)
        });
        let is_new = has_room.is_ok();
        let key = if is_new { values } else { key(OVERFLOW.to_owned()) };
        match self.known.entry(key) {
            dashmap::Entry::Occupied(counts) => {
                add(counts.get(), outcome);
                if is_new {
                    // Somebody else was first, with the same values.
                    self.count.fetch_sub(1, Ordering::Relaxed);
                }
            }
            dashmap::Entry::Vacant(place) => add(&place.insert(Default::default()), outcome),
        }
    }

    pub(super) fn collect(&self, to: &mut Collection) {
        for counts in &self.known {
            let Key { domain, rule, values } = counts.key();
            for (outcome, count) in Outcome::ALL.into_iter().zip(counts.value()) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    to.count(&DETAILED, &[domain, rule, values, outcome.label()], count);
                }
            }
        }
    }
}

fn add(counts: &[AtomicU64; Outcome::ALL.len()], outcome: Outcome) {
    if let Some(count) = counts.get(outcome as usize) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Keys, each with its value where that is told: `user_id=ann,path`.
fn values<'e>(entries: impl Iterator<Item = (&'e [u8], Option<&'e [u8]>)>) -> String {
    let mut text = String::new();
    for (key, value) in entries {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&String::from_utf8_lossy(key));
        if let Some(value) = value {
            text.push('=');
            let (told, rest) = value.split_at_checked(LONGEST).unwrap_or((value, &[]));
            text.push_str(&String::from_utf8_lossy(told));
            if !rest.is_empty() {
                text.push('…');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(detailed: &Detailed) -> usize {
        detailed.known.len()
    }

    fn told(detailed: &Detailed, values: &str) -> Option<f64> {
        let mut told = Collection::default();
        detailed.collect(&mut told);
        told.find(&DETAILED, &["api", "user_id", values, "ok"])
    }

    fn count(detailed: &Detailed, value: &[u8]) {
        let entries = [(&b"user_id"[..], Some(value)), (b"path", None)];
        detailed.count("api", "user_id", entries.into_iter(), Outcome::Ok);
    }

    #[test]
    fn values_are_told_apart_up_to_the_cap_and_then_together() {
        let detailed = Detailed::new(3);
        for user in 0..100_000 {
            count(&detailed, format!("user-{user}").as_bytes());
        }
        count(&detailed, b"user-1");
        assert_eq!(series(&detailed), 4, "three, and the overflow");
        assert_eq!(told(&detailed, "user_id=user-1,path"), Some(2.0));
        assert_eq!(told(&detailed, OVERFLOW), Some(99_997.0));
    }

    #[test]
    fn no_more_than_the_cap_are_told_when_many_threads_bring_new_values() {
        let detailed = Detailed::new(50);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let detailed = &detailed;
                scope.spawn(move || {
                    for n in 0..1_000 {
                        count(detailed, format!("{}", (n * 7 + thread) % 500).as_bytes());
                    }
                });
            }
        });
        assert!(series(&detailed) <= 51, "{}", series(&detailed));
        let mut all = Collection::default();
        detailed.collect(&mut all);
        let sum: u64 = all
            .families()
            .flat_map(|(_, points)| points)
            .map(|point| match point.value {
                crate::telemetry::collection::Value::Count(count) => count,
                _ => panic!("a count"),
            })
            .sum();
        assert_eq!(sum, 8_000);
    }

    #[test]
    fn a_long_value_is_cut_and_one_that_is_no_text_is_told_all_the_same() {
        let detailed = Detailed::new(3);
        count(&detailed, &[b'x'; 100_000]);
        assert_eq!(told(&detailed, &format!("user_id={}…,path", "x".repeat(LONGEST))), Some(1.0));
        count(&detailed, b"\xff");
        assert_eq!(told(&detailed, "user_id=\u{fffd},path"), Some(1.0));
    }
}
