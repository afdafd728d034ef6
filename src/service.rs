//! `envoy.service.ratelimit.v3.RateLimitService`: a request in, the rules that it meets, a decision, a response out.
//!
//! What the proxy itself got wrong (no domain, an empty key) is answered with `INVALID_ARGUMENT`. What a proxy's client
//! can cause is decided, never refused: a proxy lets a call through when its limiter answers with an error, so an odd
//! byte in a header would be a way around every limit.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use smallvec::SmallVec;
use tonic::{Request, Response, Status};

use crate::bucket::Limit;
use crate::clock::Micros;
use crate::decision::{BucketKey, Charge, Decision, Mode, RuleId};
use crate::limiter::Limiter;
use crate::proto::{Code, DescriptorStatus, RateLimitRequest, RateLimitResponse, RateLimitService};
use crate::rules::{Allowance, Applies, Entry, Rule, RuleSet};
use crate::store::KeySeed;

mod convert;
mod headers;

pub use convert::Override;

/// The rules in force; empty until some are loaded.
pub type CurrentRules = Arc<ArcSwapOption<RuleSet>>;

/// What of the service can be set.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Descriptors that one request may have.
    pub max_descriptors: usize,
    /// Whether every limit is counted only, and none denies.
    pub shadow_mode: bool,
    /// Whether every limit is a quota: a request is denied when all of its limits are over.
    pub quota_mode: bool,
    /// Whether responses carry dynamic metadata.
    pub dynamic_metadata: bool,
}

/// The service.
#[derive(Debug)]
pub struct Service {
    rules: CurrentRules,
    limiter: Arc<Limiter>,
    options: Options,
}

/// What a descriptor of a request comes to.
enum Asked<'r> {
    /// No limit.
    Nothing,
    /// A limit that admits everything.
    Unlimited,
    /// The charge at this index.
    Charge { index: usize, source: LimitSource<'r> },
}

/// Where a limit comes from.
#[derive(Clone, Copy)]
enum LimitSource<'r> {
    Rule(&'r Rule),
    Request(Override),
}

impl Service {
    /// A service that decides by `rules`, whichever are in force when a request comes.
    #[must_use]
    pub fn new(rules: CurrentRules, limiter: Arc<Limiter>, options: Options) -> Self {
        Self { rules, limiter, options }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// `UNAVAILABLE` before any rules are loaded, `INVALID_ARGUMENT` for what only a misconfigured proxy sends.
    pub fn answer(&self, request: &RateLimitRequest) -> Result<RateLimitResponse, Status> {
        let rules = self.rules.load();
        let Some(rules) = &*rules else {
            return Err(Status::unavailable("no rules are loaded yet"));
        };
        let descriptors = convert::descriptors(request, self.options.max_descriptors)?;
        let Some(domain) = rules.domain(&request.domain) else {
            tracing::debug!(domain = request.domain, "unknown domain");
            return Ok(convert::nothing_applies(descriptors.len()));
        };

        let applies = domain.resolve(descriptors.iter().map(|descriptor| {
            let has_own_limit = descriptor.limit.is_some();
            (!has_own_limit).then_some(&descriptor.entries[..])
        }));
        let mut charges: SmallVec<[Charge; 4]> = SmallVec::new();
        let mut asked: SmallVec<[Asked<'_>; 4]> = SmallVec::new();
        for (descriptor, applies) in descriptors.iter().zip(&applies) {
            let index = charges.len();
            asked.push(match (descriptor.limit, applies) {
                (Some(limit), _) => {
                    charges.push(self.override_charge(&request.domain, descriptor, &limit));
                    Asked::Charge { index, source: LimitSource::Request(limit) }
                }
                (None, Applies::Nothing | Applies::Replaced(_)) => Asked::Nothing,
                (None, Applies::Rule(rule)) => match &rule.allowance {
                    Allowance::Unlimited => Asked::Unlimited,
                    Allowance::Limited { limit, .. } => {
                        charges.push(self.rule_charge(&request.domain, descriptor, rule, *limit));
                        Asked::Charge { index, source: LimitSource::Rule(rule) }
                    }
                },
            });
        }

        let decision = self.limiter.decide(&charges);
        Ok(self.response(request, &asked, &charges, &decision))
    }

    fn mode(&self, mode: Mode) -> Mode {
        match mode {
            _ if self.options.shadow_mode => Mode::Shadow,
            Mode::Enforced if self.options.quota_mode => Mode::Quota,
            mode => mode,
        }
    }

    fn rule_charge(
        &self,
        domain: &str,
        descriptor: &convert::Descriptor<'_>,
        rule: &Rule,
        limit: Limit,
    ) -> Charge {
        let mut key = self.limiter.keys().key(domain);
        for (Entry { key: name, value }, shared) in descriptor.entries.iter().zip(&rule.shared) {
            match shared {
                Some(pattern) => key.shared_entry(name, pattern),
                None => key.entry(name, value),
            }
        }
        Charge {
            bucket: key.limit(rule.limit_id.as_bytes()),
            rule: rule.id,
            limit,
            hits: descriptor.hits,
            mode: self.mode(rule.mode),
        }
    }

    /// A limit that a request brings has buckets of its own, one for each unit: it may change with every request.
    fn override_charge(
        &self,
        domain: &str,
        descriptor: &convert::Descriptor<'_>,
        limit: &Override,
    ) -> Charge {
        let unit = limit.unit.name().unwrap_or_default();
        let mut key = self.limiter.keys().key(domain);
        for Entry { key: name, value } in &descriptor.entries {
            key.entry(name, value);
        }
        let BucketKey(rule) = KeySeed::fixed(0).key(domain).limit_override(unit.as_bytes());
        Charge {
            bucket: key.limit_override(unit.as_bytes()),
            rule: RuleId((rule >> 64) as u64),
            limit: limit.limit().since(Micros::MAX),
            hits: descriptor.hits,
            mode: self.mode(Mode::Enforced),
        }
    }

    fn response(
        &self,
        request: &RateLimitRequest,
        asked: &[Asked<'_>],
        charges: &[Charge],
        decision: &Decision,
    ) -> RateLimitResponse {
        let statuses: Vec<DescriptorStatus> = asked
            .iter()
            .map(|asked| match asked {
                Asked::Nothing => convert::no_limit(),
                Asked::Unlimited => convert::unlimited(),
                Asked::Charge { index, source } => match (charges.get(*index), decision.verdicts.get(*index))
                {
                    (Some(charge), Some(verdict)) => {
                        convert::status(charge, verdict, convert::current_limit(*source))
                    }
                    _ => convert::no_limit(),
                },
            })
            .collect();
        let code = if decision.denied { Code::OverLimit } else { Code::Ok };
        let dynamic_metadata = self.options.dynamic_metadata.then(|| {
            let passed = asked.iter().zip(&statuses).filter(|(_, status)| status.code == i32::from(Code::Ok));
            let metadata = passed.filter_map(|(asked, _)| match asked {
                Asked::Charge { source: LimitSource::Rule(rule), .. } => rule.metadata.as_ref(),
                _ => None,
            });
            convert::dynamic_metadata(request, metadata)
        });
        RateLimitResponse {
            overall_code: code.into(),
            statuses,
            response_headers_to_add: headers::retry_after(charges, decision).into_iter().collect(),
            dynamic_metadata,
            ..RateLimitResponse::default()
        }
    }
}

#[tonic::async_trait]
impl RateLimitService for Service {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        self.answer(request.get_ref()).map(Response::new)
    }
}

#[cfg(test)]
mod tests;
