//! From a `rate_limit` as it is written to a limit.

use std::num::NonZeroU32;

use smallvec::SmallVec;

use super::{Scope, Trail, is_true, rule_id};
use crate::bucket::{Calendar, Limit};
use crate::rules::file::{Algorithm, Descriptor, RateLimit};
use crate::rules::problem::{Path, Place};
use crate::rules::rule::{Allowance, RuleLimit};
use crate::rules::unit::Unit;
use crate::rules::yaml::Field;

fn algorithm(rate_limit: &RateLimit) -> Algorithm {
    rate_limit.algorithm.get().copied().unwrap_or(Algorithm::TokenBucket)
}

/// Where the fixed windows of a unit begin.
fn calendar(unit: Unit) -> Calendar {
    match unit {
        Unit::Week => Calendar::Week,
        Unit::Month => Calendar::Month,
        Unit::Year => Calendar::Year,
        Unit::Second | Unit::Minute | Unit::Hour | Unit::Day | Unit::Other(_) => Calendar::Epoch,
    }
}

impl Scope<'_> {
    /// The limits of a descriptor, those that make sense.
    pub(super) fn limits(
        &self,
        descriptor: &Descriptor,
        path: &Path<'_>,
        trail: &Trail<'_>,
    ) -> SmallVec<[RuleLimit; 1]> {
        let mut limits = SmallVec::new();
        if let Field::Given(place, rate_limit) = &descriptor.rate_limit {
            limits.extend(self.limit(*place, rate_limit, &Path::Key(path, "rate_limit"), trail));
        }
        let Field::Given(place, list) = &descriptor.rate_limits else { return limits };
        let path = &Path::Key(path, "rate_limits");
        if !descriptor.rate_limit.is_absent() {
            let message = "there is a `rate_limit` beside it: put that into this list";
            self.problems.error(*place, path, message);
        } else if list.is_empty() {
            self.problems.error(*place, path, "the list is empty: remove it, or write a limit into it");
        }
        for (index, item) in list.iter().enumerate() {
            let Field::Given(place, rate_limit) = item else { continue };
            let path = &Path::Index(path, index);
            let Some(limit) = self.limit(*place, rate_limit, path, trail) else { continue };
            if limit.allowance == Allowance::Unlimited && list.len() > 1 {
                let message = "what is unlimited says nothing among other limits: remove it, or the others";
                self.problems.error(*place, path, message);
            } else if limits.iter().any(|other| other.limit_id == limit.limit_id) {
                let message = format!(
                    "a limit above has the id `{}` too, and they would share a bucket: give one of them another `name`",
                    limit.limit_id
                );
                self.problems.error(*place, path, message);
            }
            limits.push(limit);
        }
        limits
    }

    /// A limit, if it makes sense.
    fn limit(
        &self,
        place: Place,
        rate_limit: &RateLimit,
        path: &Path<'_>,
        trail: &Trail<'_>,
    ) -> Option<RuleLimit> {
        let allowance = self.allowance(place, rate_limit, path);
        let replaces = self.replaces(rate_limit, path);
        let allowance = allowance?;
        let name = rate_limit.name.get().map_or("", String::as_str);
        let limit_id: Box<str> = match allowance {
            _ if !name.is_empty() => name.into(),
            Allowance::Limited { unit, .. } => unit.to_string().into(),
            Allowance::Unlimited => "unlimited".into(),
        };
        Some(RuleLimit {
            id: rule_id(self.domain, trail, Some(&limit_id)),
            source: self.source(place),
            allowance,
            name: name.into(),
            limit_id,
            replaces,
            warn_at: None,
            denial: self.denial(&rate_limit.message, &rate_limit.body, path),
            tally: Default::default(),
        })
    }

    /// What a limit admits, if that makes sense.
    pub(super) fn allowance(
        &self,
        place: Place,
        rate_limit: &RateLimit,
        path: &Path<'_>,
    ) -> Option<Allowance> {
        if is_true(&rate_limit.unlimited) {
            if let Some(place) = rate_limit.unit.place() {
                let message = "what is unlimited has no unit: remove `unit`, or `unlimited`";
                self.problems.error(place, &Path::Key(path, "unit"), message);
            }
            if let Some(place) = rate_limit.requests_per_unit.place() {
                let path = Path::Key(path, "requests_per_unit");
                self.problems.warning(place, &path, "says nothing beside `unlimited`");
            }
            if let Some(place) = rate_limit.burst.place() {
                let message = "what is unlimited has no burst: remove `burst`, or `unlimited`";
                self.problems.error(place, &Path::Key(path, "burst"), message);
            }
            if let Some(place) = rate_limit.algorithm.place() {
                let message = "what is unlimited has no algorithm: remove `algorithm`, or `unlimited`";
                self.problems.error(place, &Path::Key(path, "algorithm"), message);
            }
            return Some(Allowance::Unlimited);
        }

        if rate_limit.unit.is_absent() {
            let message = "missing: a limit is so many requests per `unit`, such as minute or 30s";
            self.problems.error(place, &Path::Key(path, "unit"), message);
        }
        if rate_limit.requests_per_unit.is_absent() {
            let message = "missing, which is 0: nothing will be admitted. Write 0 if that is meant";
            self.problems.warning(place, &Path::Key(path, "requests_per_unit"), message);
        }
        let requests_per_unit = match &rate_limit.requests_per_unit {
            Field::Absent => Some(0),
            field => field.get().copied(),
        };
        let burst = self.burst(rate_limit, requests_per_unit, path);
        let (unit, requests_per_unit): (Unit, u32) = (*rate_limit.unit.get()?, requests_per_unit?);
        let limit = match NonZeroU32::new(requests_per_unit) {
            None => Limit::blocked(unit.micros()),
            Some(requests) => match algorithm(rate_limit) {
                Algorithm::TokenBucket => {
                    let limit = Limit::new(requests, unit.micros());
                    burst.map_or(limit, |burst| limit.with_burst(burst))
                }
                Algorithm::FixedWindow => Limit::fixed_window(requests, unit.micros(), calendar(unit)),
                Algorithm::SlidingWindow => Limit::sliding_window(requests, unit.micros()),
            },
        };
        Some(Allowance::Limited { limit: limit.since(self.since), requests_per_unit, unit })
    }

    fn burst(
        &self,
        rate_limit: &RateLimit,
        requests_per_unit: Option<u32>,
        path: &Path<'_>,
    ) -> Option<NonZeroU32> {
        let Field::Given(place, burst) = &rate_limit.burst else { return None };
        let path = Path::Key(path, "burst");
        if algorithm(rate_limit) != Algorithm::TokenBucket {
            let message = "a window admits its `requests_per_unit` at once, so there is no burst: remove it, or use \
                           `algorithm: token_bucket`";
            self.problems.error(*place, &path, message);
        } else if *burst == 0 {
            let message = "a burst is at least 1; to admit nothing, write `requests_per_unit: 0`";
            self.problems.error(*place, &path, message);
        } else if requests_per_unit == Some(0) {
            self.problems.error(
                *place,
                &path,
                "`requests_per_unit: 0` admits nothing, so there is no burst: remove it",
            );
        }
        NonZeroU32::new(*burst)
    }

    fn replaces(&self, rate_limit: &RateLimit, path: &Path<'_>) -> Box<[Box<str>]> {
        let own = rate_limit.name.get().filter(|name| !name.is_empty());
        let path = Path::Key(path, "replaces");
        let mut names = Vec::new();
        for (index, item) in rate_limit.replaces.get().into_iter().flatten().enumerate() {
            let path = Path::Index(&path, index);
            let Field::Given(place, replaces) = item else { continue };
            match &replaces.name {
                Field::Given(place, name) if Some(name) == own => {
                    self.problems.error(*place, &Path::Key(&path, "name"), "a limit cannot replace itself");
                }
                Field::Given(_, name) if !name.is_empty() => names.push(name.as_str().into()),
                Field::Broken => {}
                Field::Given(..) | Field::Absent => {
                    let message = "missing: say the `name` of the limit that gives way";
                    let place = replaces.name.place().unwrap_or(*place);
                    self.problems.error(place, &Path::Key(&path, "name"), message);
                }
            }
        }
        names.into()
    }
}
