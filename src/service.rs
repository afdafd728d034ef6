//! `envoy.service.ratelimit.v3.RateLimitService`: a request in, the rules that it meets, a decision, a response out.
//!
//! What the proxy itself got wrong (no domain, an empty key) is answered with `INVALID_ARGUMENT`. What a proxy's client
//! can cause is decided, never refused: a proxy lets a call through when its limiter answers with an error, so an odd
//! byte in a header would be a way around every limit.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwapOption;
use smallvec::SmallVec;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::bucket::{Hits, Limit, Outcome};
use crate::clock::{self, Micros};
use crate::decision::{BucketKey, Charge, Decision, Mode, RuleId, Verdict};
use crate::limiter::{Limiter, Names};
use crate::proto::{Code, DescriptorStatus, RateLimitRequest, RateLimitResponse, RateLimitService};
use crate::rules::{Allowance, Denial, Domain, Entry, HashTag, Headers, Resolved, Rule, RuleLimit, RuleSet};
use crate::serve::{Policy, Shed};
use crate::store::{Identity, KeySeed, LocalStore, NameBuilder};
use crate::telemetry::Recorder;
use crate::telemetry::metrics::CallResult;
use crate::telemetry::traces::CallSpan;

mod convert;
mod count;
mod headers;
mod metadata;
pub(crate) mod trial;

pub use convert::Override;

/// The rules in force; empty until some are loaded.
pub type CurrentRules = Arc<ArcSwapOption<RuleSet>>;

/// What of the service can be set.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Descriptors that one request may have.
    pub max_descriptors: usize,
    /// Whether every limit is counted only, and none denies.
    pub shadow_mode: bool,
    /// Whether every limit is a quota: a request is denied when all of its limits are over.
    pub quota_mode: bool,
    /// How many bursts a bucket may be in debt.
    pub max_debt: f64,
    /// Whether responses carry dynamic metadata.
    pub dynamic_metadata: bool,
    /// The share of a burst from which on metrics call a limit near.
    pub near_limit: f64,
    /// Headers that tell of limits, where a domain does not choose its own.
    pub headers: Headers,
}

impl Default for Options {
    /// What the command line has where nothing is said.
    fn default() -> Self {
        Self {
            max_descriptors: 64,
            shadow_mode: false,
            quota_mode: false,
            max_debt: 10.0,
            dynamic_metadata: false,
            near_limit: 0.8,
            headers: Headers::default(),
        }
    }
}

/// The service.
#[derive(Debug)]
pub struct Service {
    rules: CurrentRules,
    limiter: Arc<Limiter>,
    options: Options,
    /// The store in Redis that limits of a second are in, where the rules do not say otherwise.
    per_second: Option<String>,
    recorder: Recorder,
}

/// What a descriptor of a request comes to.
enum Asked<'r> {
    /// No limit.
    Nothing,
    /// A limit that admits everything.
    Unlimited { limit: &'r RuleLimit, hits: Hits },
    /// These charges, by this rule; without one, by a limit that the request brought.
    Charges { of: Range<usize>, rule: Option<&'r Rule> },
}

/// Where a limit comes from.
#[derive(Clone, Copy)]
enum LimitSource<'r> {
    Rule(&'r RuleLimit),
    Request(Override),
}

/// The limits that a request meets, and what it wants of them.
#[derive(Default)]
struct Plan<'r> {
    /// For each descriptor.
    asked: SmallVec<[Asked<'r>; 2]>,
    charges: SmallVec<[Charge; 2]>,
    /// For each charge.
    limits: SmallVec<[LimitSource<'r>; 2]>,
    /// For each charge, where the store needs them.
    names: Names,
    /// The domain, if it has rules.
    domain: Option<&'r Domain>,
}

/// A charge, the verdict on it and where its limit is from.
#[derive(Clone, Copy)]
struct Charged<'p, 'r> {
    charge: &'p Charge,
    verdict: &'p Verdict,
    limit: LimitSource<'r>,
}

impl<'r> Plan<'r> {
    /// All charges.
    fn all_charged<'p>(&'p self, decision: &'p Decision) -> impl Iterator<Item = Charged<'p, 'r>> {
        let charges = self.charges.iter().zip(&decision.verdicts).zip(&self.limits);
        charges.map(|((charge, verdict), limit)| Charged { charge, verdict, limit: *limit })
    }

    /// The charges of a descriptor.
    fn charged<'p>(
        &'p self,
        of: &Range<usize>,
        decision: &'p Decision,
    ) -> impl Iterator<Item = Charged<'p, 'r>> {
        self.all_charged(decision).skip(of.start).take(of.len())
    }
}

