//! Between the protocol's messages and the plain types that everything behind the service works on.

use std::cmp::Reverse;
use std::num::NonZeroU32;

use prost_types::Duration;
use smallvec::SmallVec;
use tonic::Status;

use super::LimitSource;
use crate::bucket::{Hits, Limit, Outcome, Retry};
use crate::clock::Micros;
use crate::decision::{Charge, Mode, Verdict};
use crate::proto;
use crate::proto::{Code, DescriptorStatus, RateLimit, RateLimitRequest, RateLimitUnit};
use crate::rules::{Allowance, Entry, Unit};

/// A descriptor that has been looked over.
pub(super) struct Descriptor<'a> {
    pub(super) entries: SmallVec<[Entry<'a>; 2]>,
    pub(super) limit: Option<Override>,
    pub(super) hits: Hits,
}

/// A limit that a request brings along, in place of the rules'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// Requests per unit; 0 admits nothing.
    pub requests_per_unit: u32,
    /// The unit.
    pub unit: Unit,
}

impl Override {
    pub(super) fn limit(&self) -> Limit {
        match NonZeroU32::new(self.requests_per_unit) {
            Some(requests) => Limit::new(requests, self.unit.micros()),
            None => Limit::blocked(self.unit.micros()),
        }
    }
}

/// Looks a request over. Says which part of it cannot be meant.
pub(super) fn descriptors(
    request: &RateLimitRequest,
    max_descriptors: usize,
) -> Result<SmallVec<[Descriptor<'_>; 2]>, Status> {
    if request.domain.is_empty() {
        return Err(Status::invalid_argument(
            "domain: empty; a rate limit filter names the domain of its rules",
        ));
    }
    if request.descriptors.is_empty() {
        return Err(Status::invalid_argument("descriptors: none; a request asks about at least one"));
    }
    let count = request.descriptors.len();
    if count > max_descriptors {
        let message =
            format!("descriptors: {count}, and at most {max_descriptors} are taken (--max-descriptors)");
        return Err(Status::invalid_argument(message));
    }
    request
        .descriptors
        .iter()
        .enumerate()
        .map(|(index, message)| descriptor(index, message, request))
        .collect()
}

fn descriptor<'a>(
    index: usize,
    message: &'a proto::RateLimitDescriptor,
    request: &RateLimitRequest,
) -> Result<Descriptor<'a>, Status> {
    if let Some(empty) = message.entries.iter().position(|entry| entry.key.is_empty()) {
        return Err(Status::invalid_argument(format!("descriptors[{index}].entries[{empty}].key: empty")));
    }
    let limit = match &message.limit {
        None => None,
        Some(limit) => {
            let Some(unit) = override_unit(limit.unit) else {
                let message = format!("descriptors[{index}].limit.unit: {} is no unit", limit.unit);
                return Err(Status::invalid_argument(message));
            };
            Some(Override { requests_per_unit: limit.requests_per_unit, unit })
        }
    };
    // A descriptor's own count wins, and its 0 is a question; a request's 0 is the same as none, which is 1.
    let count = message.hits_addend.unwrap_or_else(|| u64::from(request.hits_addend.max(1)));
    let hits = match count {
        count if message.is_negative_hits => Hits::GiveBack(count),
        0 => Hits::Peek,
        count => Hits::Take(count),
    };
    let entries =
        message.entries.iter().map(|entry| Entry { key: &entry.key, value: &entry.value }).collect();
    Ok(Descriptor { entries, limit, hits })
}

fn override_unit(unit: i32) -> Option<Unit> {
    match RateLimitUnit::try_from(unit).ok()? {
        RateLimitUnit::Unknown => None,
        RateLimitUnit::Second => Some(Unit::Second),
        RateLimitUnit::Minute => Some(Unit::Minute),
        RateLimitUnit::Hour => Some(Unit::Hour),
        RateLimitUnit::Day => Some(Unit::Day),
        RateLimitUnit::Month => Some(Unit::Month),
        RateLimitUnit::Year => Some(Unit::Year),
    }
}

/// The limit as a status shows it. A window that the API has no unit for is `UNKNOWN`.
pub(super) fn current_limit(source: LimitSource<'_>) -> RateLimit {
    let (name, requests_per_unit, unit) = match source {
        LimitSource::Rule(limit) => match limit.allowance {
            Allowance::Limited { requests_per_unit, unit, .. } => {
                (limit.name.to_string(), requests_per_unit, unit)
            }
            Allowance::Unlimited => return RateLimit::default(),
        },
        LimitSource::Request(limit) => (String::new(), limit.requests_per_unit, limit.unit),
    };
    let unit = match unit {
        Unit::Second => proto::Unit::Second,
        Unit::Minute => proto::Unit::Minute,
        Unit::Hour => proto::Unit::Hour,
        Unit::Day => proto::Unit::Day,
        Unit::Week => proto::Unit::Week,
        Unit::Month => proto::Unit::Month,
        Unit::Year => proto::Unit::Year,
        Unit::Other(_) => proto::Unit::Unknown,
    };
    RateLimit { name, requests_per_unit, unit: unit.into() }
}

/// The status of a descriptor that meets no limit.
pub(super) fn no_limit() -> DescriptorStatus {
    DescriptorStatus { code: Code::Ok.into(), ..DescriptorStatus::default() }
}

/// The status of a descriptor whose limit admits everything.
pub(super) fn unlimited() -> DescriptorStatus {
    DescriptorStatus { limit_remaining: u32::MAX, ..no_limit() }
}

/// The status of a descriptor that was charged, or asked to be.
pub(super) fn status(charge: &Charge, verdict: &Verdict, limit: RateLimit) -> DescriptorStatus {
    let (over, reset) = match verdict.outcome {
        Outcome::Fits => (false, verdict.full_in),
        Outcome::Over(Retry::In(wait)) => (true, wait),
        Outcome::Over(Retry::Never) => (true, charge.limit.window()),
    };
    let shadowed = charge.mode == Mode::Shadow;
    let code = if over && !shadowed { Code::OverLimit } else { Code::Ok };
    DescriptorStatus {
        code: code.into(),
        current_limit: Some(limit),
        limit_remaining: if over && shadowed { 0 } else { verdict.remaining },
        duration_until_reset: Some(Duration { seconds: seconds(reset), nanos: 0 }),
        quota: None,
    }
}

/// Orders verdicts by how tight they are, the tightest first: what never fits, what fits last, what has the least left.
pub(super) fn tightness(verdict: &Verdict) -> (Reverse<Option<Micros>>, u32) {
    let wait = match verdict.outcome {
        Outcome::Fits => None,
        Outcome::Over(Retry::In(wait)) => Some(wait),
        Outcome::Over(Retry::Never) => Some(Micros::MAX),
    };
    (Reverse(wait), verdict.remaining)
}

/// Whole seconds, rounded up.
pub(super) fn seconds(micros: Micros) -> i64 {
    i64::try_from(micros.div_ceil(1_000_000)).unwrap_or(i64::MAX)
}
