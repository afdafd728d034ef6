//! A rule as it is looked up: what it limits, and what else it says of the descriptors that it matches.

use std::borrow::Cow;
use std::sync::Arc;

use smallvec::SmallVec;

use super::problem::Place;
use super::reply::Denial;
use super::tier::{ByTier, OnTier};
use super::tree::Entry;
use super::unit::Unit;
use super::yaml::Any;
use crate::bucket::{Hits, Limit};
use crate::clock::Micros;
use crate::decision::{Mode, OnRedisFailure, RuleId};
use crate::telemetry::tally::Tally;

/// Where a rule is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub file: Arc<str>,
    /// Where in it.
    pub place: Place,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.place)
    }
}

/// A rule that has limits.
#[derive(Debug)]
pub struct Rule {
    /// The same in every process and after every reload.
    pub id: RuleId,
    /// Its name to people: the domain, and each level's key and value, as in `api.user_id.path_/login*`.
    pub label: Box<str>,
    /// Where it is written.
    pub source: Source,
    /// What it admits: all of these must have room.
    pub limits: SmallVec<[RuleLimit; 1]>,
    /// What it admits besides, which depends on the subject's tier.
    pub by_tier: Option<Box<ByTier>>,
    /// What it means to be over.
    pub mode: Mode,
    /// For each entry, the pattern that stands in for its value in the bucket's name, where values share a bucket.
    pub shared: Box<[Option<Box<[u8]>>]>,
    /// Tokens that a hit takes.
    pub cost: u32,
    /// Whether hits are charged after the fact: they land also when there is no room, as debt.
    pub overdraft: bool,
    /// On how many of a hundred callers it is enforced; it is in shadow mode for the others.
    pub enforce_percent: u32,
    /// What is answered where a shared store has no answer, if that is not the process's default.
    pub on_redis_failure: Option<OnRedisFailure>,
    /// What goes into the response's dynamic metadata.
    pub metadata: Option<Any>,
    /// For each entry, whether metrics tell its values apart; empty where none is.
    pub told_values: Box<[bool]>,
}

/// One limit of a rule.
#[derive(Clone, Debug)]
pub struct RuleLimit {
    /// Its name to the store, the same in every process and after every reload.
    pub id: RuleId,
    /// Where it is written.
    pub source: Source,
    /// What it admits.
    pub allowance: Allowance,
    /// Its name in answers; empty without one.
    pub name: Box<str>,
    /// What tells its buckets from those of another limit for the same entries: its name, or else its unit.
    pub limit_id: Box<str>,
    /// Names of limits that do not apply where this one does.
    pub replaces: Box<[Box<str>]>,
    /// The share of it from which on callers are warned.
    pub warn_at: Option<f64>,
    /// What a client gets whom it denies.
    pub denial: Option<Arc<Denial>>,
    /// Counts what it decides.
    pub tally: Tally,
}

/// What a limit admits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Allowance {
    /// Everything.
    Unlimited,
    /// So much.
    Limited {
        /// As buckets know it.
        limit: Limit,
        /// As it is written.
        requests_per_unit: u32,
        /// As it is written.
        unit: Unit,
    },
}

impl Allowance {
    /// The limit, where there is one.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        match self {
            Self::Limited { limit, .. } => Some(*limit),
            Self::Unlimited => None,
        }
    }
}

impl Rule {
    /// The limits that a descriptor meets here: the rule's own, and those of its subject's tier. Each comes with the moment
    /// since when it is in force for that subject, if that is later than [`Limit::in_force_since`] says.
    pub fn met<'r>(&'r self, entries: &[Entry<'_>]) -> impl Iterator<Item = (&'r RuleLimit, Micros)> {
        let on_tier = self.tier(entries);
        let of_tier = on_tier.map_or(&[][..], |on_tier| &on_tier.tier.limits);
        let since = on_tier.map_or(0, |on_tier| on_tier.since);
        self.limits.iter().map(|limit| (limit, 0)).chain(of_tier.iter().map(move |limit| (limit, since)))
    }

    /// The tier of a descriptor's subject, if that matters here.
    #[must_use]
    pub fn tier<'r>(&'r self, entries: &[Entry<'_>]) -> Option<OnTier<'r>> {
        self.by_tier.as_deref()?.of(entries)
    }

    /// The limits that any descriptor may meet here: the rule's own, and those of all tiers.
    pub fn all_limits(&self) -> impl Iterator<Item = &RuleLimit> {
        let tiers = self.by_tier.iter().flat_map(|by_tier| &by_tier.tiers);
        self.limits.iter().chain(tiers.flat_map(|tier| &tier.limits))
    }

    pub(super) fn all_limits_mut(&mut self) -> impl Iterator<Item = &mut RuleLimit> {
        let tiers = self.by_tier.iter_mut().flat_map(|by_tier| &mut by_tier.tiers);
        self.limits.iter_mut().chain(tiers.flat_map(|tier| &mut tier.limits))
    }

    /// What metrics call one of its limits: by its name, or else by each level's key and value, as in
    /// `user_id.path_/login*`, and by its unit if it is one of several. Limits of a `domain` that share a name are one
    /// to them.
    #[must_use]
    pub fn metric_name<'r>(&'r self, limit: &'r RuleLimit, domain: &str) -> Cow<'r, str> {
        if !limit.name.is_empty() {
            return Cow::Borrowed(&limit.name);
        }
        let path = self.label.strip_prefix(domain).and_then(|rest| rest.strip_prefix('.'));
        let path = path.unwrap_or(&self.label);
        if self.limits.len() > 1 {
            Cow::Owned(format!("{path}:{}", limit.limit_id))
        } else {
            Cow::Borrowed(path)
        }
    }

    /// What so many hits take from a bucket.
    #[must_use]
    pub fn cost_of(&self, hits: Hits) -> Hits {
        let times = |hits: u64| hits.saturating_mul(u64::from(self.cost));
        match hits {
            Hits::Take(hits) if self.overdraft => Hits::Overdraft(times(hits)),
            Hits::Take(hits) => Hits::Take(times(hits)),
            Hits::GiveBack(hits) => Hits::GiveBack(times(hits)),
            Hits::Overdraft(hits) => Hits::Overdraft(times(hits)),
            // A question, and what only stores say to one another.
            Hits::Peek | Hits::Refund { .. } | Hits::Add { .. } | Hits::Raise { .. } => hits,
        }
    }
}