impl<'r> Charged<'_, 'r> {
    /// Whether it fits, and reaches the rule's `warn_at`. Nobody is warned with a denial.
    fn warns(&self) -> bool {
        let LimitSource::Rule(RuleLimit { warn_at: Some(share), .. }) = self.limit else { return false };
        let burst = self.charge.limit.burst();
        let used = burst - f64::from(self.verdict.remaining);
        self.verdict.outcome == Outcome::Fits && used >= burst * share
    }

    /// What the client gets, if this is among what denies.
    fn denial(&self) -> Option<&'r Denial> {
        let is_over = self.verdict.outcome != Outcome::Fits && self.charge.mode != Mode::Shadow;
        match self.limit {
            LimitSource::Rule(limit) if is_over => limit.denial.as_deref(),
            _ => None,
        }
    }
}

/// Of some charges the one whose limit is tightest; the first of several.
fn tightest<'p, 'r>(charged: impl Iterator<Item = Charged<'p, 'r>>) -> Option<Charged<'p, 'r>> {
    charged.reduce(|shown, other| {
        if convert::tightness(other.verdict) < convert::tightness(shown.verdict) { other } else { shown }
    })
}

/// Tells the entries of a bucket's identity; `shared` says where a pattern stands in for a value.
fn identify(
    identity: &mut impl Identity,
    descriptor: &convert::Descriptor<'_>,
    shared: &[Option<Box<[u8]>>],
) {
    for (index, Entry { key, value }) in descriptor.entries.iter().enumerate() {
        match shared.get(index) {
            Some(Some(pattern)) => identity.shared_entry(key, pattern),
            _ => identity.entry(key, value),
        }
    }
}

/// Whether a caller is among so many of a hundred: the same ones every time and in every process, whatever limit it is.
fn is_among(percent: u32, domain: &str, descriptor: &convert::Descriptor<'_>, rule: &Rule) -> bool {
    let mut key = KeySeed::fixed(0).key(domain);
    identify(&mut key, descriptor, &rule.shared);
    let BucketKey(hash) = key.limit(b"enforce_percent");
    hash % 100 < u128::from(percent)
}

/// Begins what a bucket is called in Redis, in the store of this name and under the domain's hash tag.
fn name(
    store: Option<&str>,
    domain: &str,
    rules: Option<&Domain>,
    descriptor: &convert::Descriptor<'_>,
    shared: &[Option<Box<[u8]>>],
) -> NameBuilder {
    let mut name = NameBuilder::in_store(store, domain);
    match rules.and_then(Domain::hash_tag) {
        None => {}
        Some(HashTag::Domain) => name = name.tagged_by_domain(domain),
        Some(HashTag::Entry(key)) => {
            if let Some(place) = descriptor.entries.iter().position(|entry| *entry.key == **key)
                && let Some(entry) = descriptor.entries.get(place)
            {
                name = match shared.get(place) {
                    Some(Some(pattern)) => name.tagged_by_shared_entry(domain, key, pattern),
                    _ => name.tagged_by_entry(domain, key, entry.value),
                };
            }
        }
    }
    identify(&mut name, descriptor, shared);
    name
}

fn no_rules() -> Status {
    Status::unavailable("no rules are loaded yet")
}

impl Service {
    /// A service that decides by `rules`, whichever are in force when a request comes.
    #[must_use]
    pub fn new(rules: CurrentRules, limiter: Arc<Limiter>, options: Options, recorder: Recorder) -> Self {
        Self { rules, limiter, options, per_second: None, recorder }
    }

    /// The same, with the limits of a second in the store in Redis of this name, where the rules do not say otherwise.
    #[must_use]
    pub fn with_per_second(mut self, store: Option<String>) -> Self {
        self.per_second = store;
        self
    }

    /// Counts a call whose request could not be read: there is nothing to answer but that.
    pub fn count_unreadable(&self) {
        self.recorder.metrics.called(CallResult::Unreadable);
    }

    /// Answers one request, and counts what comes of it.
    ///
    /// # Errors
    /// `UNAVAILABLE` before any rules are loaded, `INVALID_ARGUMENT` for what only a misconfigured proxy sends.
    pub async fn answer(&self, request: &RateLimitRequest) -> Result<RateLimitResponse, Status> {
        let start = clock::stopwatch();
        self.ended(start, self.decide(request).await)
    }

    /// Counts a call that ends now.
    fn ended(
        &self,
        start: Instant,
        answer: Result<RateLimitResponse, Status>,
    ) -> Result<RateLimitResponse, Status> {
        self.recorder.metrics.called(count::result(&answer));
        self.recorder.metrics.call_duration.record_time(start.elapsed());
        answer
    }

    /// The same for a call that nothing has to be waited for, if it is one: its buckets are in memory, and it is not traced.
    pub fn answer_at_once(&self, request: &RateLimitRequest) -> Option<Result<RateLimitResponse, Status>> {
        if self.recorder.traces.is_some() {
            return None;
        }
        let store = self.limiter.memory()?;
        let start = clock::stopwatch();
        Some(self.ended(start, self.decide_in(store, request)))
    }

    /// The same for a call with this metadata, which may say that it is traced.
    ///
    /// # Errors
    /// The same.
    pub async fn answer_call(
        &self,
        request: &RateLimitRequest,
        metadata: &MetadataMap,
    ) -> Result<RateLimitResponse, Status> {
        match self.traced(metadata) {
            None => self.answer(request).await,
            Some(span) => Box::pin(self.answer_traced(request, span)).await,
        }
    }

    /// The span of a call with this metadata, if it is traced.
    pub(crate) fn traced(&self, metadata: &MetadataMap) -> Option<CallSpan> {
        self.recorder.traces.as_ref().and_then(|traces| traces.call(metadata))
    }

    /// Answers a call that is traced.
    pub(crate) async fn answer_traced(
        &self,
        request: &RateLimitRequest,
        span: CallSpan,
    ) -> Result<RateLimitResponse, Status> {
        let Recorder { metrics, clock, .. } = &self.recorder;
        let start = clock::stopwatch();
        let answer = span.around(Box::pin(self.decide(request))).await;
        let result = count::result(&answer);
        metrics.called(result);
        metrics.call_duration.record_time_in(start.elapsed(), span.place(), clock.now());
        span.end(&request.domain, request.descriptors.len(), answer.as_ref().map(|_| result.label()));
        answer
    }

    async fn decide(&self, request: &RateLimitRequest) -> Result<RateLimitResponse, Status> {
        if let Some(store) = self.limiter.memory() {
            return self.decide_in(store, request);
        }
        let rules = self.rules.load_full().ok_or_else(no_rules)?;
        let mut plan = self.plan(&rules, request)?;
        let names = std::mem::take(&mut plan.names);
        let decision = self.limiter.decide(&plan.charges, &names).await;
        self.count(request, &plan, &decision);
        Ok(self.response(request, &plan, &decision))
    }

    /// Decides by buckets in memory.
    fn decide_in(&self, store: &LocalStore, request: &RateLimitRequest) -> Result<RateLimitResponse, Status> {
        // Without an await in between, the rules in force need not be counted as in use.
        let rules = self.rules.load();
        let plan = self.plan(rules.as_ref().ok_or_else(no_rules)?, request)?;
        let decision = store.decide(&plan.charges);
        self.count(request, &plan, &decision);
        Ok(self.response(request, &plan, &decision))
    }

    /// Finds the limits that a request meets.
    fn plan<'r>(&self, rules: &'r RuleSet, request: &RateLimitRequest) -> Result<Plan<'r>, Status> {
        let descriptors = convert::descriptors(request, self.options.max_descriptors)?;
        let mut plan = Plan::default();
        let Some(domain) = rules.domain(&request.domain) else {
            tracing::debug!(domain = request.domain, "unknown domain");
            self.recorder.metrics.unknown_domain.increment();
            plan.asked.extend(descriptors.iter().map(|_| Asked::Nothing));
            return Ok(plan);
        };
        plan.domain = Some(domain);
        let resolved = domain.resolve(descriptors.iter().map(|descriptor| {
            let has_own_limit = descriptor.limit.is_some();
            (!has_own_limit).then_some(&descriptor.entries[..])
        }));
        for (descriptor, rule) in descriptors.iter().zip(&resolved.rules) {
            let asked = match (descriptor.limit, *rule) {
                (Some(limit), _) => {
                    let first = plan.charges.len();
                    self.charge_override(&mut plan, &request.domain, descriptor, limit);
                    Asked::Charges { of: first..plan.charges.len(), rule: None }
                }
                (None, None) => Asked::Nothing,
                (None, Some(rule)) => {
                    self.charge_rule(&mut plan, &request.domain, descriptor, rule, &resolved)
                }
            };
            plan.asked.push(asked);
        }
        Ok(plan)
    }

    /// The store in Redis that the buckets of a limit are in, if that has a name.
    fn store_of<'s>(&'s self, domain: Option<&'s Domain>, limit: &Limit) -> Option<&'s str> {
        const SECOND: Micros = 1_000_000;
        let of_domain = domain.and_then(Domain::redis);
        of_domain.or_else(|| self.per_second.as_deref().filter(|_| limit.window() == SECOND))
    }

    fn mode(&self, mode: Mode) -> Mode {
        match mode {
            _ if self.options.shadow_mode => Mode::Shadow,
            Mode::Enforced if self.options.quota_mode => Mode::Quota,
            mode => mode,
        }
    }

    fn charge_rule<'r>(
        &self,
        plan: &mut Plan<'r>,
        domain: &str,
        descriptor: &convert::Descriptor<'_>,
        rule: &'r Rule,
        resolved: &Resolved<'_>,
    ) -> Asked<'r> {
        let first = plan.charges.len();
        let mut unlimited = None;
        let mode = match rule.enforce_percent {
            100.. => self.mode(rule.mode),
            percent if is_among(percent, domain, descriptor, rule) => self.mode(rule.mode),
            _ => Mode::Shadow,
        };
        let mut key = self.limiter.keys().key(domain);
        identify(&mut key, descriptor, &rule.shared);
        for (rule_limit, since) in rule.met(&descriptor.entries) {
            if resolved.is_replaced(rule_limit) {
                continue;
            }
            let Allowance::Limited { limit, .. } = rule_limit.allowance else {
                unlimited = Some(rule_limit);
                continue;
            };
            plan.charges.push(Charge {
                bucket: key.limit(rule_limit.limit_id.as_bytes()),
                rule: rule_limit.id,
                limit: limit.since(limit.in_force_since().max(since)).with_max_debt(self.options.max_debt),
                hits: rule.cost_of(descriptor.hits),
                mode,
                on_redis_failure: rule.on_redis_failure,
            });
            plan.limits.push(LimitSource::Rule(rule_limit));
            if self.limiter.memory().is_none() {
                let store = self.store_of(plan.domain, &limit);
                let name = name(store, domain, plan.domain, descriptor, &rule.shared);
                plan.names.push(name.limit(rule_limit.limit_id.as_bytes()));
            }
        }
        match (first..plan.charges.len(), unlimited) {
            (of, _) if !of.is_empty() => Asked::Charges { of, rule: Some(rule) },
            (_, Some(limit)) => Asked::Unlimited { limit, hits: descriptor.hits },
            (_, None) => Asked::Nothing,
        }
    }

    /// A limit that a request brings has buckets of its own, one for each unit: it may change with every request.
    fn charge_override(
        &self,
        plan: &mut Plan<'_>,
        domain: &str,
        descriptor: &convert::Descriptor<'_>,
        limit: Override,
    ) {
        let unit = limit.unit.name().unwrap_or_default().as_bytes();
        let mut key = self.limiter.keys().key(domain);
        identify(&mut key, descriptor, &[]);
        let BucketKey(rule) = KeySeed::fixed(0).key(domain).limit_override(unit);
        plan.charges.push(Charge {
            bucket: key.limit_override(unit),
            rule: RuleId((rule >> 64) as u64),
            limit: limit.limit().since(Micros::MAX).with_max_debt(self.options.max_debt),
            hits: descriptor.hits,
            mode: self.mode(Mode::Enforced),
            on_redis_failure: None,
        });
        plan.limits.push(LimitSource::Request(limit));
        if self.limiter.memory().is_none() {
            let store = self.store_of(plan.domain, &limit.limit());
            let name = name(store, domain, plan.domain, descriptor, &[]);
            plan.names.push(name.limit_override(unit));
        }
    }

    fn response(
        &self,
        request: &RateLimitRequest,
        plan: &Plan<'_>,
        decision: &Decision,
    ) -> RateLimitResponse {
        // Of each descriptor's limits, the one that denied, or else the one with the least left.
        let shown: SmallVec<[Option<Charged<'_, '_>>; 2]> = plan
            .asked
            .iter()
            .map(|asked| match asked {
                Asked::Nothing | Asked::Unlimited { .. } => None,
                Asked::Charges { of, .. } => tightest(plan.charged(of, decision)),
            })
            .collect();
        let status = |(asked, shown): (&Asked<'_>, &Option<Charged<'_, '_>>)| match (asked, shown) {
            (Asked::Unlimited { .. }, _) => convert::unlimited(),
            (_, None) => convert::no_limit(),
            (_, Some(Charged { charge, verdict, limit })) => {
                convert::status(charge, verdict, convert::current_limit(*limit))
            }
        };
        let statuses: Vec<DescriptorStatus> = plan.asked.iter().zip(&shown).map(status).collect();
        let code = if decision.denied { Code::OverLimit } else { Code::Ok };
        let with_metadata = self.options.dynamic_metadata && plan.domain.is_some();
        let dynamic_metadata =
            with_metadata.then(|| metadata::of(request, plan, &shown, &statuses, decision.denied));
        let headers =
            plan.domain.and_then(|domain| domain.headers.as_deref()).unwrap_or(&self.options.headers);
        let mut response = RateLimitResponse {
            overall_code: code.into(),
            statuses,
            response_headers_to_add: headers::of(headers, plan, decision),
            dynamic_metadata,
            ..RateLimitResponse::default()
        };
        if decision.denied
            && let Some(denial) = plan.all_charged(decision).find_map(|charged| charged.denial())
        {
            response.raw_body = denial.body.to_vec();
            response.response_headers_to_add.push(headers::content_type(denial));
        }
        response
    }
}

#[tonic::async_trait]
impl RateLimitService for Service {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        if let Some(Shed(policy)) = request.extensions().get() {
            return answer_unasked(request.get_ref(), *policy).map(Response::new);
        }
        self.answer_call(request.get_ref(), request.metadata()).await.map(Response::new)
    }
}

/// Answers a request by `policy`, without asking any bucket.
///
/// # Errors
/// With `UNAVAILABLE`, if that is the policy.
pub fn answer_unasked(request: &RateLimitRequest, policy: Policy) -> Result<RateLimitResponse, Status> {
    let code = match policy {
        Policy::Allow => Code::Ok,
        Policy::Deny => Code::OverLimit,
        Policy::Unavailable => return Err(Status::unavailable("too many calls at once")),
    };
    let status = DescriptorStatus { code: code.into(), ..convert::no_limit() };
    Ok(RateLimitResponse {
        overall_code: code.into(),
        statuses: vec![status; request.descriptors.len()],
        ..RateLimitResponse::default()
    })
}

#[cfg(test)]
mod tests;
